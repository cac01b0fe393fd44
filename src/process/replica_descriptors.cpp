// Open file descriptions and descriptor tables of the husks.
#include <fcntl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <thread>

#include "base/fault_point.h"
#include "base/status.h"
#include "process/replica.h"
#include "process/replica_context.h"
#include "resource/fd_table/fd_table.h"
#include "resource/file_locks/file_locks.h"
#include "resource/io_uring/io_uring.h"
#include "resource/registry.h"
#include "resource/signal_owner/signal_owner.h"

namespace godwit::process {
namespace {

// Waking another thread costs as much as some tens of descriptions.
constexpr size_t kWorthThreads = 64;

}  // namespace

struct Replica::WantedDescription {
  const resource::FileKind* kind;
  uint64_t id;
  int rank;
  const std::string* state;
};

// In the registry's order of their kinds, then by rank, then by id.
absl::Status Replica::make_descriptions() {
  std::vector<WantedDescription> list;
  size_t count = 0;
  for (const resource::FileKind* kind : resource::file_kinds()) {
    const auto first = static_cast<std::ptrdiff_t>(list.size());
    const stream::SectionKey from{std::string(kind->name()), 0};
    for (auto at = sections_.lower_bound(from);
         at != sections_.end() && at->first.kind == kind->name(); ++at) {
      ++count;
      if (!stands(*kind, at->first.id, at->second))
        list.push_back({kind, at->first.id, kind->rank(at->second), &at->second});
    }
    std::stable_sort(list.begin() + first, list.end(),
                     [](const auto& a, const auto& b) { return a.rank < b.rank; });
  }
  std::erase_if(descriptions_, [&](const auto& entry) {
    if (sections_.contains({entry.second.kind, entry.first})) return false;
    entry.second.of->retire(entry.second.fd.get());
    return true;
  });
  // Threads are made before the freeze, never in it.
  if (!final_ && !pool_ && count >= kWorthThreads) {
    constexpr size_t kThreads = 4;
    pool_ = std::make_unique<pages::WorkPool>(
        std::clamp<size_t>(std::thread::hardware_concurrency(), 1, kThreads));
    completer_ = std::make_unique<Background>();
  }
  if (!final_) std::erase_if(list, [](const auto& wanted) { return !wanted.kind->early(); });
  for (size_t at = 0; at < list.size();) {
    size_t end = at + 1;
    while (end < list.size() && list[end].kind == list[at].kind && list[end].rank == list[at].rank)
      ++end;
    GW_RETURN_IF_ERROR(make_some(std::span(list).subspan(at, end - at)));
    at = end;
  }
  return absl::OkStatus();
}

// Files and the like are looked at again in any case; a kind whose descriptions have nothing to do
// with each other has nothing but its state.
bool Replica::stands(const resource::FileKind& kind, uint64_t id, const std::string& state) const {
  if (final_ && !kind.concurrent()) return false;
  const auto found = descriptions_.find(id);
  return found != descriptions_.end() && found->second.of == &kind && found->second.state == state;
}

// Of one kind and rank: in no order among themselves.
absl::Status Replica::make_some(std::span<const WantedDescription> some) {
  struct Update {
    Description* have;
    const WantedDescription* wanted;
    absl::StatusOr<bool> done;
  };
  std::vector<Update> updates;
  std::vector<const WantedDescription*> anew;
  for (const WantedDescription& wanted : some) {
    FAULT_POINT("replica.make_description");
    const auto found = descriptions_.find(wanted.id);
    if (found == descriptions_.end() || found->second.kind != wanted.kind->name())
      anew.push_back(&wanted);
    else
      updates.push_back({&found->second, &wanted, false});
  }
  const auto update = [&](size_t i) {
    Update& one = updates[i];
    one.done = one.wanted->kind->update(one.have->fd.get(), one.have->state, *one.wanted->state,
                                        *context_);
  };
  if (some.front().kind->concurrent())
    run_all(updates.size(), update);
  else
    for (size_t i = 0; i < updates.size(); ++i) update(i);
  const auto describe = [](const WantedDescription& wanted) {
    return fmt::format("{} {}", wanted.kind->name(), wanted.kind->describe(*wanted.state));
  };
  for (Update& one : updates) {
    if (!one.done.ok()) return annotate(one.done.status(), describe(*one.wanted));
    if (*one.done) {
      one.have->state = *one.wanted->state;
      one.have->finishes = one.wanted->kind->finishes(one.have->state);
    } else {
      anew.push_back(one.wanted);
    }
  }
  for (const WantedDescription* wanted : anew) {
    const absl::Status made = make_description(*wanted);
    if (!made.ok()) return annotate(made, describe(*wanted));
  }
  return absl::OkStatus();
}

absl::Status Replica::make_description(const WantedDescription& wanted) {
  // What was there may hold an address that the new one needs.
  if (const auto before = descriptions_.find(wanted.id); before != descriptions_.end()) {
    before->second.of->retire(before->second.fd.get());
    descriptions_.erase(before);
  }
  GW_ASSIGN_OR_RETURN(UniqueFd fd, wanted.kind->create(wanted.id, *wanted.state, *context_));
  descriptions_.insert_or_assign(
      wanted.id, Description{std::string(wanted.kind->name()), *wanted.state, std::move(fd), epoch_,
                             wanted.kind, wanted.kind->finishes(*wanted.state)});
  return absl::OkStatus();
}

void Replica::run_all(size_t count, absl::FunctionRef<void(size_t)> item) {
  if (count < kWorthThreads || !pool_) {
    for (size_t i = 0; i < count; ++i) item(i);
    return;
  }
  pool_->run(count, [&](size_t, size_t i) { item(i); });
}

// Beside memory, descriptor tables and tasks, until complete_descriptions().
void Replica::start_completing() {
  const auto complete = [this]() -> absl::Status {
    for (const auto& [id, description] : descriptions_) {
      const resource::FileKind* kind = description.of;
      const absl::Status done = kind->complete(description.fd.get(), description.state, *context_);
      if (!done.ok())
        return annotate(done,
                        fmt::format("{} {}", kind->name(), kind->describe(description.state)));
    }
    return absl::OkStatus();
  };
  completed_ = absl::OkStatus();
  if (completer_)
    completer_->start(complete);
  else
    completed_ = complete();
}

absl::Status Replica::complete_descriptions() {
  GW_RETURN_IF_ERROR(completed_);
  return completer_ ? completer_->wait() : absl::OkStatus();
}

// The channel must not be where a program wants a descriptor: it goes above all of them.
absl::Status Replica::move_channel() {
  bool wanted_there = false;
  int highest = 0;
  for (const auto& [key, bytes] : sections_) {
    if (key.kind != "fd_table") continue;
    resource::FdTableState state;
    if (!state.ParseFromString(bytes))
      return make_error(absl::StatusCode::kDataLoss, "fd_table of process {} is not valid", key.id);
    for (const auto& entry : state.entries()) {
      wanted_there |= entry.fd() == channel_.husk_number;
      highest = std::max(highest, entry.fd());
    }
  }
  if (!wanted_there) return absl::OkStatus();
  for (auto& [pid, husk] : husks_) {
    tracee::Batch batch;
    batch.call(SYS_dup3, {channel_.husk_number, highest + 1, O_CLOEXEC}, true);
    batch.call(SYS_close, {channel_.husk_number}, true);
    GW_RETURN_IF_ERROR(husk.run(batch));
    GW_RETURN_IF_ERROR(annotate(batch.check_all(), fmt::format("process {}", pid)));
  }
  channel_.husk_number = highest + 1;
  return absl::OkStatus();
}

absl::Status Replica::fill_tables() {
  GW_RETURN_IF_ERROR(move_channel());
  for (auto& [pid, husk] : husks_)
    GW_RETURN_IF_ERROR(
        annotate(fill_table_of(husk), fmt::format("descriptors of process {}", pid)));
  return absl::OkStatus();
}

absl::Status Replica::fill_table_of(Husk& husk) {
  const std::string* bytes = wanted("fd_table", static_cast<uint64_t>(husk.pid().value));
  resource::FdTableState state;
  if (bytes != nullptr && table_stands(husk, *bytes)) return absl::OkStatus();
  // In a round: it ended after the tree had been read.
  if (bytes == nullptr && !final_) return absl::OkStatus();
  if (bytes == nullptr || !state.ParseFromString(*bytes))
    return make_error(absl::StatusCode::kDataLoss, "no valid fd_table section");
  resource::FdTableState possible;  // what refers to a description that is already made
  for (const auto& entry : state.entries()) {
    if (descriptions_.contains(entry.description()))
      *possible.add_entries() = entry;
    else if (final_)
      return make_error(absl::StatusCode::kDataLoss,
                        "descriptor {} refers to description {}, which "
                        "has no section",
                        entry.fd(), entry.description());
  }
  const resource::FdTableChange change = resource::compare_fd_tables(
      husk.fd_table, possible,
      [&](uint64_t id) { return descriptions_.at(id).made_in_epoch == epoch_; });
  tracee::Batch batch;
  for (const int fd : change.close) batch.call(SYS_close, {fd}, true);
  for (const auto& entry : change.set_flags)
    batch.call(SYS_fcntl, {entry.fd(), F_SETFD, entry.close_on_exec() ? FD_CLOEXEC : 0}, true);
  GW_RETURN_IF_ERROR(husk.run(batch));
  GW_RETURN_IF_ERROR(batch.check_all());
  std::vector<Placement> placements;
  std::vector<Placement> rings;
  for (const auto& entry : change.place) {
    const Description& description = descriptions_.at(entry.description());
    (description.of == &resource::io_uring_kind() ? rings : placements)
        .push_back({description.fd.get(), entry.fd(), entry.close_on_exec()});
  }
  GW_RETURN_IF_ERROR(husk.place(channel_, std::move(placements)));
  GW_RETURN_IF_ERROR(place_rings(husk, rings));
  *possible.mutable_locks() = state.locks();
  *possible.mutable_owners() = state.owners();
  husk.fd_table = std::move(possible);
  husk.fd_table_bytes =
      husk.fd_table.entries_size() == state.entries_size() ? *bytes : std::string();
  return absl::OkStatus();
}

// It has all of its entries, and none of them has been made anew since.
bool Replica::table_stands(const Husk& husk, const std::string& bytes) const {
  return !husk.fd_table_bytes.empty() && husk.fd_table_bytes == bytes &&
         std::none_of(descriptions_.begin(), descriptions_.end(),
                      [&](const auto& one) { return one.second.made_in_epoch == epoch_; });
}

// Its record locks, and each description once, in the first process that holds it: `done` has those
// that were.
absl::Status Replica::add_finish_calls(Restoring& one, std::set<uint64_t>& done) {
  for (const auto& entry : one.husk->fd_table.entries()) {
    const Description& description = descriptions_.at(entry.description());
    if (!description.finishes || !done.insert(entry.description()).second) continue;
    GW_ASSIGN_OR_RETURN(
        resource::FileKind::Check check,
        description.of->finish(description.fd.get(), description.state, one.husk->pid(), entry.fd(),
                               one.batches[0], *context_));
    if (check) one.checks.emplace_back(0, std::move(check));
  }
  for (const auto& owner : one.husk->fd_table.owners())
    one.checks.emplace_back(
        0, resource::add_signal_owner_calls(owner.owner(), owner.fd(), owner.owner().status_flags(),
                                            one.batches[0]));
  for (const auto& lock : one.husk->fd_table.locks())
    resource::add_process_lock_call(lock.fd(), lock.lock(), one.batches[0]);
  return absl::OkStatus();
}

// Those that no process has open (SCM_RIGHTS): the queues that hold them have them by now, or get
// them here.
absl::Status Replica::finish_under_way(const std::set<uint64_t>& finished) {
  for (const auto& [id, description] : descriptions_) {
    if (!description.finishes || finished.contains(id)) continue;
    tracee::Batch batch;
    GW_ASSIGN_OR_RETURN(
        const resource::FileKind::Check check,
        description.of->finish(description.fd.get(), description.state, {}, -1, batch, *context_));
    if (!batch.empty() || check)
      return make_error(absl::StatusCode::kFailedPrecondition,
                        "{} {} is under way in a unix socket, and needs a process that has it open",
                        description.kind, description.of->describe(description.state));
  }
  return absl::OkStatus();
}

}  // namespace godwit::process
