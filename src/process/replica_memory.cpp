// Mappings and pages of the husks.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <cstring>
#include <map>

#include "base/fault_point.h"
#include "base/status.h"
#include "kernel/slice.h"
#include "kernel/syscalls.h"
#include "process/replica.h"
#include "resource/memory_map/memory_map.h"
#include "resource/registry.h"
#include "resource/sysv_ipc/sysv_ipc.h"

namespace godwit::process {
namespace {

using resource::MappingState;

constexpr size_t kWorthHandingOver = size_t{256} << 10;

tracee::Batch::Data path_data(const std::string& path, tracee::Batch& batch) {
  return batch.data(std::as_bytes(std::span(path.c_str(), path.size() + 1)));
}

// Opens files of mappings in the husk itself, whose root is the capsule's: one open a file and
// mode, all closed at the end of the batch.
class FilesInHusk {
 public:
  explicit FilesInHusk(tracee::Batch& batch) : batch_(batch) {}

  tracee::Batch::Argument open(const MappingState& mapping) {
    const bool write = mapping.kind() == MappingState::KIND_SHARED_FILE &&
                       (mapping.flags() & resource::kMapMayWrite) != 0;
    const auto [at, fresh] = opened_.try_emplace({mapping.path(), write}, 0);
    if (fresh)
      at->second = batch_.call(SYS_openat,
                               {AT_FDCWD, path_data(mapping.path(), batch_),
                                (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY},
                               true);
    return tracee::Batch::ResultOf{at->second};
  }

  void close_all() {
    for (const auto& [file, call] : opened_)
      batch_.call(SYS_close, {tracee::Batch::ResultOf{call}}, true);
  }

 private:
  tracee::Batch& batch_;
  std::map<std::pair<std::string, bool>, size_t> opened_;
};

// A removed file that was mapped by a descriptor for reading shall not become writable.
bool may_write(const MappingState& mapping) {
  return mapping.kind() != MappingState::KIND_SHARED_FILE ||
         (mapping.flags() & resource::kMapMayWrite) != 0;
}

// What a mapping of huge pages reserves comes from the machine's pool.
absl::Status explained(absl::Status mapped, const resource::MemoryMapState& state) {
  if (errno_of(mapped) != ENOMEM) return mapped;
  for (const MappingState& mapping : state.mappings())
    if (mapping.huge_page_bytes() != 0)
      return annotate(mapped,
                      fmt::format("it has huge pages of {} KiB, of which this node's pool has too "
                                  "few left (nr_hugepages)",
                                  mapping.huge_page_bytes() >> 10));
  return mapped;
}

// System V segments that a husk attaches while it maps parts of them, above the places of stubs,
// where nothing of a program is nor will be.
class SegmentsInHusk {
 public:
  SegmentsInHusk(const resource::MemoryMapState& now, const resource::MemoryMapState& wanted,
                 const SharedObjects& objects, tracee::Batch& batch)
      : now_(now), wanted_(wanted), objects_(objects), batch_(batch) {}

  absl::StatusOr<resource::Backing> attach(const MappingState& mapping) {
    // What may not be made writable was attached for reading.
    const bool write = (mapping.flags() & resource::kMapMayWrite) != 0;
    // What is attached of huge pages is moved away itself.
    const uint64_t number = mapping.huge_page_bytes() != 0 ? moved_.size() + 1 : 0;
    const auto [at, fresh] = attached_.try_emplace({mapping.object(), write, number}, 0);
    if (!fresh) return resource::Backing{.attached_at = at->second};
    const uint64_t size = objects_.size(mapping.object());
    if (size == 0)
      return make_error(absl::StatusCode::kDataLoss, "segment {} has no section",
                        resource::segment_of_object(mapping.object()));
    at->second = free_place(size, std::max<uint64_t>(1, mapping.huge_page_bytes()));
    batch_.call(SYS_shmat,
                {resource::segment_of_object(mapping.object()), at->second,
                 resource::attach_flags(write, (mapping.protection() & PROT_EXEC) != 0)},
                true);
    if (number != 0) moved_.push_back({at->second, at->second + size});
    return resource::Backing{.attached_at = at->second};
  }

  void detach_all() {
    for (const auto& [segment, address] : attached_)
      if (std::get<2>(segment) == 0) batch_.call(SYS_shmdt, {address}, true);
    // What is left around a part that was moved: shmdt(2) wants the first page.
    for (const resource::AddressRange& rest : moved_)
      batch_.call(SYS_munmap, {rest.start, rest.end - rest.start}, true);
  }

 private:
  uint64_t free_place(uint64_t size, uint64_t alignment) {
    const uint64_t place = (next_ + alignment - 1) / alignment * alignment;
    for (const auto* map : {&now_, &wanted_})
      for (const MappingState& mapping : map->mappings())
        if (mapping.start() < place + size && place < mapping.end()) {
          next_ = mapping.end();
          return free_place(size, alignment);
        }
    next_ = place + size;
    return place;
  }

  const resource::MemoryMapState& now_;
  const resource::MemoryMapState& wanted_;
  const SharedObjects& objects_;
  tracee::Batch& batch_;
  std::map<std::tuple<uint64_t, bool, size_t>, uint64_t> attached_;
  std::vector<resource::AddressRange> moved_;
  uint64_t next_ = tracee::StubArea::kPlacesEnd.value;
};

}  // namespace

int Replica::descriptor_of_object(uint64_t object) const {
  for (const auto& [id, description] : descriptions_) {
    const resource::FileKind* kind = resource::find_file_kind(description.kind);
    if (kind->shared_object(description.state) == object) return description.fd.get();
  }
  return -1;
}

absl::Status Replica::map_memory() {
  GW_RETURN_IF_ERROR(make_objects());
  for (auto& [pid, husk] : husks_)
    if (changed_.contains({"memory_map", static_cast<uint64_t>(pid)}))
      GW_RETURN_IF_ERROR(
          annotate(map_memory_of(husk), fmt::format("memory map of process {}", pid)));
  return absl::OkStatus();
}

absl::Status Replica::make_objects() {
  std::set<uint64_t> wanted;
  std::vector<resource::SharedObjectState> segments;
  for (const auto& [key, bytes] : sections_) {
    if (key.kind != "shared_object") continue;
    resource::SharedObjectState state;
    if (!state.ParseFromString(bytes))
      return make_error(absl::StatusCode::kDataLoss, "shared_object {} is not valid", key.id);
    wanted.insert(key.id);
    if (state.has_segment())
      segments.push_back(std::move(state));
    else if (state.has_file())
      GW_RETURN_IF_ERROR(
          objects_.ensure_file(state, descriptor_of_object(key.id), host_.in_capsule));
    else
      GW_RETURN_IF_ERROR(objects_.ensure(state, descriptor_of_object(key.id)));
  }
  GW_RETURN_IF_ERROR(objects_.keep(wanted, host_.in_capsule));
  // Marked for removal first: another one may have its key by now.
  std::stable_partition(segments.begin(), segments.end(),
                        [](const auto& one) { return one.segment().removed(); });
  for (const resource::SharedObjectState& state : segments)
    GW_RETURN_IF_ERROR(objects_.ensure_segment(state, host_.in_capsule));
  return absl::OkStatus();
}

// Objects are ours: lent for the time of the calls.
absl::StatusOr<Replica::Lent> Replica::lend_objects(Husk& husk,
                                                    const resource::MemoryMapState& state) {
  Lent lent;
  for (const MappingState& mapping : state.mappings())
    if (mapping.object() != 0 && !resource::is_segment(mapping.object()))
      lent.try_emplace({mapping.object(), may_write(mapping)}, -1);
  std::vector<UniqueFd> reading;
  std::vector<int> to_lend;
  for (const auto& [wanted, number] : lent) {
    int fd = objects_.descriptor(wanted.first);
    if (fd < 0)
      return make_error(absl::StatusCode::kDataLoss, "shared object {} has no section",
                        wanted.first);
    if (!wanted.second) {
      GW_ASSIGN_OR_RETURN(reading.emplace_back(),
                          kernel::open(fmt::format("/proc/self/fd/{}", fd), O_RDONLY | O_CLOEXEC));
      fd = reading.back().get();
    }
    to_lend.push_back(fd);
  }
  if (to_lend.empty()) return lent;
  GW_ASSIGN_OR_RETURN(const std::vector<int> numbers, husk.lend(channel_, to_lend));
  size_t i = 0;
  for (auto& [wanted, number] : lent) number = numbers[i++];
  return lent;
}

absl::Status Replica::map_memory_of(Husk& husk) {
  FAULT_POINT("replica.map_memory");
  resource::MemoryMapState state;
  if (!state.ParseFromString(*wanted("memory_map", static_cast<uint64_t>(husk.pid().value))))
    return make_error(absl::StatusCode::kDataLoss, "not a valid state");
  GW_ASSIGN_OR_RETURN(const Lent lent, lend_objects(husk, state));

  if (state.program() != husk.memory_map.program()) GW_RETURN_IF_ERROR(empty_memory_of(husk));
  if (husk.memory_map.exe().empty()) GW_RETURN_IF_ERROR(set_exe(husk, state));
  tracee::Batch batch;
  FilesInHusk files(batch);
  SegmentsInHusk segments(husk.memory_map, state, objects_, batch);
  GW_RETURN_IF_ERROR(resource::add_memory_map_calls(
      husk.memory_map, state,
      [&](const MappingState& mapping) -> absl::StatusOr<resource::Backing> {
        if (mapping.object() == 0) return resource::Backing{.fd = files.open(mapping)};
        if (resource::is_segment(mapping.object())) return segments.attach(mapping);
        return resource::Backing{.fd = lent.at({mapping.object(), may_write(mapping)})};
      },
      batch));
  files.close_all();
  segments.detach_all();
  for (const auto& [object, number] : lent) batch.call(SYS_close, {number}, true);
  GW_RETURN_IF_ERROR(husk.run(batch));
  GW_RETURN_IF_ERROR(explained(batch.check_all(), state));

  tracee::Batch fields;
  resource::add_mm_fields_call(state, -1, fields);
  GW_RETURN_IF_ERROR(husk.run(fields));
  GW_RETURN_IF_ERROR(fields.check_all());
  const auto applier = appliers_.find(husk.pid().value);
  if (applier != appliers_.end())
    for (const auto& range : resource::replaced_ranges(husk.memory_map, state))
      applier->second.forget({range.start, range.end});
  husk.memory_map = std::move(state);
  if (applier != appliers_.end()) applier->second.allow_huge(huge_ranges(husk));
  return absl::OkStatus();
}

absl::Status Replica::empty_memory_of(Husk& husk) {
  if (husk.memory_map.mappings().empty()) return absl::OkStatus();
  appliers_.erase(husk.pid().value);
  if (const auto missing = missing_.find(husk.pid().value); missing != missing_.end())
    missing->second.pages = pages::PageSet();
  return husk.empty_memory();
}

// Before anything is mapped: the link changes only while nothing of the old executable is
// (replace_mm_exe_file(), kernel/fork.c), and a husk that was forked by another one has that one's,
// which is most likely its own as well.
absl::Status Replica::set_exe(Husk& husk, const resource::MemoryMapState& state) {
  tracee::Batch open;
  const size_t opened =
      open.call(SYS_openat, {AT_FDCWD, path_data(state.exe(), open), O_RDONLY | O_CLOEXEC}, true);
  GW_RETURN_IF_ERROR(husk.run(open));
  GW_RETURN_IF_ERROR(open.check_all());
  const int fd = static_cast<int>(open.result(opened));
  tracee::Batch set;
  resource::add_mm_fields_call(state, fd, set);
  set.call(SYS_close, {fd}, true);
  GW_RETURN_IF_ERROR(husk.run(set));
  return set.check_all();
}

// Where pages may come as huge ones. Not where the machine wants none at all.
pages::PageSet Replica::huge_ranges(const Husk& husk) const {
  pages::PageSet ranges;
  if (!huge_pages_) return ranges;
  for (const MappingState& mapping : husk.memory_map.mappings())
    if (mapping.kind() == MappingState::KIND_ANONYMOUS && mapping.huge_page_bytes() == 0 &&
        (mapping.flags() & (resource::kMapNoHugePage | resource::kMapGrowsDown)) == 0)
      ranges.add({mapping.start(), mapping.end()});
  return ranges;
}

absl::StatusOr<Husk*> Replica::husk_of(uint64_t space) {
  const auto found = husks_.find(static_cast<int32_t>(space));
  if (found == husks_.end() || space > INT32_MAX)
    return make_error(absl::StatusCode::kDataLoss, "pages of process {}, which is not in the tree",
                      space);
  return &found->second;
}

absl::Status Replica::apply_pages(const stream::Pages& pages) {
  FAULT_POINT("replica.apply_pages");
  // A test's way to lose pages.
  if (fault_points_armed && !hit_fault_point("replica.lose_pages").ok()) return absl::OkStatus();
  if ((pages.space & stream::kSharedSpace) != 0) {
    const std::byte* from = pages.data.data();
    for (const stream::PageRun& run : pages.runs) {
      const uint64_t bytes = uint64_t{run.count} * stream::kPageSize;
      GW_ASSIGN_OR_RETURN(
          const std::span<std::byte> to,
          objects_.writable(pages.space & ~stream::kSharedSpace, run.address, bytes));
      std::memcpy(to.data(), from, bytes);
      from += bytes;
    }
    return absl::OkStatus();
  }
  GW_ASSIGN_OR_RETURN(Husk * husk, husk_of(pages.space));
  // The husk may be a new one under an old number.
  auto [applier, fresh] = appliers_.try_emplace(husk->pid().value, husk->host_pid());
  if (fresh) applier->second.allow_huge(huge_ranges(*husk));
  if (const auto missing = missing_.find(husk->pid().value); missing != missing_.end())
    missing->second.pages.subtract(pages::page_set_of(pages.runs));
  return place(applier->second, pages);
}

// A program changes its mappings while it runs. What a round finds where maps have shown something
// else before may have no place here; the next epoch, which tells of the mapping, has it again.
absl::Status Replica::place(pages::PageApplier& applier, const stream::Pages& pages) {
  applier.pass_over_what_has_no_place(!final_);
  // One after the other: two frames may have the same page.
  GW_RETURN_IF_ERROR(pages_placed());
  // In a freeze after rounds little is left, and a hand-over takes longer than that.
  const bool alone = pages.keep == nullptr || (final_ && epoch_ > 0);
  if (alone || pages.data.size() < kWorthHandingOver) return applier.apply(pages);
  if (!placer_) placer_ = std::make_unique<Background>(Background::Urgency::kOrdinary);
  placer_->start([&applier, keep = pages.keep, runs = pages.runs, data = pages.data] {
    const absl::Status applied = applier.apply(runs, data);
    kernel::let_others_run();
    return applied;
  });
  return absl::OkStatus();
}

absl::Status Replica::pages_placed() { return placer_ ? placer_->wait() : absl::OkStatus(); }

absl::Status Replica::drop_pages(const stream::PagesDropped& dropped) {
  if ((dropped.space & stream::kSharedSpace) != 0) {
    for (const stream::PageRun& run : dropped.runs) {
      const uint64_t bytes = uint64_t{run.count} * stream::kPageSize;
      GW_ASSIGN_OR_RETURN(const std::span<std::byte> at,
                          objects_.at(dropped.space & ~stream::kSharedSpace, run.address, bytes));
      if (::madvise(at.data(), at.size(), MADV_REMOVE) != 0)
        return errno_status(errno, "madvise(shared object, MADV_REMOVE)");
    }
    return absl::OkStatus();
  }
  GW_ASSIGN_OR_RETURN(Husk * husk, husk_of(dropped.space));
  auto [applier, fresh] = appliers_.try_emplace(husk->pid().value, husk->host_pid());
  if (fresh) applier->second.allow_huge(huge_ranges(*husk));
  applier->second.drop(dropped.runs);
  if (const auto missing = missing_.find(husk->pid().value); missing != missing_.end())
    missing->second.pages.subtract(pages::page_set_of(dropped.runs));
  return absl::OkStatus();
}

// At the end of an epoch, in one batch a husk: the kernel takes this advice from nobody but the
// process itself.
absl::Status Replica::run_drops() {
  for (auto& [pid, applier] : appliers_) {
    if (applier.to_drop().empty()) continue;
    const auto husk = husks_.find(pid);
    if (husk == husks_.end()) continue;
    pages::PageSet mapped;
    for (const MappingState& mapping : husk->second.memory_map.mappings())
      mapped.add({mapping.start(), mapping.end()});
    tracee::Batch batch;
    for (const pages::PageRange& range : applier.to_drop().intersect(mapped))
      batch.call(SYS_madvise, {range.start, range.end - range.start, MADV_DONTNEED}, true);
    GW_RETURN_IF_ERROR(husk->second.run(batch));
    GW_RETURN_IF_ERROR(annotate(batch.check_all(), fmt::format("drop pages of process {}", pid)));
    applier.dropped();
  }
  if (!final_) return absl::OkStatus();
  for (const auto& [pid, applier] : appliers_)
    if (!applier.unplaced().empty())
      return make_error(absl::StatusCode::kDataLoss,
                        "process {}: page {:x} came when nothing that could take it was mapped "
                        "there, and did not come again",
                        pid, applier.unplaced().ranges().front().start);
  return absl::OkStatus();
}

}  // namespace godwit::process
