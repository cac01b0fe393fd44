// A service as the source of a migration: its capsule, its port, its file layer and its processes
// behind migration's interface.
#ifndef GODWIT_NODE_WORKLOAD_SOURCE_H_
#define GODWIT_NODE_WORKLOAD_SOURCE_H_

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "capsule/capsule.h"
#include "capsule/cpu_limit.h"
#include "capsule/enter.h"
#include "capsule/file_layer.h"
#include "capsule/file_offers.h"
#include "migration/workload.h"
#include "network/option_watch.h"
#include "node/service_port.h"
#include "process/source.h"

namespace godwit::node {

class ServiceSource final : public migration::SourceWorkload {
 public:
  // Opens what the daemon of this node made. `bandwidth_file`: what the node's migrations share its
  // bandwidth by; "": it has no limit.
  static absl::StatusOr<std::unique_ptr<ServiceSource>> open(const capsule::NodePaths& node,
                                                             const std::string& service,
                                                             uint64_t bytes_per_s,
                                                             const std::string& bandwidth_file);
  // Called by prepare() with the descriptor whose copy keeps held frames over our death.
  void on_hold(std::function<void(int)> told) { on_hold_ = std::move(told); }

  void on_userfaultfd(std::function<void(HostPid, int)> told) { on_uffd_ = std::move(told); }

  // The spec goes into the stream, as read_capsule_spec() (restore.h) wants it: a file has no
  // record in the store beside it.
  void carry_spec();

  // So does the content of every file in use below the layer.
  void carry_all_files() { all_files_ = true; }

  void compress_pages(pages::Compress compress) { source_->control().compression().set(compress); }

  // Every page is to be compared with the replica's.
  void verify_pages() { source_->verify_pages(); }
  void replica_keeps_programs() { source_->replica_keeps_programs(); }

  // Before precheck(), which refuses where its CPU time cannot be limited.
  void may_throttle() { may_throttle_ = true; }
  absl::Status precheck(std::vector<migration::Reason>& reasons) override;
  // After precheck(): states of sections "file", of what it has open or mapped below its layer.
  absl::StatusOr<std::vector<std::string>> used_files();
  absl::StatusOr<migration::Estimate> estimate() override;
  void on_question(std::function<absl::StatusOr<migration::WantedFiles>()> answer) override {
    answer_ = std::move(answer);
  }
  absl::Status throttle(uint32_t percent) override;
  absl::Status prepare() override;
  absl::StatusOr<migration::RoundFigures> round(stream::Writer& writer) override;
  absl::StatusOr<migration::RoundFigures> leave_behind(stream::Writer& writer) override;
  absl::Status begin_last_epoch(stream::Writer& writer) override {
    return source_->begin_last_epoch(writer);
  }
  absl::Status freeze() override;
  absl::Status final_state(stream::Writer& writer) override;
  absl::StatusOr<migration::RoundFigures> final_pages(stream::Writer& writer) override;
  absl::StatusOr<std::vector<std::string>> take_held_frames() override;
  void rest() override { source_->rest(); }
  int held_frames_fd() const override { return port_->port.hold_fd(); }
  absl::Status thaw() override;
  absl::Status withdraw() override;
  absl::Status commit() override;
  void finish() override { source_->finish(); }
  absl::Status serve_pages(tls::Channel& faults, tls::Channel& push,
                           const migration::PagesTold& told) override;
  void leave_frozen() override { source_->finish(); }
  void interrupt() override { source_->control().cancel(); }
  void describe(migration::Statistics& statistics) override;

 private:
  explicit ServiceSource(capsule::Capsule capsule)
      : capsule_(std::move(capsule)), layer_(capsule_.paths()) {}
  absl::Status find_cpu_limit(std::vector<migration::Reason>& reasons);
  absl::Status lift_throttle();
  absl::Status release();
  absl::Status watch_options();
  bool options_changed(uint64_t netns, uint16_t local_port, uint16_t remote_port);
  absl::StatusOr<migration::RoundFigures> one_round(stream::Writer& writer, bool leave_behind);
  absl::Status send_neighbours(stream::Writer& writer);
  absl::Status send_layer(stream::Writer& writer, bool frozen);
  absl::Status send_files(stream::Writer& writer, bool frozen);

  capsule::Capsule capsule_;
  capsule::StdioEnds stdio_;
  bool announces_ = false;   // the port can: before that nothing has been stopped
  bool input_held_ = false;  // what users send stays with them
  capsule::LayerSource layer_;
  std::optional<capsule::FileOffers> files_;
  std::function<absl::StatusOr<migration::WantedFiles>()> answer_;
  bool all_files_ = false;
  std::string neighbours_;  // as told last
  bool may_throttle_ = false;
  std::string limit_name_;
  std::optional<capsule::CpuLimit> cpu_limit_;  // may_throttle()
  double cpus_ = 0;                             // that it used, unlimited
  int64_t round_began_ns_ = 0;
  int64_t used_then_ns_ = 0;
  std::unique_ptr<capsule::CapsuleThread> thread_;
  std::optional<OpenedPort> port_;
  std::unique_ptr<network::OptionWatch> options_;
  enum class Defaults { kUnknown, kSame, kChanged };
  std::atomic<Defaults> defaults_ =
      Defaults::kUnknown;  // of socket options, in this round or freeze
  std::unique_ptr<process::Source> source_;
  uint64_t bytes_per_s_ = 0;
  std::string bandwidth_file_;
  uint64_t memory_bytes_ = 0;   // by estimate()
  pages::PageClasses classes_;  // of the last round
  std::function<void(int)> on_hold_ = [](int) {};
  std::function<void(HostPid, int)> on_uffd_ = [](HostPid, int) {};
  network::Frames
      taken_;  // given away since the freeze began: after a rollback they are ours again
};

}  // namespace godwit::node

#endif  // GODWIT_NODE_WORKLOAD_SOURCE_H_
