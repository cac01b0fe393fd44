#include "vm/domain_change.h"

#include "base/status.h"

#ifdef GODWIT_LIBVIRT
#include <pugixml.hpp>
#include <sstream>

namespace godwit::vm {
namespace {

absl::StatusOr<pugi::xml_node> parse(pugi::xml_document& document, const std::string& xml) {
  const pugi::xml_parse_result parsed = document.load_buffer(xml.data(), xml.size());
  const pugi::xml_node domain = document.child("domain");
  if (!parsed || !domain)
    return make_error(absl::StatusCode::kInvalidArgument, "the XML is of no domain");
  return domain;
}

std::string printed(const pugi::xml_node& node) {
  std::ostringstream out;
  node.print(out, "", pugi::format_raw);
  return out.str();
}

pugi::xml_node child(pugi::xml_node parent, const char* name) {
  const pugi::xml_node found = parent.child(name);
  return found ? found : parent.append_child(name);
}

void unplug(pugi::xml_node interface) {
  pugi::xml_node link = child(interface, "link");
  pugi::xml_attribute state = link.attribute("state");
  if (!state) state = link.append_attribute("state");
  state = "down";
}

}  // namespace

absl::StatusOr<std::string> changed_domain(const std::string& xml, const DomainChange& change) {
  pugi::xml_document document;
  GW_ASSIGN_OR_RETURN(pugi::xml_node domain, parse(document, xml));
  child(domain, "name").text() = change.name.c_str();
  child(domain, "uuid").text() = change.uuid.c_str();
  pugi::xml_node devices = child(domain, "devices");
  for (pugi::xml_node disk : devices.children("disk")) {
    pugi::xml_attribute file = disk.child("source").attribute("file");
    const auto found = change.files.find(file.as_string());
    if (found != change.files.end()) file = found->second.c_str();
  }
  if (change.unplugged)
    for (const pugi::xml_node each : devices.children("interface")) unplug(each);
  return printed(domain);
}

absl::StatusOr<std::vector<std::string>> unplugged_interfaces(const std::string& xml) {
  pugi::xml_document document;
  GW_ASSIGN_OR_RETURN(const pugi::xml_node domain, parse(document, xml));
  std::vector<std::string> found;
  for (const pugi::xml_node each : domain.child("devices").children("interface")) {
    unplug(each);
    found.push_back(printed(each));
  }
  return found;
}

}  // namespace godwit::vm

#else

namespace godwit::vm {
absl::StatusOr<std::string> changed_domain(const std::string&, const DomainChange&) {
  return absl::UnimplementedError("built without libpugixml-dev");
}
absl::StatusOr<std::vector<std::string>> unplugged_interfaces(const std::string&) {
  return absl::UnimplementedError("built without libpugixml-dev");
}
}  // namespace godwit::vm

#endif
