// Post-copy that goes on over a new connection.
#include <array>

#include "base/clock.h"
#include "base/fault_point.h"
#include "base/status.h"
#include "migration/peer.h"
#include "migration/session.h"

namespace godwit::migration {
namespace {

constexpr absl::Duration kConnectTimeout = absl::Seconds(5);

}  // namespace

Finished run_serve_pages(const MoverStart& start, const ServePages& serve, DaemonLink& daemon) {
  const int64_t begin = monotonic_ns();
  PageFigures figures;
  const absl::Status served = [&]() -> absl::Status {
    const Deadline deadline = Deadline::in(kConnectTimeout);
    GW_ASSIGN_OR_RETURN(const Terms terms, terms_of(start));
    std::array<ChannelPtr, 2> channels;
    for (size_t i = 0; i < channels.size(); ++i) {
      GW_ASSIGN_OR_RETURN(
          channels.at(i),
          connect_to_peer(start.peer_host(), static_cast<uint16_t>(start.peer_port()), terms,
                          i == 0 ? Purpose::kFaults : Purpose::kPush, deadline));
    }
    FAULT_POINT("source.serve_pages");
    return serve(*channels[0], *channels[1], [&](const PageFigures& now) {
      figures = now;
      Progress progress;
      progress.set_phase("post-copy");
      progress.set_pages_left(now.left);
      progress.set_reason(now.error);
      daemon.progress(progress);
    });
  }();
  Finished finished = failed(served.ok() ? OUTCOME_MOVED : OUTCOME_PAGES_HERE, served);
  Statistics& statistics = *finished.mutable_statistics();
  statistics.set_page_faults(figures.faults);
  statistics.set_bytes_wire(figures.bytes);
  statistics.set_pages_sent(figures.given);
  statistics.set_post_copy_ns(monotonic_ns() - begin);
  return finished;
}

}  // namespace godwit::migration
