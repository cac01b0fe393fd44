// What /proc shows of an address space against what was sent of it.
#include <google/protobuf/util/message_differencer.h>

#include "base/status.h"
#include "kernel/proc/maps.h"
#include "process/verify.h"

namespace godwit::process {
namespace {

using resource::MappingState;
using resource::MemoryMapState;

constexpr uint64_t kPage = 4096;

bool has_offset(const MappingState& mapping) {
  return mapping.kind() != MappingState::KIND_ANONYMOUS &&
         mapping.kind() != MappingState::KIND_KERNEL;
}

bool goes_on(const MappingState& first, const MappingState& next) {
  return first.end() == next.start() && first.kind() == next.kind() &&
         first.protection() == next.protection() && first.path() == next.path() &&
         first.object() == next.object() && first.flags() == next.flags() &&
         first.name() == next.name() && first.huge_page_bytes() == next.huge_page_bytes() &&
         (!has_offset(first) || first.offset() + (first.end() - first.start()) == next.offset());
}

std::vector<MappingState> merged(const MemoryMapState& map) {
  std::vector<MappingState> list;
  for (const MappingState& mapping : map.mappings()) {
    if (!list.empty() && mapping.kind() != MappingState::KIND_KERNEL &&
        goes_on(list.back(), mapping))
      list.back().set_end(mapping.end());
    else
      list.push_back(mapping);
  }
  return list;
}

std::string text_of(const MappingState& mapping) {
  return fmt::format("{:x}-{:x} prot {} flags {:x} offset {:x} {}{}", mapping.start(),
                     mapping.end(), mapping.protection(), mapping.flags(), mapping.offset(),
                     mapping.path(), mapping.name());
}

bool equal(const MappingState& a, const MappingState& b) {
  return google::protobuf::util::MessageDifferencer::Equals(a, b);
}

}  // namespace

absl::StatusOr<MemoryMapState> read_memory_map(HostPid pid, resource::AddressRange own) {
  GW_ASSIGN_OR_RETURN(std::vector<kernel::Mapping> maps, kernel::read_smaps(pid));
  resource::leave_out(own, maps);
  uint64_t unknown = 0;
  return resource::capture_memory_map(pid, maps, nullptr, &unknown);
}

std::string difference(const MemoryMapState& sent, MemoryMapState shown) {
  const std::vector<MappingState> a = merged(sent);
  const std::vector<MappingState> b = merged(shown);
  for (size_t i = 0; i < std::max(a.size(), b.size()); ++i) {
    if (i < a.size() && i < b.size() && equal(a[i], b[i])) continue;
    return fmt::format("mapping {} was sent, and {} is there",
                       i < a.size() ? text_of(a[i]) : "none",
                       i < b.size() ? text_of(b[i]) : "none");
  }
  // /proc knows the break by its page only.
  if ((sent.brk() + kPage - 1) / kPage == (shown.brk() + kPage - 1) / kPage)
    shown.set_brk(sent.brk());
  // No mapping shows it yet: the husk's stub was there before.
  shown.set_future_locks(sent.future_locks());
  shown.set_program(sent.program());
  MemoryMapState fields = sent;
  fields.clear_mappings();
  shown.clear_mappings();
  std::string text;
  google::protobuf::util::MessageDifferencer differencer;
  differencer.ReportDifferencesToString(&text);
  if (differencer.Compare(fields, shown)) return {};
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return "fields of the address space, sent and there: " + text;
}

}  // namespace godwit::process
