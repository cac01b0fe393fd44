// The shim's event loop: clients of shim.sock, init, and the standard streams.
#ifndef GODWIT_CAPSULE_SHIM_SERVER_H_
#define GODWIT_CAPSULE_SHIM_SERVER_H_

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "capsule/capsule.pb.h"
#include "capsule/cgroup.h"
#include "capsule/paths.h"
#include "capsule/shim.pb.h"
#include "capsule/stdio_hub.h"
#include "pages/fault_service.h"

namespace godwit::capsule {

struct ServerParts {
  ServicePaths paths;
  CapsuleSpec spec;
  Cgroup cgroup{""};
  HostPid init_pid;
  UniqueFd init_pidfd;
  UniqueFd init_control;
  UniqueFd listener;
  UniqueFd creator;  // first client; a replica lives no longer than it
  bool replica = false;
};

class ShimServer {
 public:
  ShimServer(ServerParts parts, StdioHub stdio);
  // Ends only with the process.
  void run();

 private:
  struct Client {
    UniqueFd fd;
    bool owner = false;
    bool waits_for_exit = false;
    int32_t exec_pid = 0;
    bool gone = false;
  };
  struct Answer {
    InitReply reply;
    std::vector<UniqueFd> fds;
  };

  void accept();
  void serve(Client& client);
  absl::Status dispatch(Client& client, const ShimRequest& request, std::vector<UniqueFd> fds,
                        ShimReply& reply, std::vector<UniqueFd>& back, bool& answer_later);
  absl::Status start(ShimReply& reply);
  absl::Status exec(Client& client, const ExecSpec& program, const std::vector<UniqueFd>& fds,
                    ShimReply& reply, std::vector<UniqueFd>& back);
  absl::Status husk(const Husk& husk, const std::vector<UniqueFd>& fds, ShimReply& reply);
  absl::Status signal(const ShimRequest::Signal& signal);
  absl::Status set_main(int32_t image_pid);
  absl::Status adopt(Client& client);
  absl::Status give_stdio(ShimReply& reply, std::vector<UniqueFd>& back) const;
  absl::Status post_copy(bool all, std::vector<UniqueFd> fds);
  absl::Status connect_pages(const PageConnection& connection, std::vector<UniqueFd> fds);
  void describe_post_copy(CapsuleInfo& info) const;

  absl::StatusOr<Answer> call_init(const InitRequest& request, const std::vector<int>& fds);
  void take_events();
  void on_exit(const InitReply::Exit& exit);
  void on_init_exit();
  void kill_capsule(std::string reason);
  void drop_gone();
  void publish();
  static void send(Client& client, const ShimReply& reply, const std::vector<UniqueFd>& fds = {});
  absl::StatusOr<HostPid> host_pid(int32_t image_pid) const;

  ServerParts parts_;
  StdioHub stdio_;
  CapsuleInfo info_;
  UniqueFd main_pidfd_;
  std::vector<pages::FaultService::Space> lacking_;  // until all are told
  std::unique_ptr<pages::FaultService> faults_;
  std::deque<InitReply::Exit> exits_;
  std::vector<std::unique_ptr<Client>> clients_;
};

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_SHIM_SERVER_H_
