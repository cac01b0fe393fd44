#include "cli/image_contents.h"

#include <fmt/format.h>

#include <limits>
#include <utility>

#include "base/status.h"
#include "node/file_sections.h"
#include "node/vm_image.h"
#include "resource/identity/identity.h"
#include "resource/identity/identity.pb.h"
#include "resource/registry.h"
#include "resource/state_codec.h"

namespace godwit::cli {
namespace {

using Sections = std::map<stream::SectionKey, std::string>;

uint64_t add_clipped(uint64_t a, uint64_t b) {
  const uint64_t most = std::numeric_limits<uint64_t>::max();
  return b > most - a ? most : a + b;
}

template <typename Message>
absl::StatusOr<Message> section_of(const Sections& sections, std::string kind, uint64_t id) {
  const auto found = sections.find(stream::SectionKey{std::move(kind), id});
  if (found == sections.end()) return Message();
  return resource::parse_state<Message>(found->second, found->first.kind);
}

absl::StatusOr<ImageProcess> process_of(const Sections& sections,
                                        const resource::ProcessTreeState::Process& process) {
  ImageProcess out;
  out.process = process;
  const auto pid = static_cast<uint64_t>(process.pid());
  GW_ASSIGN_OR_RETURN(out.memory_map,
                      section_of<resource::MemoryMapState>(sections, "memory_map", pid));
  GW_ASSIGN_OR_RETURN(out.fd_table, section_of<resource::FdTableState>(sections, "fd_table", pid));
  for (const resource::MappingState& mapping : out.memory_map.mappings()) {
    if (mapping.end() < mapping.start())
      return make_error(absl::StatusCode::kDataLoss,
                        "process {} has a mapping that ends before it "
                        "starts",
                        process.pid());
    out.mapped_bytes = add_clipped(out.mapped_bytes, mapping.end() - mapping.start());
  }
  const std::string identity(resource::task_identity_resource().name());
  for (const int32_t tid : process.threads()) {
    GW_ASSIGN_OR_RETURN(const auto task, section_of<resource::TaskIdentityState>(
                                             sections, identity, static_cast<uint64_t>(tid)));
    out.task_names.push_back(task.name());
  }
  if (!out.task_names.empty()) out.name = out.task_names.front();
  return out;
}

absl::Status add_vm(const Sections& sections, Image& image) {
  ImageVm& vm = image.vm.emplace();
  GW_ASSIGN_OR_RETURN(vm.machine, section_of<node::VmImage>(sections, node::kVmSection, 0));
  for (const auto& [key, state] : sections) {
    if (key.kind != node::kVmSpaceSection) continue;
    GW_ASSIGN_OR_RETURN(const auto space, resource::parse_state<node::VmSpace>(state, key.kind));
    if (key.id == node::kVmMemory)
      vm.memory_bytes = space.bytes();
    else
      vm.file_bytes[space.target()] = space.bytes();
  }
  return absl::OkStatus();
}

absl::Status add_state(const Sections& sections, Image& image) {
  for (const auto& [key, state] : sections) {
    ImageKind& kind = image.kinds[key.kind];
    ++kind.sections;
    kind.bytes += state.size();
    if (key.kind == node::kFileSection) {
      GW_ASSIGN_OR_RETURN(auto used, resource::parse_state<capsule::UsedFile>(state, key.kind));
      const std::string path = used.path();
      image.files.insert_or_assign(path, std::move(used));
    }
    if (const resource::FileKind* file = resource::find_file_kind(key.kind); file != nullptr)
      image.descriptions[key.id] = {key.id, key.kind, file->describe(state)};
  }
  if (sections.count(stream::SectionKey{node::kVmSection, 0}) != 0)
    GW_RETURN_IF_ERROR(add_vm(sections, image));
  GW_ASSIGN_OR_RETURN(const auto tree,
                      section_of<resource::ProcessTreeState>(sections, "process_tree", 0));
  for (const auto& process : tree.processes()) {
    GW_ASSIGN_OR_RETURN(ImageProcess one, process_of(sections, process));
    image.processes.push_back(std::move(one));
  }
  return absl::OkStatus();
}

uint64_t pages_in(const std::vector<stream::PageRun>& runs) {
  uint64_t pages = 0;
  for (const stream::PageRun& run : runs) pages += run.count;
  return pages;
}

// Takes one frame into the open epoch (or opens one).
void count(const stream::Frame& frame, Image& image, Sections& sections) {
  if (const auto* preamble = std::get_if<stream::Preamble>(&frame)) {
    image.preamble = *preamble;
    return;
  }
  if (const auto* begin = std::get_if<stream::EpochBegin>(&frame))
    image.epochs.push_back({.number = begin->number, .final = begin->final});
  ImageEpoch& epoch = image.epochs.back();  // the reader lets nothing else come first
  ++epoch.frames;
  if (const auto* section = std::get_if<stream::Section>(&frame)) {
    ++epoch.sections;
    sections[section->key] = section->state;
  } else if (const auto* removed = std::get_if<stream::SectionRemoved>(&frame)) {
    sections.erase(removed->key);
  } else if (const auto* pages = std::get_if<stream::Pages>(&frame)) {
    const uint64_t count = pages_in(pages->runs);
    epoch.pages += count;
    const bool plain = pages->codec == stream::Codec::kNone;
    epoch.page_bytes += plain ? pages->data.size() : pages->stored.size();
    if (!plain) epoch.compressed_pages[std::string(stream::codec_name(pages->codec))] += count;
  } else if (const auto* dropped = std::get_if<stream::PagesDropped>(&frame)) {
    epoch.dropped_pages += pages_in(dropped->runs);
  } else if (const auto* blocks = std::get_if<stream::FileBlocks>(&frame)) {
    ++epoch.file_changes;
    epoch.file_bytes += blocks->data.size();
  }
}

}  // namespace

absl::StatusOr<Image> read_image(stream::Feed& feed) {
  stream::Reader reader(feed);
  Image image;
  Sections sections;
  bool any = false;
  for (;;) {
    const uint64_t before = reader.bytes_read();
    const absl::StatusOr<stream::Frame> frame = reader.next();
    if (absl::IsOutOfRange(frame.status()) && any) break;
    if (absl::IsOutOfRange(frame.status()))
      return make_error(absl::StatusCode::kDataLoss, "stream offset 0: there is nothing in it");
    if (!frame.ok()) return frame.status();
    any = true;
    count(*frame, image, sections);
    if (!image.epochs.empty()) image.epochs.back().bytes += reader.bytes_read() - before;
  }
  image.bytes = reader.bytes_read();
  image.complete = !image.epochs.empty() && image.epochs.back().final;
  GW_RETURN_IF_ERROR(add_state(sections, image));
  return image;
}

std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte >= 0x7f || c == '\\')
      out += c == '\\' ? std::string("\\\\") : fmt::format("\\x{:02x}", byte);
    else
      out += c;
  }
  return out;
}

}  // namespace godwit::cli
