// Sections of an epoch: only those that differ from what the replica has.
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <thread>

#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "kernel/syscalls.h"
#include "process/source.h"
#include "process/source_context.h"
#include "resource/file_description.h"
#include "resource/memory_map/memory_map.h"
#include "resource/registry.h"
#include "resource/shared_object/shared_object.h"
#include "resource/tcp_socket/tcp_socket.pb.h"

namespace godwit::process {
namespace {

using resource::MappingState;

constexpr uint64_t kPage = 4096;

// smaps walks all page tables (40 ms per GiB of small pages have been seen), and nothing else tells
// that a program has advised or locked a whole mapping: while maps stay the same it is read again
// when this many times its cost have passed, so that no round is made of it.
constexpr int64_t kFlagsShare = 10;

bool same_mappings(std::span<const kernel::Mapping> a, std::span<const kernel::Mapping> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const kernel::Mapping& x, const kernel::Mapping& y) {
                      return x.start == y.start && x.end == y.end && x.read == y.read &&
                             x.write == y.write && x.execute == y.execute && x.shared == y.shared &&
                             x.offset == y.offset && x.dev == y.dev && x.inode == y.inode &&
                             x.path == y.path;
                    });
}

// The object itself: stat(2) of /proc/PID/map_files/START-END (proc(5)).
absl::StatusOr<resource::SharedObjectState> object_state(HostPid pid, const MappingState& mapping) {
  const std::string path =
      fmt::format("/proc/{}/map_files/{:x}-{:x}", pid.value, mapping.start(), mapping.end());
  struct stat stat {};
  if (::stat(path.c_str(), &stat) != 0) return errno_status(errno, fmt::format("stat({})", path));
  resource::SharedObjectState object;
  object.set_id(mapping.object());
  object.set_path(mapping.path());
  object.set_huge_page_bytes(mapping.huge_page_bytes());
  object.set_size(static_cast<uint64_t>(stat.st_size));
  if (mapping.kind() == MappingState::KIND_SHARED_OBJECT) return object;
  object.mutable_file()->set_mode(stat.st_mode & 07777U);
  object.mutable_file()->set_uid(stat.st_uid);
  object.mutable_file()->set_gid(stat.st_gid);
  return object;
}

}  // namespace

void Source::begin_sections(bool final) {
  final_ = final;
  ++pass_;
}

absl::Status Source::section(stream::Writer& writer, std::string kind, uint64_t id,
                             std::string state) {
  stream::SectionKey key{std::move(kind), id};
  Sent& sent = sent_[key];
  sent.seen = pass_;
  if (sent.state == state && !state.empty()) return absl::OkStatus();
  GW_RETURN_IF_ERROR(writer.section(key, state));
  sent.state = std::move(state);
  return absl::OkStatus();
}

// False: its state has never been sent.
bool Source::note_same(const resource::Descriptors::Description& one) {
  stream::SectionKey key{std::string(one.kind->name()), one.file.id};
  if (!sent_.contains(key)) return false;
  same_states_.push_back(std::move(key));
  return true;
}

absl::Status Source::end_sections(stream::Writer& writer) {
  for (auto at = sent_.begin(); at != sent_.end();) {
    if (at->second.seen == pass_) {
      ++at;
      continue;
    }
    GW_RETURN_IF_ERROR(writer.section_removed(at->first));
    sent_.erase(at++);
  }
  return absl::OkStatus();
}

absl::Status Source::tree_section(stream::Writer& writer) {
  for (const auto& [kind, state] : own_sections_)
    GW_RETURN_IF_ERROR(section(writer, kind, 0, state));
  return section(writer, "process_tree", 0, tree_.state.SerializeAsString());
}

absl::StatusOr<std::string> Source::read_maps_of(SourceProcess& process, bool with_flags) {
  process.maps_text.clear();
  GW_ASSIGN_OR_RETURN(std::string text,
                      kernel::read_file(fmt::format("/proc/{}/maps", process.host_pid.value)));
  GW_ASSIGN_OR_RETURN(process.maps, kernel::parse_maps(text));
  cut_out_area(process);
  if (!with_flags) return text;
  const bool fresh = monotonic_ns() - process.flags_read_ns < kFlagsShare * process.flags_cost_ns;
  if (fresh && same_mappings(process.maps, process.flagged)) {
    process.maps = process.flagged;
    return text;
  }
  const std::vector<kernel::Mapping> before = std::move(process.maps);
  GW_RETURN_IF_ERROR(read_flags_of(process));
  // There is no text of what changed between the two readings.
  if (!same_mappings(before, process.maps)) text.clear();
  return text;
}

absl::Status Source::read_flags_of(SourceProcess& process) {
  const int64_t begin = monotonic_ns();
  GW_ASSIGN_OR_RETURN(process.maps, kernel::read_smaps(process.host_pid));
  cut_out_area(process);
  process.flagged = process.maps;
  process.flags_read_ns = monotonic_ns();
  process.flags_cost_ns = process.flags_read_ns - begin;
  return absl::OkStatus();
}

absl::Status Source::read_flags_below(SourceProcess& process, uint64_t address) {
  std::vector<kernel::Mapping> maps = std::move(process.maps);
  GW_ASSIGN_OR_RETURN(process.maps, kernel::read_smaps_below(process.host_pid, address));
  cut_out_area(process);
  // It stands still: the same mappings as in maps, up to there.
  auto flagged = process.maps.begin();
  for (kernel::Mapping& mapping : maps) {
    while (flagged != process.maps.end() && flagged->start < mapping.start) ++flagged;
    if (flagged == process.maps.end()) break;
    if (flagged->start == mapping.start && flagged->end == mapping.end)
      mapping.vm_flags = std::move(flagged->vm_flags);
  }
  process.maps = std::move(maps);
  return absl::OkStatus();
}

void Source::cut_out_area(SourceProcess& process) {
  if (!process.area) return;
  const uint64_t at = process.area->address().value;
  const resource::AddressRange own{at, at + process.area->size()};
  if (const auto locks = resource::future_locks(own, process.maps)) process.future_locks = *locks;
  resource::leave_out(own, process.maps);
}

// Attached by somebody or not.
absl::Status Source::segment_sections(stream::Writer& writer) {
  for (resource::SharedObjectState& state : segments_) {
    bool mapped = false;
    for (const auto& [pid, process] : processes_)
      for (const MappingState& mapping : process.memory_map.mappings())
        if (mapping.object() == state.id()) {
          mapped = true;
          state.set_path(mapping.path());  // with the key that it was made with
          state.set_huge_page_bytes(mapping.huge_page_bytes());
          if ((mapping.flags() & resource::kMapNoReserve) != 0)
            state.mutable_segment()->set_no_reserve(true);
        }
    // No call tells it.
    if (!mapped) {
      const auto sender = sender_of_segment(state);
      if (!sender.ok() && !final_) continue;  // removed meanwhile
      GW_RETURN_IF_ERROR(sender.status());
      state.set_huge_page_bytes((*sender)->huge_page_bytes());
    }
    GW_RETURN_IF_ERROR(section(writer, "shared_object", state.id(), state.SerializeAsString()));
  }
  for (auto& [key, state] : ipc_states_)
    GW_RETURN_IF_ERROR(section(writer, key.kind, key.id, std::move(state)));
  ipc_states_.clear();
  return absl::OkStatus();
}

// The replica loses what it has of mappings that it unmaps or maps anew. They may have been scanned
// since they became what they are now: another mapping can be at the place of the one that maps
// have shown when a scan looks.
void Source::forget_replaced(SourceProcess& process) {
  if (!process.tracker || process.sent_map.mappings().empty()) return;
  pages::PageSet replaced;
  for (const auto& range : resource::replaced_ranges(process.sent_map, process.memory_map))
    replaced.add({range.start, range.end});
  process.tracker->forget(replaced);
}

absl::Status Source::memory_sections(stream::Writer& writer) {
  if (!final_) GW_RETURN_IF_ERROR(read_ipc());
  std::set<uint64_t> objects;
  for (auto& [pid, process] : processes_) {
    if (!final_) {
      const absl::Status read = [&]() -> absl::Status {
        GW_ASSIGN_OR_RETURN(std::string text, read_maps_of(process, true));
        uint64_t unknown = 0;
        GW_ASSIGN_OR_RETURN(
            process.memory_map,
            resource::capture_memory_map(process.host_pid, process.maps, nullptr, &unknown));
        process.memory_map.set_future_locks(process.future_locks);
        process.maps_text = std::move(text);
        // All of it was read of one program?
        return process.tracker && process.has_tracked_memory()
                   ? absl::OkStatus()
                   : errno_status(ESRCH, "the memory that is tracked");
      }();
      if (errno_of(read) != 0) {
        // Has just ended, or starts a program: the replica is not told of mappings, and gets no
        // pages for them.
        process.maps.clear();
        process.maps_text.clear();
        process.memory_map.Clear();
        continue;
      }
      GW_RETURN_IF_ERROR(read);
      forget_replaced(process);
      note_io_uring(process);
      process.sent_map = process.memory_map;
    }
    // The capture knows the end of the heap's last page only; a round the value as of the start.
    if (final_ || process.memory_map.brk() - process.brk < kPage)
      process.memory_map.set_brk(process.brk);
    process.memory_map.set_program(process.program);
    for (const MappingState& mapping : process.memory_map.mappings()) {
      if (mapping.object() == 0 || resource::is_segment(mapping.object()) ||
          !objects.insert(mapping.object()).second)
        continue;
      GW_ASSIGN_OR_RETURN(const resource::SharedObjectState object,
                          object_state(process.host_pid, mapping));
      GW_RETURN_IF_ERROR(
          section(writer, "shared_object", mapping.object(), object.SerializeAsString()));
    }
    GW_RETURN_IF_ERROR(section(writer, "memory_map", static_cast<uint64_t>(pid),
                               process.memory_map.SerializeAsString()));
  }
  for (auto& [key, state] : aio_states_)
    GW_RETURN_IF_ERROR(section(writer, key.kind, key.id, std::move(state)));
  aio_states_.clear();
  return segment_sections(writer);
}

// Waking the other threads costs as much as some tens of items.
void Source::run_all(size_t count, absl::FunctionRef<void(size_t)> item) {
  constexpr size_t kWorthThreads = 64;
  if (count < kWorthThreads || !pool_) {
    for (size_t i = 0; i < count; ++i) item(i);
    return;
  }
  pool_->run(count, [&](size_t, size_t i) { item(i); });
}

absl::Status Source::read_descriptors() {
  constexpr size_t kThreads = 4;
  if (!pool_ && !final_)
    pool_ = std::make_unique<pages::WorkPool>(
        std::clamp<size_t>(std::thread::hardware_concurrency(), 1, kThreads));
  if (!settler_ && !final_) settler_ = std::make_unique<Background>();
  if (file_views_) file_views_->forget();
  resource::Descriptors::Hints hints;
  hints.ranks = &file_ranks_;
  if (final_ && file_views_) {
    hints.views = file_views_.get();
    hints.known = &known_files_;
    hints.context = context_.get();
  }
  GW_ASSIGN_OR_RETURN(resource::Descriptors read, resource::Descriptors::read(holders(), hints));
  GW_RETURN_IF_ERROR(read.read_locks());
  if (final_) GW_RETURN_IF_ERROR(read.read_signal_owners(*context_));
  descriptors_ = std::make_unique<resource::Descriptors>(std::move(read));
  return final_ ? absl::OkStatus() : look_at_descriptors();
}

// In a round.
absl::Status Source::look_at_descriptors() {
  file_ranks_ = descriptors_->ranks();
  note_direct_io();
  GW_RETURN_IF_ERROR(descriptors_->look(
      [this](size_t count, absl::FunctionRef<void(size_t)> item) { run_all(count, item); }));
  // To make them ready takes some milliseconds.
  constexpr uint32_t kWorthViews = 128;
  const size_t most = descriptors_->largest_table();
  if (without_views_ || most < kWorthViews) return absl::OkStatus();
  if (!file_views_ || file_views_->capacity() < most) {
    // With room for what is opened until the freeze.
    auto views = resource::FileViews::open(static_cast<uint32_t>(std::bit_ceil(most + most / 4)));
    if (!views.ok()) {
      log_info("descriptors are read one by one: {}", message_of(views.status()));
      without_views_ = true;
      return absl::OkStatus();
    }
    file_views_ = *std::move(views);
  }
  // A view that fails is missing, no more.
  descriptors_->see(*file_views_).IgnoreError();
  return absl::OkStatus();
}

absl::Status Source::capture_descriptions() {
  file_states_.clear();
  same_states_.clear();
  counts_.connections = 0;
  if (final_ && settler_) {
    const absl::Status helped = descriptors_->settle(*context_, known_files_);
    GW_RETURN_IF_ERROR(settler_->wait());
    GW_RETURN_IF_ERROR(helped);
    spans_.mark("settle descriptions");
  }
  const auto& all = descriptors_->descriptions();
  if (final_) {
    // Killed in its stop (by a parent's end, prctl(2) PR_SET_PDEATHSIG, say): the next tree is
    // without it.
    for (const auto& [pid, process] : processes_)
      if (!descriptors_->tables().contains(process.pid))
        return make_error(absl::StatusCode::kUnavailable, "process {} ({}) has ended in the freeze",
                          pid, process.comm);
    GW_RETURN_IF_ERROR(take_what_is_not_seen());
    GW_RETURN_IF_ERROR(descriptors_->add_under_way());
  }
  std::vector<absl::StatusOr<std::string>> states(all.size(), std::string());
  std::vector<bool> sent(all.size());
  for (size_t i = 0; i < all.size(); ++i) sent[i] = all[i].same && note_same(all[i]);
  const auto wanted = [&](size_t i) {
    return all[i].kind != nullptr && (final_ || all[i].kind->early()) && !sent[i];
  };
  std::vector<size_t> together;
  for (size_t i = 0; i < all.size(); ++i) {
    if (!wanted(i)) continue;
    if (final_ && all[i].still)
      states[i] = *all[i].still;
    else if (all[i].kind->concurrent())
      together.push_back(i);
    else
      states[i] = all[i].kind->capture(all[i].file, *context_);
  }
  run_all(together.size(), [&](size_t i) {
    const auto& one = all[together[i]];
    if (!final_) descriptors_->settle_one(together[i], *context_, known_files_);
    states[together[i]] = one.kind->capture(one.file, *context_);
  });
  for (size_t i = 0; i < all.size(); ++i) {
    const resource::OpenFile& file = all[i].file;
    const auto where = [&] {
      return fmt::format("process {}, descriptor {} -> {}", file.tgid.value, file.remote_fd,
                         file.link);
    };
    if (final_ && all[i].kind == nullptr)
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "{}: this kind of descriptor is not known", where());
    if (all[i].kind != nullptr && all[i].kind->name() == "tcp_socket") ++counts_.connections;
    if (!wanted(i)) continue;
    if (!states[i].ok()) {
      // It may change under us while the program runs; only the last capture has to succeed.
      if (!final_) continue;
      return annotate(states[i].status(), where());
    }
    file_states_.push_back({{std::string(all[i].kind->name()), file.id}, *std::move(states[i])});
  }
  GW_RETURN_IF_ERROR(capture_terminals());
  return final_ ? capture_aio() : absl::OkStatus();
}

// The gate is closed: what is seen now stays.
absl::Status Source::take_what_is_not_seen() {
  const auto& all = descriptors_->descriptions();
  const auto untaken = [](const auto& one) { return !one.duplicate; };
  if (std::none_of(all.begin(), all.end(), untaken)) return absl::OkStatus();
  const bool seen = descriptors_->see(*file_views_).ok();
  for (size_t i = 0; i < all.size(); ++i)
    if (untaken(all[i]) && !(seen && all[i].kind->seen_whole(*all[i].file.view)))
      GW_RETURN_IF_ERROR(descriptors_->take(i));
  return absl::OkStatus();
}

absl::Status Source::clock_section(stream::Writer& writer) {
  resource::TcpClockState clock;
  clock.set_monotonic_ns(monotonic_ns());
  return section(writer, "tcp_clock", 0, clock.SerializeAsString());
}

absl::Status Source::descriptor_sections(stream::Writer& writer) {
  if (!final_) {
    GW_RETURN_IF_ERROR(read_descriptors());
    GW_RETURN_IF_ERROR(descriptors_->read_close_on_exec(holders()));
    GW_RETURN_IF_ERROR(capture_descriptions());
  }
  GW_RETURN_IF_ERROR(terminal_sections(writer));
  for (auto& [key, state] : file_states_)
    GW_RETURN_IF_ERROR(section(writer, key.kind, key.id, std::move(state)));
  for (const stream::SectionKey& key : same_states_) sent_.at(key).seen = pass_;
  file_states_.clear();
  same_states_.clear();
  counts_.descriptors = 0;
  for (const auto& [tgid, table] : descriptors_->tables()) {
    counts_.descriptors += static_cast<uint32_t>(table.entries_size());
    if (const auto process = processes_.find(tgid.value); process != processes_.end())
      process->second.fds = descriptors_->numbers(tgid);
    GW_RETURN_IF_ERROR(
        section(writer, "fd_table", static_cast<uint64_t>(tgid.value), table.SerializeAsString()));
  }
  if (final_) {
    if (counts_.connections > 0) GW_RETURN_IF_ERROR(clock_section(writer));
    return absl::OkStatus();
  }
  note_open_files();
  known_files_ = descriptors_->take_known();
  // A duplicate of ours would keep what the program closes open.
  descriptors_.reset();
  return absl::OkStatus();
}

absl::Status Source::task_sections(stream::Writer& writer) {
  for (auto& [key, state] : task_states_)
    GW_RETURN_IF_ERROR(section(writer, key.kind, key.id, std::move(state)));
  task_states_.clear();
  return absl::OkStatus();
}

}  // namespace godwit::process
