// Open file descriptions and descriptor tables of the husks.
#include <fcntl.h>
#include <sys/syscall.h>

#include <algorithm>

#include "base/fault_point.h"
#include "base/status.h"
#include "process/replica.h"
#include "process/replica_context.h"
#include "resource/fd_table/fd_table.h"
#include "resource/registry.h"

namespace godwit::process {
namespace {

// Descriptions are made in the registry's order of their kinds, then by id.
struct Wanted {
  const resource::FileKind* kind;
  uint64_t id;
  const std::string* state;
};

}  // namespace

absl::Status Replica::make_descriptions() {
  std::vector<Wanted> list;
  for (const resource::FileKind* kind : resource::file_kinds()) {
    const stream::SectionKey from{std::string(kind->name()), 0};
    for (auto at = sections_.lower_bound(from);
         at != sections_.end() && at->first.kind == kind->name(); ++at)
      list.push_back({kind, at->first.id, &at->second});
  }
  std::stable_sort(list.begin(), list.end(), [](const Wanted& a, const Wanted& b) {
    return a.kind == b.kind && a.kind->rank(*a.state) < b.kind->rank(*b.state);
  });
  for (auto at = descriptions_.begin(); at != descriptions_.end();) {
    const bool still = sections_.contains({at->second.kind, at->first});
    at = still ? std::next(at) : descriptions_.erase(at);
  }
  for (const Wanted& one : list) {
    if (!final_ && !one.kind->early()) continue;
    GW_RETURN_IF_ERROR(
        annotate(make_description(one.id, std::string(one.kind->name()), *one.state),
                 fmt::format("{} {}", one.kind->name(), one.kind->describe(*one.state))));
  }
  return absl::OkStatus();
}

absl::Status Replica::make_description(uint64_t id, const std::string& kind_name,
                                       const std::string& state) {
  FAULT_POINT("replica.make_description");
  const resource::FileKind* kind = resource::find_file_kind(kind_name);
  const auto found = descriptions_.find(id);
  if (found != descriptions_.end() && found->second.kind == kind_name) {
    Description& have = found->second;
    if (have.state == state && !final_) return absl::OkStatus();
    GW_ASSIGN_OR_RETURN(const bool updated,
                        kind->update(have.fd.get(), have.state, state, *context_));
    if (updated) {
      have.state = state;
      return absl::OkStatus();
    }
    descriptions_.erase(found);
  }
  GW_ASSIGN_OR_RETURN(UniqueFd fd, kind->create(id, state, *context_));
  descriptions_.insert_or_assign(id, Description{kind_name, state, std::move(fd), epoch_});
  return absl::OkStatus();
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
  for (const auto& entry : change.place)
    placements.push_back(
        {descriptions_.at(entry.description()).fd.get(), entry.fd(), entry.close_on_exec()});
  GW_RETURN_IF_ERROR(husk.place(channel_, std::move(placements)));
  husk.fd_table = std::move(possible);
  return absl::OkStatus();
}

absl::Status Replica::finish_descriptions() {
  // Each description once, in the first process that holds it.
  std::set<uint64_t> done;
  for (auto& [pid, husk] : husks_) {
    tracee::Batch batch;
    std::vector<resource::FileKind::Check> checks;
    for (const auto& entry : husk.fd_table.entries()) {
      if (!done.insert(entry.description()).second) continue;
      const Description& description = descriptions_.at(entry.description());
      const resource::FileKind* kind = resource::find_file_kind(description.kind);
      GW_ASSIGN_OR_RETURN(resource::FileKind::Check check,
                          kind->finish(description.fd.get(), description.state, husk.pid(),
                                       entry.fd(), batch, *context_));
      if (check) checks.push_back(std::move(check));
    }
    GW_RETURN_IF_ERROR(husk.run(batch));
    for (const auto& check : checks)
      GW_RETURN_IF_ERROR(annotate(check(batch), fmt::format("process {}", pid)));
  }
  context_->drop_stash();
  return absl::OkStatus();
}

}  // namespace godwit::process
