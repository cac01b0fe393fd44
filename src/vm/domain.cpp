#include "vm/domain.h"

#include <charconv>

#include "base/status.h"

namespace godwit::vm {

int machine_version(const std::string& machine) {
  const size_t at = machine.rfind('-') + 1;  // npos + 1: from the beginning
  int major = 0;
  const char* const end = machine.data() + machine.size();
  const auto [rest, error] = std::from_chars(machine.data() + at, end, major);
  return error == std::errc() && rest != end && *rest == '.' ? major : 0;
}

}  // namespace godwit::vm

#ifdef GODWIT_LIBVIRT
#include <pugixml.hpp>
#include <sstream>

namespace godwit::vm {
namespace {

absl::StatusOr<pugi::xml_node> parse(pugi::xml_document& document, const std::string& xml,
                                     const char* root) {
  const pugi::xml_parse_result parsed = document.load_buffer(xml.data(), xml.size());
  if (!parsed)
    return make_error(absl::StatusCode::kInvalidArgument, "the XML does not parse at byte {}: {}",
                      parsed.offset, parsed.description());
  const pugi::xml_node node = document.child(root);
  if (!node)
    return make_error(absl::StatusCode::kInvalidArgument, "the XML has no <{}> at its top", root);
  return node;
}

std::string text(const pugi::xml_node& node) { return node.text().as_string(); }
std::string attribute(const pugi::xml_node& node, const char* name) {
  return node.attribute(name).as_string();
}

// Scaled integers of libvirt: KiB unless the unit says otherwise.
uint64_t bytes_of(const pugi::xml_node& node) {
  const uint64_t value = node.text().as_ullong();
  const std::string unit = attribute(node, "unit");
  if (unit == "b" || unit == "bytes") return value;
  if (unit == "MiB" || unit == "M") return value << 20;
  if (unit == "GiB" || unit == "G") return value << 30;
  if (unit == "TiB" || unit == "T") return value << 40;
  return value << 10;
}

Disk disk_of(const pugi::xml_node& node) {
  Disk disk;
  disk.target = attribute(node.child("target"), "dev");
  disk.kind = attribute(node, "type");
  const pugi::xml_node source = node.child("source");
  disk.source = attribute(source, "file");
  if (disk.source.empty()) disk.source = attribute(source, "dev");
  disk.format = attribute(node.child("driver"), "type");
  disk.read_only = static_cast<bool>(node.child("readonly"));
  disk.shareable = static_cast<bool>(node.child("shareable"));
  disk.backed = static_cast<bool>(node.child("backingStore").child("source"));
  return disk;
}

Interface interface_of(const pugi::xml_node& node) {
  return {attribute(node.child("mac"), "address"), attribute(node.child("source"), "bridge"),
          attribute(node.child("target"), "dev"), attribute(node.child("link"), "state") == "down"};
}

// Devices that are the machine's own: their state stays where they are.
std::vector<HostDevice> host_devices(const pugi::xml_node& devices) {
  std::vector<HostDevice> found;
  for (const pugi::xml_node node : devices.children()) {
    const std::string name = node.name();
    const std::string type = attribute(node, "type");
    if (name == "hostdev") {
      const pugi::xml_node address = node.child("source").child("address");
      std::string where;
      for (const pugi::xml_attribute each : address.attributes())
        where += fmt::format("{}{}={}", where.empty() ? "" : " ", each.name(), each.value());
      found.push_back({fmt::format("{} device of the host", type), where});
    }
    if (name == "interface" && (type == "hostdev" || type == "direct"))
      found.push_back({fmt::format("network interface of type {}", type),
                       attribute(node.child("mac"), "address")});
    if (name == "filesystem")
      found.push_back({"folder of the host", attribute(node.child("source"), "dir")});
    if (name == "shmem" && attribute(node, "role") == "peer")
      found.push_back({"shared memory (role peer)", attribute(node, "name")});
    if (name == "tpm" && attribute(node.child("backend"), "type") == "passthrough")
      found.push_back(
          {"TPM of the host", attribute(node.child("backend").child("device"), "path")});
  }
  return found;
}

}  // namespace

absl::StatusOr<DomainSpec> parse_domain(const std::string& xml) {
  pugi::xml_document document;
  GW_ASSIGN_OR_RETURN(const pugi::xml_node domain, parse(document, xml, "domain"));
  DomainSpec spec;
  spec.name = text(domain.child("name"));
  if (spec.name.empty())
    return make_error(absl::StatusCode::kInvalidArgument, "the domain has no <name>");
  spec.uuid = text(domain.child("uuid"));
  spec.emulation = attribute(domain, "type");
  const pugi::xml_node type = domain.child("os").child("type");
  spec.arch = attribute(type, "arch");
  spec.machine = attribute(type, "machine");
  spec.memory_bytes = bytes_of(domain.child("memory"));
  spec.cpus = domain.child("vcpu").text().as_uint(1);
  const pugi::xml_node cpu = domain.child("cpu");
  spec.cpu_mode = attribute(cpu, "mode");
  spec.cpu_model = text(cpu.child("model"));
  if (cpu) {
    std::ostringstream out;
    cpu.print(out, "", pugi::format_raw);
    spec.cpu_xml = out.str();
  }
  const pugi::xml_node devices = domain.child("devices");
  spec.emulator = text(devices.child("emulator"));
  for (const pugi::xml_node each : devices.children("disk")) spec.disks.push_back(disk_of(each));
  for (const pugi::xml_node each : devices.children("interface"))
    spec.interfaces.push_back(interface_of(each));
  spec.host_devices = host_devices(devices);
  for (const pugi::xml_node each : devices.children("video"))
    spec.video |= attribute(each.child("model"), "type") != "none";
  const pugi::xml_node os = domain.child("os");
  spec.nvram = os.child("nvram") || attribute(os, "firmware") == "efi";
  spec.tpm = static_cast<bool>(devices.child("tpm"));
  return spec;
}

absl::StatusOr<HypervisorCapabilities> parse_capabilities(const std::string& xml) {
  pugi::xml_document document;
  GW_ASSIGN_OR_RETURN(const pugi::xml_node root, parse(document, xml, "domainCapabilities"));
  HypervisorCapabilities found;
  found.machine = text(root.child("machine"));
  found.most_cpus = root.child("vcpu").attribute("max").as_uint();
  for (const pugi::xml_node mode : root.child("cpu").children("mode")) {
    if (attribute(mode, "supported") != "yes") continue;
    found.cpu_modes.push_back(attribute(mode, "name"));
    if (attribute(mode, "name") != "custom") continue;
    for (const pugi::xml_node model : mode.children("model"))
      if (attribute(model, "usable") != "no") found.cpu_models.push_back(text(model));
  }
  return found;
}

}  // namespace godwit::vm

#else

namespace godwit::vm {
absl::StatusOr<DomainSpec> parse_domain(const std::string&) {
  return absl::UnimplementedError("built without libpugixml-dev");
}
absl::StatusOr<HypervisorCapabilities> parse_capabilities(const std::string&) {
  return absl::UnimplementedError("built without libpugixml-dev");
}
}  // namespace godwit::vm

#endif
