// Hypervisor over libvirt's C API.
#ifndef GODWIT_VM_LIBVIRT_HYPERVISOR_H_
#define GODWIT_VM_LIBVIRT_HYPERVISOR_H_

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/functional/function_ref.h"
#include "base/unique_fd.h"
#include "vm/hypervisor.h"
#include "vm/libvirt.h"

namespace godwit::vm {

class Connection;

class LibvirtHypervisor final : public Hypervisor {
 public:
  LibvirtHypervisor(const Libvirt& api, std::string socket)
      : api_(api), socket_(std::move(socket)) {}
  ~LibvirtHypervisor() override;

  absl::StatusOr<std::string> uuid_of(const std::string& name) override;
  absl::StatusOr<DomainState> state(const std::string& uuid) override;
  absl::StatusOr<std::string> xml(const std::string& uuid, bool migratable) override;
  absl::StatusOr<bool> persistent(const std::string& uuid) override;
  absl::StatusOr<MemoryFigures> memory(const std::string& uuid) override;
  absl::StatusOr<uint64_t> measure_writes(const std::string& uuid) override;
  absl::StatusOr<int> snapshots(const std::string& uuid) override;
  absl::StatusOr<std::string> define(const std::string& xml) override;
  absl::Status start(const std::string& uuid) override;
  absl::Status press_power(const std::string& uuid) override;
  absl::Status destroy(const std::string& uuid) override;
  absl::Status undefine(const std::string& uuid) override;
  absl::Status resume(const std::string& uuid) override;
  absl::StatusOr<JobFigures> job(const std::string& uuid) override;
  absl::Status abort_job(const std::string& uuid) override;
  absl::Status set_most_downtime(const std::string& uuid, int64_t ns) override;
  absl::Status post_copy_possible() override;
  absl::Status start_post_copy(const std::string& uuid) override;
  absl::StatusOr<bool> in_post_copy(const std::string& uuid) override;
  void drop_mirrors(const std::string& uuid, const std::vector<Disk>& disks) override;
  absl::Status come_back(const std::string& uuid) override;
  absl::StatusOr<HypervisorCapabilities> capabilities(const DomainSpec& domain) override;
  absl::StatusOr<bool> cpu_fits(const DomainSpec& domain) override;
  absl::StatusOr<DiskSize> disk_size(const std::string& uuid, const std::string& target) override;
  absl::StatusOr<uint64_t> room_for(const std::string& path) override;
  absl::StatusOr<bool> disk_exists(const std::string& path) override;
  absl::Status create_disk(const std::string& path, const std::string& format,
                           uint64_t bytes) override;
  absl::Status remove_disk(const std::string& path) override;
  absl::Status migrate(const std::string& own_socket, const std::string& uuid,
                       const MigrationParameters& parameters) override;
  absl::StatusOr<std::string> definition(const std::string& uuid) override;
  absl::Status pause(const std::string& uuid) override;
  absl::Status set_background(const std::string& uuid, bool on) override;
  absl::Status prepare_sending(const std::string& uuid, int fd) override;
  absl::Status begin_sending(const std::string& uuid) override;
  absl::StatusOr<MemorySending> memory_sending(const std::string& uuid) override;
  absl::Status end_sending(const std::string& uuid) override;
  absl::Status divert_disks(const std::string& uuid,
                            const std::vector<DivertedDisk>& disks) override;
  absl::Status merge_disk(const std::string& uuid, const std::string& target) override;
  absl::Status start_paused(const std::string& uuid) override;
  absl::Status load(const std::string& path) override;
  absl::StatusOr<bool> loaded(const std::string& uuid) override;
  absl::Status unplug(const std::string& uuid) override;
  absl::Status create_overlay(const std::string& path, const std::string& base,
                              const std::string& base_format, uint64_t bytes) override;
  absl::StatusOr<uint64_t> file_bytes(const std::string& path) override;
  absl::Status read_file(const std::string& path, const TakeBytes& take) override;
  absl::StatusOr<std::unique_ptr<FileWriter>> write_file(const std::string& path) override;
  absl::StatusOr<std::unique_ptr<Subscription>> watch(const std::string& uuid,
                                                      OnEvent on_event) override;
  absl::StatusOr<std::shared_ptr<Console>> console(const std::string& uuid) override;

 private:
  struct Watchers;
  struct Watch;
  using Domain = std::unique_ptr<virDomain, int (*)(virDomainPtr)>;
  absl::StatusOr<std::shared_ptr<Connection>> connection();
  absl::StatusOr<Domain> domain(Connection& connection, const std::string& uuid);
  // `act` returns what libvirt does: below 0 is an error.
  absl::Status on_domain(const std::string& uuid, const char* call,
                         absl::FunctionRef<int(virDomainPtr)> act);

  // `arguments`: JSON; empty: none. `fd`: goes to QEMU with it; -1: none.
  absl::StatusOr<std::string> ask_qemu(const std::string& uuid, const std::string& command,
                                       const std::string& arguments = "", int fd = -1);
  absl::Status end_post_copy(const std::string& uuid);
  absl::Status cancel_paused(const std::string& uuid);
  absl::Status limit_post_copy(const std::string& uuid);
  absl::StatusOr<bool> taken_for_failed(const std::string& uuid);
  absl::Status post_copy_to_us(const std::string& uuid);
  absl::StatusOr<UniqueFd> migrate_to_us(const std::string& uuid, bool resume);
  absl::Status confirm_cancelled(const std::string& uuid);
  // Its bytes as a stream, on a connection of its own.
  class FileStream;
  absl::StatusOr<std::unique_ptr<FileStream>> open_file(const std::string& path, bool write);
  // Of the folder that `path` is in.
  absl::Status in_pool(const std::string& path,
                       absl::FunctionRef<absl::Status(virStoragePoolPtr)> act);

  const Libvirt& api_;
  const std::string socket_;
  std::mutex pools_mutex_;
  std::mutex mutex_;
  std::shared_ptr<Connection> connection_;
  std::shared_ptr<Watchers> watchers_;
};

// One connection to a libvirt daemon, with keep-alive.
class Connection {
 public:
  static absl::StatusOr<std::shared_ptr<Connection>> open(const Libvirt& api,
                                                          const std::string& uri);
  ~Connection() { api_.virConnectClose(connection_); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  virConnectPtr get() const { return connection_; }
  bool alive() const { return api_.virConnectIsAlive(connection_) == 1; }

 private:
  Connection(const Libvirt& api, virConnectPtr connection) : api_(api), connection_(connection) {}
  const Libvirt& api_;
  virConnectPtr connection_;
};

}  // namespace godwit::vm

#endif  // GODWIT_VM_LIBVIRT_HYPERVISOR_H_
