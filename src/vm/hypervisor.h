// One node's libvirt daemon: its domains, what happens to them, and a domain's migration. Any
// thread; each call connects anew when the daemon has been started again. Calls block for as long
// as libvirt does, which keep-alive messages bound when it hangs.
#ifndef GODWIT_VM_HYPERVISOR_H_
#define GODWIT_VM_HYPERVISOR_H_

#include <functional>
#include <memory>
#include <span>
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

// A domain's memory and devices on their way into a descriptor.
struct MemorySending {
  enum class State { kInvalid, kGoing, kDone, kFailed };
  State state = State::kInvalid;
  uint64_t total = 0;
  uint64_t left = 0;
  bool pages_go = false;  // what comes before them is sent
  std::string error;
};

// A disk whose writes go to a file of their own, on top of what it was.
struct DivertedDisk {
  std::string target;
  std::string overlay;
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

  // What a checkpoint is made of. QEMU's monitor is asked where libvirt has no call; libvirt then
  // says that the domain is "tainted".
  //
  // As it is started next time. Of a transient domain: what xml() says.
  virtual absl::StatusOr<std::string> definition(const std::string& uuid) = 0;
  virtual absl::Status pause(const std::string& uuid) = 0;  // fine when it is
  // Memory that is sent from here on is that of one moment: the domain stops for it, and is let run
  // by QEMU while its memory goes out. An error says what keeps QEMU from it. Of a process, and
  // kept until it is taken back.
  virtual absl::Status set_background(const std::string& uuid, bool on) = 0;
  // QEMU is given a copy of `fd`, the writing end of a pipe, and told to write to it.
  virtual absl::Status prepare_sending(const std::string& uuid, int fd) = 0;
  virtual absl::Status begin_sending(const std::string& uuid) = 0;
  virtual absl::StatusOr<MemorySending> memory_sending(const std::string& uuid) = 0;
  // Returns when QEMU sends none any more, and takes set_background() back. Somebody reads all that
  // it has begun to send: it has no way back from a background snapshot. kNotFound.
  virtual absl::Status end_sending(const std::string& uuid) = 0;
  // All at one moment. What the disks were is not written to any more.
  virtual absl::Status divert_disks(const std::string& uuid,
                                    const std::vector<DivertedDisk>& disks) = 0;
  // Brings what was written meanwhile into the disk, which is as it was then; the overlay is left.
  // The domain runs, or is paused. Blocks; done again after it was interrupted.
  virtual absl::Status merge_disk(const std::string& uuid, const std::string& target) = 0;
  virtual absl::Status start_paused(const std::string& uuid) = 0;
  // `path`: what libvirt has saved, or looks like it (SavedDomain). The domain is left paused.
  virtual absl::Status load(const std::string& path) = 0;
  // Whether QEMU has all that load() was to bring: it goes on for a while.
  virtual absl::StatusOr<bool> loaded(const std::string& uuid) = 0;
  // Pulls the cables of its network cards; virsh domif-setlink plugs them in.
  virtual absl::Status unplug(const std::string& uuid) = 0;
  virtual absl::Status create_overlay(const std::string& path, const std::string& base,
                                      const std::string& base_format, uint64_t bytes) = 0;
  // The file itself, whatever its format.
  virtual absl::StatusOr<uint64_t> file_bytes(const std::string& path) = 0;
  // `take` is given all that is no hole, in order; its error ends it.
  using TakeBytes = std::function<absl::Status(uint64_t offset, std::span<const std::byte> bytes)>;
  virtual absl::Status read_file(const std::string& path, const TakeBytes& take) = 0;
  // Into a file that is there. In order; what is left out becomes holes. Without finish() it is not
  // known what is in it.
  class FileWriter {
   public:
    virtual ~FileWriter() = default;
    virtual absl::Status write(uint64_t offset, std::span<const std::byte> bytes) = 0;
    virtual absl::Status finish(uint64_t file_bytes) = 0;
  };
  virtual absl::StatusOr<std::unique_ptr<FileWriter>> write_file(const std::string& path) = 0;

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
