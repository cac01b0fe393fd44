// A migration as the two movers live it. docs/wire-protocol.md has the diagram.
#ifndef GODWIT_MIGRATION_SESSION_H_
#define GODWIT_MIGRATION_SESSION_H_

#include <functional>

#include "migration/daemon_link.h"
#include "migration/mover.pb.h"
#include "migration/workload.h"

namespace godwit::migration {

// Precheck, rounds, freeze, end mark, and then either the destination has it or it runs on here.
Finished run_source(const MoverStart& start, SourceWorkload& workload, DaemonLink& daemon);

// Listens, applies, asks for the commit, activates.
Finished run_destination(const MoverStart& start, ReplicaWorkload& workload, DaemonLink& daemon);

// Connects to the destination of a post-copy whose connections broke, and gives it the pages of a
// service that runs there and stands frozen here.
using ServePages =
    std::function<absl::Status(tls::Channel& faults, tls::Channel& push, const PagesTold& told)>;
Finished run_serve_pages(const MoverStart& start, const ServePages& serve, DaemonLink& daemon);

// The same stream with a file at its other end: one frozen epoch (after rounds, if it is to run
// on meanwhile), written beside the target's name and renamed when it is complete and synced.
Finished run_checkpoint(const MoverStart& start, SourceWorkload& workload, DaemonLink& daemon);
// With `later` the replica is activated before its pages are read, and gets them from here until
// the last one is there.
Finished run_restore(const MoverStart& start, ReplicaWorkload& workload, DaemonLink& daemon,
                     LaterPages* later);

Finished failed(Outcome outcome, const absl::Status& status);

// What the source's or the file's stream begins with.
stream::Preamble preamble_of(const MoverStart& start);

}  // namespace godwit::migration

#endif  // GODWIT_MIGRATION_SESSION_H_
