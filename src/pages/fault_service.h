// The destination's end of post-copy: a program that runs before all of its pages are there. A
// touch of one that is missing stops the thread that touches it (userfaultfd(2)) until the page has
// come; what nobody touches comes by itself. While the source cannot be reached only those threads
// wait that touch what is missing.
//
// Runs as a thread of the capsule's shim: what the kernel tells only once (that the program has
// unmapped, moved or forked memory) is never lost with a process that may die alone.
#ifndef GODWIT_PAGES_FAULT_SERVICE_H_
#define GODWIT_PAGES_FAULT_SERVICE_H_

#include <linux/userfaultfd.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "pages/missing_pages.h"
#include "pages/missing_space.h"
#include "pages/page_set.h"
#include "pages/page_wire.h"
#include "tls/channel.h"

namespace godwit::pages {

// `uffd`: of a process that is stopped, UFFDIO_API not yet called; not one for user mode only, for
// system calls touch memory too. kUnimplemented: this kernel cannot.
absl::Status enable_missing(int uffd);
// A whole anonymous mapping: what is not there is asked for. No copy of its pages may be written
// from outside from here on but by the service.
absl::Status register_missing(int uffd, PageRange mapping);

class FaultService {
 public:
  struct Space {
    MissingSpace pages;
    UniqueFd uffd;
  };
  struct State {
    uint64_t missing = 0;  // pages
    bool connected = false;
    bool done = false;  // everything is there, and nothing of ours is in the program any more
    uint64_t faults = 0;
    uint64_t poisoned = 0;  // pages
    std::string error;      // of the last connection
  };

  static absl::StatusOr<std::unique_ptr<FaultService>> start(std::vector<Space> spaces);
  ~FaultService();
  FaultService(const FaultService&) = delete;
  FaultService& operator=(const FaultService&) = delete;

  // A connection to the source; takes the place of one before. Broken when nothing is heard for
  // `patience`.
  struct Connection {
    std::shared_ptr<tls::Channel> faults;
    std::shared_ptr<tls::Channel> push;
    absl::Duration patience;
  };
  // From any thread.
  void connect(Connection connection);
  // The source is lost for good: a touch of what is missing ends in SIGBUS.
  void poison();
  State state() const;

 private:
  struct Memory {
    HostPid pid;
    UniqueFd uffd;
  };
  struct Incoming {
    std::vector<std::byte> bytes;
    size_t from = 0;
    size_t filled = 0;
  };
  FaultService() = default;
  void run();
  void take_orders();
  void take_events(uint64_t space);
  void on_fault(uint64_t space, uint64_t address);
  void on_fork(uint64_t parent, int uffd);
  void removed(uint64_t space, PageRange range);
  void remove_dead(uint64_t space);
  void fill_zeros(uint64_t space, PageRange range);
  void request(SourcePage page);
  // By value: what it finds may end the connection.
  absl::Status receive(std::shared_ptr<tls::Channel> from, Incoming& in);
  // `proven`: by the connection.
  absl::Status understand(Incoming& in, bool proven);
  absl::Status place(const PageHeader& header, const std::byte* data);
  void put(uint64_t space, PageRange range, const std::byte* data);
  absl::Status send(std::span<const PageHeader> headers);
  absl::Status send(PageMessage type, uint64_t space, uint64_t address, uint32_t count);
  absl::Status send_list();
  void disconnect(const absl::Status& why);
  void poison_missing();
  void let_go();
  void publish();

  MissingPages missing_;  // the service's thread only, as what follows
  std::map<uint64_t, Memory> memories_;
  std::set<uint64_t> dead_;
  std::set<SourcePage> asked_;  // and not come yet
  uint64_t next_child_ = uint64_t{1} << 32;
  UniqueFd epoll_;
  Connection source_;  // both channels, or none
  Incoming from_faults_;
  Incoming from_push_;
  int64_t heard_at_ns_ = 0;
  uint64_t fault_count_ = 0;
  uint64_t poisoned_ = 0;

  UniqueFd wake_;  // eventfd
  mutable std::mutex mutex_;
  Connection new_source_;
  bool poison_ordered_ = false;
  bool ending_ = false;
  State state_;
  std::thread thread_;
};

}  // namespace godwit::pages

#endif  // GODWIT_PAGES_FAULT_SERVICE_H_
