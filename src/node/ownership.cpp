#include "node/ownership.h"

#include "base/status.h"
#include "node/services.h"

namespace godwit::node {
namespace {

// Records::update() until the store has answered. kNotFound and what `change` gives up with are
// answers.
absl::Status update_until_answered(const Records& records, const std::string& service,
                                   const std::function<absl::Status(api::ServiceRecord&)>& change,
                                   const AskAgain& again) {
  while (true) {
    bool gave_up = false;
    const absl::Status done = records
                                  .update(service,
                                          [&](api::ServiceRecord& record) {
                                            const absl::Status wanted = change(record);
                                            gave_up = !wanted.ok();
                                            return wanted;
                                          })
                                  .status();
    if (done.ok() || gave_up || absl::IsNotFound(done)) return done;
    if (!again(done)) return make_error(absl::StatusCode::kCancelled, "{}", message_of(done));
  }
}

}  // namespace

absl::Status commit_owner(const std::function<absl::Status()>& swap,
                          const std::function<absl::StatusOr<bool>()>& is_ours,
                          const AskAgain& again) {
  // Once an answer leaves open whether the change was made, only the revision can tell.
  bool unsure = false;
  while (true) {
    absl::Status answer = swap();
    if (answer.ok()) return answer;
    if (!unsure && store::nothing_changed(answer)) return answer;
    unsure = true;
    if (absl::IsAborted(answer)) {
      // Another revision, which is ours or the source's.
      const auto ours = is_ours();
      if (ours.ok()) return *ours ? absl::OkStatus() : answer;
      answer = ours.status();
    }
    if (!again(answer)) return make_error(absl::StatusCode::kUnknown, "{}", message_of(answer));
  }
}

absl::StatusOr<std::string> settle_owner_at_source(const Records& records, const std::string& self,
                                                   const api::MigrationJournal& entry,
                                                   const AskAgain& again) {
  std::string owner;
  bool settled = false;
  const absl::Status answered = update_until_answered(
      records, entry.service(),
      [&](api::ServiceRecord& record) -> absl::Status {
        owner = record.owner();
        const bool marked = record.migration_id() == entry.id();
        if (!entry.capsule().empty() && owner == self && capsule_in(record) != entry.capsule()) {
          owner = std::string(1, kReplacedHere[0]);  // g++ 12 warns of a plain assignment
          settled = true;
          return absl::CancelledError("settled");
        }
        settled = owner != self || (!marked && entry.side() != api::MigrationJournal::SOURCE);
        if (settled) return absl::CancelledError("settled");
        record.set_generation(record.generation() + 1);
        // Without the mark: it was settled before, or our own change to SERVICE_MIGRATING is still
        // on its way.
        if (!marked) return absl::OkStatus();
        record.set_state(api::SERVICE_RUNNING);
        record.clear_migration_id();
        record.clear_destination();
        return absl::OkStatus();
      },
      again);
  if (answered.ok() || (settled && absl::IsCancelled(answered))) return owner;
  return answered;
}

absl::StatusOr<bool> settle_owner_at_destination(const Records& records, const std::string& self,
                                                 const api::MigrationJournal& entry,
                                                 const AskAgain& again) {
  bool ours = false;
  bool settled = false;
  const absl::Status answered = update_until_answered(
      records, entry.service(),
      [&](api::ServiceRecord& record) -> absl::Status {
        const bool owned = record.owner() == self;
        ours = owned && record.last_migration().id() == entry.id();
        // In place it is owned before the commit, too.
        settled = (owned && entry.capsule().empty()) || record.migration_id() != entry.id();
        if (settled) return absl::CancelledError("settled");
        // All else is the source's to change.
        record.set_generation(record.generation() + 1);
        return absl::OkStatus();
      },
      again);
  if (absl::IsNotFound(answered)) return false;
  if (answered.ok() || (settled && absl::IsCancelled(answered))) return ours;
  return answered;
}

absl::Status record_figures(const Records& records, const std::string& service,
                            const api::MigrationStatistics& statistics) {
  bool moved_on = false;
  const absl::Status recorded = records
                                    .update(service,
                                            [&](api::ServiceRecord& record) {
                                              moved_on =
                                                  record.last_migration().id() != statistics.id() ||
                                                  record.state() == api::SERVICE_MIGRATING;
                                              if (moved_on) return absl::CancelledError("moved on");
                                              *record.mutable_last_migration() = statistics;
                                              return absl::OkStatus();
                                            })
                                    .status();
  return moved_on ? absl::OkStatus() : recorded;
}

}  // namespace godwit::node
