// A service in a folder of its own for one test, and proof that nothing of it is left.
#ifndef GODWIT_CAPSULE_TEST_SERVICE_H_
#define GODWIT_CAPSULE_TEST_SERVICE_H_

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/status.h"
#include "capsule/capsule.h"
#include "capsule/log_file.h"
#include "kernel/syscalls.h"

namespace godwit::capsule {

#define ASSERT_STATUS_OK(expr)                                      \
  do {                                                              \
    const absl::Status gw_test_status = (expr);                     \
    ASSERT_TRUE(gw_test_status.ok()) << message_of(gw_test_status); \
  } while (false)

inline Deadline soon() { return Deadline::in(absl::Seconds(20)); }

class TestService {
 public:
  TestService() {
    char dir[] = "/tmp/godwit-capsule-XXXXXX";
    node_.state_dir = ::mkdtemp(dir);
    node_.node = "test" + node_.state_dir.substr(node_.state_dir.size() - 6);
    options_.shim_command = {std::filesystem::read_symlink("/proc/self/exe").parent_path() /
                             "capsule_shim"};
    spec_.set_name("svc");
  }
  ~TestService() {
    EXPECT_TRUE(destroy().ok());
    const auto cgroup = service_cgroup(node_.node, "svc");
    EXPECT_TRUE(cgroup.ok() && !cgroup->exists());
    EXPECT_FALSE(std::filesystem::exists(node_.service("svc").dir));
    const auto mounts = kernel::read_file("/proc/self/mountinfo");
    EXPECT_TRUE(mounts.ok() && mounts->find(node_.state_dir) == std::string::npos);
    if (cgroup.ok()) ::rmdir(std::filesystem::path(cgroup->path()).parent_path().c_str());
    std::filesystem::remove_all(node_.state_dir);
  }
  TestService(const TestService&) = delete;
  TestService& operator=(const TestService&) = delete;

  absl::Status destroy() { return Capsule::destroy(node_, "svc", soon()); }
  absl::StatusOr<Capsule> create() { return Capsule::create(node_, spec_, options_); }
  absl::StatusOr<Capsule> open() { return Capsule::open(node_, "svc"); }
  absl::StatusOr<Capsule> run(const std::vector<std::string>& argv) {
    spec_.clear_argv();
    for (const std::string& word : argv) spec_.add_argv(word);
    GW_ASSIGN_OR_RETURN(Capsule capsule, create());
    GW_RETURN_IF_ERROR(capsule.start().status());
    return capsule;
  }
  absl::StatusOr<Capsule> sh(const std::string& script) { return run({"sh", "-c", script}); }
  // Runs a script to its end: what the main process wrote to stdout.
  absl::StatusOr<std::string> output_of(const std::string& script) {
    GW_ASSIGN_OR_RETURN(Capsule capsule, sh(script));
    GW_RETURN_IF_ERROR(capsule.wait_exit(soon()).status());
    GW_ASSIGN_OR_RETURN(std::string text, log(1));
    GW_RETURN_IF_ERROR(destroy());
    return text;
  }
  absl::StatusOr<std::string> log(int stream) {
    std::vector<LogLine> lines;
    GW_RETURN_IF_ERROR(read_log(node_.service("svc").log(), 0, lines).status());
    std::string text;
    for (const LogLine& line : lines) {
      if (line.stream == stream) text += line.text + (line.ended ? "\n" : "");
    }
    return text;
  }
  // Waits until the log has `text` on stdout: the service's way to say that it got there.
  absl::Status await_log(std::string_view text) {
    const Deadline deadline = soon();
    while (!deadline.passed()) {
      GW_ASSIGN_OR_RETURN(const std::string have, log(1));
      if (have.find(text) != std::string::npos) return absl::OkStatus();
      ::usleep(2000);
    }
    return absl::DeadlineExceededError("not in the log in time");
  }

  CapsuleSpec& spec() { return spec_; }
  CreateOptions& options() { return options_; }
  const NodePaths& node() const { return node_; }

 private:
  NodePaths node_;
  CapsuleSpec spec_;
  CreateOptions options_;
};

}  // namespace godwit::capsule

#endif  // GODWIT_CAPSULE_TEST_SERVICE_H_
