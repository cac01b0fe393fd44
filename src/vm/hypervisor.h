// One node's libvirt daemon: its domains, what happens to them, and a domain's migration. Any
// thread; each call connects anew when the daemon has been started again. Calls block for as long
// as libvirt does, which keep-alive messages bound when it hangs.
#ifndef GODWIT_VM_HYPERVISOR_H_
#define GODWIT_VM_HYPERVISOR_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "vm/domain.h"

namespace godwit::vm {

// What a domain has just gone through (virDomainEventType).
enum class Happened {
  kInvalid,
  kStarted,
  kStoppedForSwitchover,  // SUSPENDED, MIGRATED: as the source of a migration
  kPaused,                // SUSPENDED, other reasons; of an incoming migration: all has arrived
  kResumed,
  kStopped,
  kGone,  // the connection to libvirt broke: ask
};

struct JobFigures {
  bool active = false;
  uint64_t memory_total = 0;
  uint64_t memory_left = 0;
  uint64_t memory_sent = 0;  // as QEMU counts it
  uint64_t bytes_per_s = 0;
  uint64_t dirty_bytes_per_s = 0;  // known from the second pass on
  uint64_t rounds = 0;
  uint64_t disk_total = 0;
  uint64_t disk_left = 0;
};

struct MemoryFigures {
  // As the hypervisor itself says, without what its balloon has taken. 0: it has no balloon to
  // tell.
  uint64_t ram_bytes = 0;
  uint64_t resident_bytes = 0;  // of its process; 0: not known
};

struct DiskSize {
  uint64_t bytes = 0;      // as the guest sees it
  uint64_t allocated = 0;  // on the node's storage
};

struct MigrationParameters {
  std::string control_uri;  // of libvirt at the destination
  std::string memory_uri;
  std::string disks_uri;
  bool live = true;  // else it is paused from the beginning
  bool persistent = true;
  std::vector<std::string> copied_disks;  // targets; all others are the same at both ends
  // It may be turned to post-copy; then libvirt lets it run at the destination itself (see
  // RpcGate), and it is not left paused.
  bool post_copy = false;
  // Limit of what follows then and nobody waits for; 0: none. QEMU's, for nobody else can tell it
  // from what is waited for.
  uint64_t post_copy_bytes_per_s = 0;
};

class Hypervisor {
 public:
  // `socket`: of libvirt's daemon. Does not connect yet. kUnimplemented: no libvirt here, or
  // Godwit was built without.
  static absl::StatusOr<std::shared_ptr<Hypervisor>> open(const std::string& socket);
  virtual ~Hypervisor() = default;

  static std::string uri_of(const std::string& socket);
  // libvirt's socket if nobody says where it is: the monolithic daemon's, or virtqemud's.
  static std::string default_socket();

  // kNotFound.
  virtual absl::StatusOr<std::string> uuid_of(const std::string& name) = 0;
  virtual absl::StatusOr<DomainState> state(const std::string& uuid) = 0;
  // `migratable`: as another node has to define it.
  virtual absl::StatusOr<std::string> xml(const std::string& uuid, bool migratable) = 0;
  virtual absl::StatusOr<bool> persistent(const std::string& uuid) = 0;
  virtual absl::StatusOr<MemoryFigures> memory(const std::string& uuid) = 0;
  // Bytes a second that a running domain writes first, by samples of its pages; takes a second.
  virtual absl::StatusOr<uint64_t> measure_writes(const std::string& uuid) = 0;
  virtual absl::StatusOr<int> snapshots(const std::string& uuid) = 0;

  // Returns the uuid. An existing domain of that name and uuid gets the new definition.
  virtual absl::StatusOr<std::string> define(const std::string& xml) = 0;
  virtual absl::Status start(const std::string& uuid) = 0;        // fine when it runs
  virtual absl::Status press_power(const std::string& uuid) = 0;  // ACPI
  virtual absl::Status destroy(const std::string& uuid) = 0;   // fine when it does not run or exist
  virtual absl::Status undefine(const std::string& uuid) = 0;  // fine when there is none
  virtual absl::Status resume(const std::string& uuid) = 0;    // fine when it runs

  virtual absl::StatusOr<JobFigures> job(const std::string& uuid) = 0;
  virtual absl::Status abort_job(const std::string& uuid) = 0;
  virtual absl::Status set_most_downtime(const std::string& uuid, int64_t ns) = 0;
  // OK: this library can.
  virtual absl::Status post_copy_possible() = 0;
  // The guest stops here; what the destination lacks follows when it asks for it.
  virtual absl::Status start_post_copy(const std::string& uuid) = 0;
  // Whether memory of it is elsewhere, or wanted elsewhere. kNotFound.
  virtual absl::StatusOr<bool> in_post_copy(const std::string& uuid) = 0;
  // What a migration that copied disks may have left in QEMU when libvirt's daemon died in it: the
  // next one would find its names taken.
  virtual void drop_mirrors(const std::string& uuid, const std::vector<Disk>& disks) = 0;
  // Of a domain in post-copy that has not run at the destination, and never will: it runs on here.
  // QEMU's connection to the other node may have broken, and the one of libvirt's client. Again
  // after an error.
  virtual absl::Status come_back(const std::string& uuid) = 0;

  virtual absl::StatusOr<HypervisorCapabilities> capabilities(const DomainSpec& domain) = 0;
  // Whether this node's CPU under that hypervisor can be the one that `cpu_xml` describes.
  virtual absl::StatusOr<bool> cpu_fits(const DomainSpec& domain) = 0;

  virtual absl::StatusOr<DiskSize> disk_size(const std::string& uuid,
                                             const std::string& target) = 0;
  // Files of machines' disks, by the paths that libvirt sees, which may have a mount namespace of
  // its own.
  //
  // Free bytes where `path` is, or would be. kNotFound: its folder is missing.
  virtual absl::StatusOr<uint64_t> room_for(const std::string& path) = 0;
  virtual absl::StatusOr<bool> disk_exists(const std::string& path) = 0;
  // Empty and sparse. kAlreadyExists. `format`: qcow2, raw.
  virtual absl::Status create_disk(const std::string& path, const std::string& format,
                                   uint64_t bytes) = 0;
  virtual absl::Status remove_disk(const std::string& path) = 0;  // fine when there is none

  // Blocks. Over `own_socket` instead of this object's connection: closing that one makes libvirt
  // give up what its client has begun, or, once all memory has gone, leave the domain paused. The
  // domain is left paused at the destination.
  virtual absl::Status migrate(const std::string& own_socket, const std::string& uuid,
                               const MigrationParameters& parameters) = 0;

  // `on_event` is called by libvirt's thread and must not block. Ends with what is returned.
  using OnEvent = std::function<void(Happened)>;
  class Subscription {
   public:
    virtual ~Subscription() = default;
  };
  virtual absl::StatusOr<std::unique_ptr<Subscription>> watch(const std::string& uuid,
                                                              OnEvent on_event) = 0;

  // The serial console: `output` is called with what the guest writes; write() types. Null output
  // data: it has ended.
  class Console {
   public:
    virtual ~Console() = default;
    virtual absl::Status write(std::string_view bytes) = 0;
    // Blocks. Empty: the end.
    virtual absl::StatusOr<std::string> read() = 0;
    virtual void close() = 0;
  };
  virtual absl::StatusOr<std::shared_ptr<Console>> console(const std::string& uuid) = 0;
};

}  // namespace godwit::vm

#endif  // GODWIT_VM_HYPERVISOR_H_
