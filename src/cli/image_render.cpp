#include "cli/image_render.h"

#include <fmt/format.h>

#include <algorithm>

#include "absl/time/time.h"
#include "cli/text.h"

namespace godwit::cli {
namespace {

using resource::MappingState;

bool is_socket(const ImageDescription& description) {
  return description.kind.ends_with("_socket");
}

size_t sockets_in(const Image& image) {
  return static_cast<size_t>(std::ranges::count_if(
      image.descriptions, [](const auto& entry) { return is_socket(entry.second); }));
}

size_t threads_in(const Image& image) {
  size_t threads = 0;
  for (const ImageProcess& each : image.processes)
    threads += static_cast<size_t>(each.process.threads_size());
  return threads;
}

std::string_view kind_text(MappingState::Kind kind) {
  switch (kind) {
    case MappingState::KIND_ANONYMOUS:
      return "anonymous";
    case MappingState::KIND_PRIVATE_FILE:
      return "private file";
    case MappingState::KIND_SHARED_FILE:
      return "shared file";
    case MappingState::KIND_SHARED_OBJECT:
      return "shared memory";
    case MappingState::KIND_KERNEL:
      return "kernel";
    case MappingState::KIND_AIO_RING:
      return "asynchronous I/O";
    case MappingState::KIND_IO_URING:
      return "io_uring";
    default:
      return "unknown";
  }
}

// As /proc/PID/maps shows it.
std::string protection_text(uint32_t protection) {
  std::string text = "---";
  if ((protection & 1) != 0) text[0] = 'r';
  if ((protection & 2) != 0) text[1] = 'w';
  if ((protection & 4) != 0) text[2] = 'x';
  return text;
}

std::string name_of(const ImageProcess& process) {
  if (process.process.zombie()) return "(zombie)";
  return process.name.empty() ? "-" : printable(process.name);
}

std::string what_of(const Image& image, uint64_t description) {
  const auto found = image.descriptions.find(description);
  return found == image.descriptions.end() ? "?" : printable(found->second.text);
}

std::string codecs_text(const ImageEpoch& epoch) {
  std::string text;
  for (const auto& [codec, pages] : epoch.compressed_pages)
    text += (text.empty() ? "" : "+") + codec;
  return text.empty() ? "none" : text;
}

std::string epochs_text(const Image& image) {
  Table table({"EPOCH", "TAKEN", "SECTIONS", "PAGES", "PLAIN", "STORED", "CODEC", "DROPPED",
               "FILE CHANGES", "SIZE"});
  for (const ImageEpoch& each : image.epochs)
    table.row({std::to_string(each.number), each.final ? "frozen" : "running",
               std::to_string(each.sections), std::to_string(each.pages),
               format_bytes(each.pages * stream::kPageSize), format_bytes(each.page_bytes),
               codecs_text(each), std::to_string(each.dropped_pages),
               std::to_string(each.file_changes), format_bytes(each.bytes)});
  return table.str();
}

std::string processes_text(const Image& image) {
  Table table({"PID", "PARENT", "GROUP", "SESSION", "THREADS", "MAPPINGS", "MAPPED", "DESCRIPTORS",
               "NAME"});
  for (const ImageProcess& each : image.processes)
    table.row({std::to_string(each.process.pid()), std::to_string(each.process.parent()),
               std::to_string(each.process.process_group()), std::to_string(each.process.session()),
               std::to_string(each.process.threads_size()),
               std::to_string(each.memory_map.mappings_size()), format_bytes(each.mapped_bytes),
               std::to_string(each.fd_table.entries_size()), name_of(each)});
  return table.str();
}

std::string threads_text(const ImageProcess& process) {
  Table table({"TID", "NAME"});
  for (int i = 0; i < process.process.threads_size(); ++i)
    table.row({std::to_string(process.process.threads(i)),
               printable(process.task_names[static_cast<size_t>(i)])});
  return table.str();
}

std::string mappings_text(const ImageProcess& process) {
  Table table({"START", "END", "SIZE", "ACCESS", "KIND", "WHAT"});
  for (const MappingState& each : process.memory_map.mappings())
    table.row({fmt::format("{:x}", each.start()), fmt::format("{:x}", each.end()),
               format_bytes(each.end() - each.start()), protection_text(each.protection()),
               fmt::format("{}{}", kind_text(each.kind()),
                           each.huge_page_bytes() != 0 ? ", huge pages" : ""),
               printable(each.path().empty() ? each.name() : each.path())});
  return table.str();
}

std::string descriptors_text(const Image& image, const ImageProcess& process) {
  Table table({"FD", "DESCRIPTION", "WHAT"});
  for (const auto& each : process.fd_table.entries())
    table.row({fmt::format("{}{}", each.fd(), each.close_on_exec() ? "*" : ""),
               std::to_string(each.description()), what_of(image, each.description())});
  return table.str();
}

std::string hash_text(const capsule::UsedFile& file) {
  std::string text;
  for (const char c : file.hash()) text += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return text;
}

std::string files_text(const Image& image) {
  Table table({"FILE", "SIZE", "MODE", "OWNER", "USE", "XXH3-128"});
  for (const auto& [path, file] : image.files)
    table.row({printable(path), format_bytes(file.size()), fmt::format("{:o}", file.mode() & 07777),
               fmt::format("{}:{}", file.uid(), file.gid()), file.mapped() ? "mapped" : "open",
               hash_text(file)});
  return table.str();
}

std::string kinds_text(const Image& image) {
  Table table({"KIND", "SECTIONS", "SIZE"});
  for (const auto& [kind, total] : image.kinds)
    table.row({printable(kind), std::to_string(total.sections), format_bytes(total.bytes)});
  return table.str();
}

// Debian's Abseil does not take std::string_view.
std::string time_text(int64_t unix_ns) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", absl::FromUnixNanos(unix_ns),
                          absl::UTCTimeZone());
}

std::string saved_text(const Image& image) {
  return fmt::format("{}, saved {}, format {}, {}\n", printable(image.preamble.workload),
                     time_text(image.preamble.created_unix_ns), image.preamble.version,
                     format_bytes(image.bytes));
}

std::string vm_text(const Image& image) {
  const node::VmImage& machine = image.vm->machine;
  std::string out = fmt::format("virtual machine {}{}, uuid {}, {} memory, {}, {}\n",
                                saved_text(image), printable(machine.machine()),
                                printable(machine.uuid()), format_bytes(machine.memory_bytes()),
                                format_amount(machine.cpus(), "CPU", "CPUs"),
                                machine.definition().empty() ? "transient" : "persistent");
  if (!image.complete)
    out += "It ends without an epoch that was taken frozen: it cannot be restored.\n";
  out += "\n" + epochs_text(image) + "\n";
  Table table({"DISK", "FILE", "FORMAT", "SIZE", "FILE SIZE", "HERE"});
  for (const node::VmImageDisk& each : machine.disks()) {
    const auto found = image.vm->file_bytes.find(each.target());
    const bool here = found != image.vm->file_bytes.end();
    table.row({printable(each.target()), printable(each.path()), printable(each.format()),
               format_bytes(each.bytes()), here ? format_bytes(found->second) : "-",
               here ? "yes" : "no, its hash"});
  }
  return out + table.str() + "\n" + kinds_text(image);
}

}  // namespace

std::string image_text(const Image& image, bool verbose) {
  if (image.vm) return vm_text(image);
  std::string out = fmt::format(
      "service {}{} processes, {} threads, {} open descriptions, {} of "
      "them sockets\n",
      saved_text(image), image.processes.size(), threads_in(image), image.descriptions.size(),
      sockets_in(image));
  if (!image.complete)
    out += "It ends without an epoch that was taken frozen: it cannot be restored.\n";
  out += "\n" + epochs_text(image) + "\n" + processes_text(image);
  for (const ImageProcess& each : image.processes) {
    if (each.process.zombie()) continue;
    if (verbose)
      out += fmt::format("\nprocess {}, threads\n{}\nprocess {}, mappings\n{}", each.process.pid(),
                         threads_text(each), each.process.pid(), mappings_text(each));
    out += fmt::format("\nprocess {}, descriptors (*: closed by exec)\n{}", each.process.pid(),
                       descriptors_text(image, each));
  }
  if (!image.files.empty()) out += "\nfiles in use below the writable layer\n" + files_text(image);
  return out + "\n" + kinds_text(image);
}

namespace {

void process_json(Json& json, const Image& image, const ImageProcess& each) {
  json.object()
      .number("pid", each.process.pid())
      .number("parent", each.process.parent())
      .number("process_group", each.process.process_group())
      .number("session", each.process.session())
      .boolean("zombie", each.process.zombie())
      .text("name", each.name)
      .number("mapped_bytes", each.mapped_bytes);
  json.array("threads");
  for (int i = 0; i < each.process.threads_size(); ++i)
    json.object()
        .number("tid", each.process.threads(i))
        .text("name", each.task_names[static_cast<size_t>(i)])
        .end();
  json.end().array("mappings");
  for (const MappingState& mapping : each.memory_map.mappings())
    json.object()
        .number("start", mapping.start())
        .number("end", mapping.end())
        .text("access", protection_text(mapping.protection()))
        .text("kind", kind_text(mapping.kind()))
        .number("huge_page_bytes", mapping.huge_page_bytes())
        .text("path", mapping.path())
        .text("name", mapping.name())
        .end();
  json.end().array("descriptors");
  for (const auto& entry : each.fd_table.entries()) {
    const auto found = image.descriptions.find(entry.description());
    json.object()
        .number("fd", entry.fd())
        .boolean("close_on_exec", entry.close_on_exec())
        .number("description", entry.description())
        .text("kind", found == image.descriptions.end() ? "" : found->second.kind)
        .text("what", found == image.descriptions.end() ? "" : found->second.text)
        .end();
  }
  json.end().end();
}

void vm_json(Json& json, const ImageVm& vm) {
  json.object("vm")
      .text("uuid", vm.machine.uuid())
      .text("machine", vm.machine.machine())
      .number("memory_bytes", vm.machine.memory_bytes())
      .number("saved_memory_bytes", vm.memory_bytes)
      .number("cpus", vm.machine.cpus())
      .boolean("persistent", !vm.machine.definition().empty())
      .text("address", vm.machine.address());
  json.array("disks");
  for (const node::VmImageDisk& each : vm.machine.disks()) {
    const auto found = vm.file_bytes.find(each.target());
    json.object()
        .text("target", each.target())
        .text("path", each.path())
        .text("format", each.format())
        .number("bytes", each.bytes())
        .boolean("read_only", each.read_only())
        .boolean("carried", each.carried())
        .number("file_bytes", found == vm.file_bytes.end() ? 0 : found->second)
        .end();
  }
  json.end().end();
}

}  // namespace

void image_json(Json& json, const Image& image) {
  json.object()
      .text("workload", image.preamble.workload)
      .number("created_unix_ns", image.preamble.created_unix_ns)
      .number("version", image.preamble.version)
      .number("bytes", image.bytes)
      .boolean("complete", image.complete)
      .number("threads", threads_in(image))
      .number("sockets", sockets_in(image));
  json.array("epochs");
  for (const ImageEpoch& each : image.epochs)
    json.object()
        .number("number", each.number)
        .boolean("final", each.final)
        .number("frames", each.frames)
        .number("sections", each.sections)
        .number("pages", each.pages)
        .number("page_bytes", each.pages * stream::kPageSize)
        .number("page_bytes_stored", each.page_bytes)
        .text("compression", codecs_text(each))
        .number("dropped_pages", each.dropped_pages)
        .number("file_changes", each.file_changes)
        .number("file_bytes", each.file_bytes)
        .number("bytes", each.bytes)
        .end();
  json.end().array("processes");
  for (const ImageProcess& each : image.processes) process_json(json, image, each);
  json.end();
  if (image.vm) vm_json(json, *image.vm);
  json.array("files");
  for (const auto& [path, file] : image.files)
    json.object()
        .text("path", path)
        .number("size", file.size())
        .number("mode", file.mode() & 07777)
        .number("uid", file.uid())
        .number("gid", file.gid())
        .boolean("mapped", file.mapped())
        .text("xxh3_128", hash_text(file))
        .end();
  json.end().array("kinds");
  for (const auto& [kind, total] : image.kinds)
    json.object()
        .text("kind", kind)
        .number("sections", total.sections)
        .number("bytes", total.bytes)
        .end();
  json.end().end();
}

}  // namespace godwit::cli
