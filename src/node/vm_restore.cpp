#include "node/vm_restore.h"

#include <fcntl.h>
#include <openssl/rand.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <thread>

#include "absl/time/clock.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "base/status.h"
#include "capsule/capsule.h"
#include "kernel/syscalls.h"
#include "node/new_service.h"
#include "node/node.h"
#include "node/vm_network.h"
#include "node/vm_precheck.h"
#include "node/vm_relay.h"
#include "node/vms.h"
#include "stream/sealed.h"
#include "vm/domain_change.h"
#include "vm/saved_domain.h"

namespace godwit::node {
namespace {

constexpr int kLookMs = 20;
constexpr int64_t kTellNs = 100'000'000;
// For libvirt to start QEMU, and for QEMU to take more, or to have loaded it.
constexpr absl::Duration kSilence = absl::Seconds(60);
// Of memory and devices, until the bridges are closed.
constexpr uint64_t kKeptBack = 64 << 10;
// For libvirt to open what is to go.
constexpr absl::Duration kOpenWait = absl::Seconds(2);

absl::StatusOr<std::string> random_uuid() {
  std::array<unsigned char, 16> bytes{};
  if (RAND_bytes(bytes.data(), bytes.size()) != 1)
    return absl::InternalError("RAND_bytes() failed");
  bytes[6] = static_cast<unsigned char>((bytes[6] & 0x0f) | 0x40);  // RFC 4122: random
  bytes[8] = static_cast<unsigned char>((bytes[8] & 0x3f) | 0x80);
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", bytes.at(i));
  }
  return text;
}

// "/disks/web.qcow2" of vda, for "copy": "/disks/copy-vda.qcow2".
std::string file_of_another(const VmImageDisk& disk, const std::string& name) {
  const std::string& path = disk.path();
  const size_t base = path.rfind('/') + 1;
  const size_t dot = path.rfind('.');
  const std::string end = dot == std::string::npos || dot <= base ? "" : path.substr(dot);
  return fmt::format("{}{}-{}{}", path.substr(0, base), name, disk.target(), end);
}

absl::Status damaged(std::string_view what) {
  return make_error(absl::StatusCode::kDataLoss, "the file's machine is not whole: {}", what);
}

}  // namespace

std::string vm_fifo(const std::string& folder, const std::string& id) {
  return fmt::format("{}/{}.memory", folder, id);
}

absl::Status connect_plugged(vm::DomainSpec domain) {
  std::erase_if(domain.interfaces, [](const vm::Interface& each) { return each.unplugged; });
  return connect_vm(domain, true);
}

absl::StatusOr<api::MigrateResult> VmRestore::restore(const api::RestoreRequest& request) {
  request_ = request;
  begun_ns_ = monotonic_ns();
  if (request.lazy())
    return make_error(absl::StatusCode::kInvalidArgument,
                      "{} has a virtual machine: --lazy is for services", request.file());
  GW_ASSIGN_OR_RETURN(hypervisor_, node_.vms().hypervisor());
  GW_RETURN_IF_ERROR(read_image());
  GW_RETURN_IF_ERROR(become());
  GW_RETURN_IF_ERROR(capsule::check_name(image_.name()));
  GW_ASSIGN_OR_RETURN(hold_, hold_new_name(node_, image_.name(), "being restored from a file"));
  api::MigrateResult judged;
  GW_RETURN_IF_ERROR(judge(judged));
  if (judged.refusals_size() > 0) {
    const api::Refusal& first = judged.refusals(0);
    judged.set_name(image_.name());
    judged.set_outcome("refused");
    judged.set_error(fmt::format("{}: {}; {}", first.object(), first.reason(), first.way_out()));
    return judged;
  }
  GW_RETURN_IF_ERROR(claim());
  absl::Status restored = make_disks();
  if (restored.ok()) restored = load_memory();
  if (restored.ok()) restored = run();
  return conclude(restored);
}

// From the beginning, for each pass anew.
absl::StatusOr<std::unique_ptr<stream::Feed>> VmRestore::open_stream() {
  if (::lseek(file_.get(), 0, SEEK_SET) != 0) return errno_status(errno, "lseek()");
  auto feed = stream::image_feed(file_.get(), request_.key_file());
  if (!feed.ok()) return annotate(feed.status(), request_.file());
  return feed;
}

absl::Status VmRestore::read_image() {
  GW_ASSIGN_OR_RETURN(file_, kernel::open(request_.file(), O_RDONLY | O_CLOEXEC));
  struct stat status {};
  if (::fstat(file_.get(), &status) != 0) return errno_status(errno, "fstat()");
  file_bytes_ = static_cast<uint64_t>(status.st_size);
  GW_ASSIGN_OR_RETURN(const auto feed, open_stream());
  bool found = false;
  VmImageReader reader;
  reader.on_image = [&](const VmImage& image) {
    image_ = image;
    found = true;
    return absl::OkStatus();
  };
  reader.on_bytes = [](uint64_t, uint64_t, std::span<const std::byte>) { return absl::OkStatus(); };
  reader.on_frame = [&](uint64_t) -> absl::StatusOr<bool> { return !found; };
  return annotate(reader.read(*feed), request_.file());
}

absl::Status VmRestore::become() {
  another_ = !request_.name().empty() && request_.name() != image_.name();
  vm::DomainChange change;
  change.name = image_.name();
  change.uuid = image_.uuid();
  if (another_) {
    change.name = request_.name();
    GW_ASSIGN_OR_RETURN(change.uuid, random_uuid());
    for (VmImageDisk& each : *image_.mutable_disks()) {
      if (each.read_only()) continue;
      const std::string path = file_of_another(each, change.name);
      change.files[each.path()] = path;
      each.set_path(path);
    }
    image_.clear_address();
  }
  GW_ASSIGN_OR_RETURN(*image_.mutable_xml(), vm::changed_domain(image_.xml(), change));
  // What is loaded brings its own; see Hypervisor::unplug().
  change.unplugged = another_;
  if (!image_.definition().empty()) {
    GW_ASSIGN_OR_RETURN(*image_.mutable_definition(),
                        vm::changed_domain(image_.definition(), change));
  }
  image_.set_name(change.name);
  image_.set_uuid(change.uuid);
  entry_.set_id(random_id());
  entry_.set_side(api::MigrationJournal::LOCAL);
  entry_.set_service(image_.name());
  entry_.set_vm_uuid(image_.uuid());
  entry_.set_vm_restore(true);
  return absl::OkStatus();
}

absl::Status VmRestore::judge(api::MigrateResult& result) {
  api::PrepareVmRequest request;
  request.set_migration_id(entry_.id());
  request.set_name(image_.name());
  request.set_source(node_.config().name);
  request.set_data_tls(node_.data_tls());
  request.set_uuid(image_.uuid());
  request.set_xml(image_.xml());
  for (const VmImageDisk& each : image_.disks()) {
    if (each.read_only()) continue;
    api::VmDisk& disk = *request.add_disks();
    disk.set_target(each.target());
    disk.set_path(each.path());
    disk.set_format(each.format());
    disk.set_bytes(each.bytes());
    disk.set_allocated(each.allocated());
  }
  api::PrepareVmReply reply;
  GW_RETURN_IF_ERROR(judge_vm(node_, request, reply));
  for (const api::Refusal& each : reply.refusals())
    // Of media more is known here.
    if (each.code() != "vm.disk_missing") *result.add_refusals() = each;
  for (const VmImageDisk& each : image_.disks())
    if (each.read_only()) GW_RETURN_IF_ERROR(judge_medium(each, result));
  return absl::OkStatus();
}

absl::Status VmRestore::judge_medium(const VmImageDisk& medium, api::MigrateResult& result) {
  const auto refuse = [&](const char* code, std::string reason, std::string way_out) {
    *result.add_refusals() = to_refusal(vm_reason(code, fmt::format("disk {}", medium.target()),
                                                  std::move(reason), std::move(way_out)));
    return absl::OkStatus();
  };
  const auto exists = hypervisor_->disk_exists(medium.path());
  if (!exists.ok() && !absl::IsNotFound(exists.status())) return exists.status();
  if (!exists.ok() || !*exists) {
    if (medium.carried() && exists.ok()) return absl::OkStatus();
    return refuse("vm.disk_missing",
                  fmt::format("{} is not on node {}", medium.path(), node_.config().name),
                  "put the same file there, or save the machine with --with-files");
  }
  GW_ASSIGN_OR_RETURN(const std::string hash, hash_file(*hypervisor_, medium.path()));
  if (hash == medium.hash()) return absl::OkStatus();
  return refuse("vm.disk_differs",
                fmt::format("{} is another file on node {}", medium.path(), node_.config().name),
                "put the same file there");
}

absl::Status VmRestore::claim() {
  api::ServiceRecord& record = versioned_.record;
  record.mutable_vm()->set_uuid(image_.uuid());
  record.set_address(image_.address());
  GW_RETURN_IF_ERROR(node_.journal().write(entry_));
  absl::Status claimed = claim_new_name(node_, image_.name(), versioned_);
  if (claimed.ok() && !image_.address().empty())
    claimed = node_.records().claim_address(image_.address(), image_.name());
  if (claimed.ok()) return claimed;
  const absl::Status settled = node_.vms().settle_restore(entry_);
  if (!settled.ok() && !node_.stopping())
    node_.settle_later(entry_.service(), {entry_}, std::move(hold_));
  return claimed;
}

// All of the file is read, so that nothing runs that is not whole.
absl::Status VmRestore::make_disks() {
  GW_ASSIGN_OR_RETURN(const auto feed, open_stream());
  VmImageReader reader;
  reader.on_image = [](const VmImage&) { return absl::OkStatus(); };
  reader.on_space = [&](uint64_t number, const VmSpace& told) { return begin_space(number, told); };
  reader.on_bytes = [&](uint64_t number, uint64_t offset, std::span<const std::byte> bytes) {
    return number == kVmMemory ? absl::OkStatus() : write_disk(number, offset, bytes);
  };
  reader.on_frame = [&](uint64_t bytes_read) { return keep_on("disks", bytes_read); };
  GW_RETURN_IF_ERROR(annotate(reader.read(*feed), request_.file()));
  if (spaces_.count(kVmMemory) == 0) return damaged("its memory is missing");
  size_t disks = 0;
  for (const VmImageDisk& each : image_.disks()) disks += each.carried() ? 1 : 0;
  if (spaces_.size() != disks + 1) return damaged("a disk is missing");
  for (auto& [number, space] : spaces_)
    if (space.writer != nullptr) GW_RETURN_IF_ERROR(space.writer->finish(space.told.bytes()));
  // Before anything else opens them.
  for (auto& [number, space] : spaces_) space.writer.reset();
  FAULT_POINT("vm_restore.disks_made");
  return absl::OkStatus();
}

absl::Status VmRestore::begin_space(uint64_t number, const VmSpace& told) {
  if (spaces_.count(number) != 0) return damaged("a space twice");
  Space& space = spaces_[number];
  space.told = told;
  if (number == kVmMemory) return absl::OkStatus();
  const auto disk = std::find_if(
      image_.disks().begin(), image_.disks().end(),
      [&](const VmImageDisk& each) { return each.carried() && each.target() == told.target(); });
  if (disk == image_.disks().end()) return damaged("a disk that it has not");
  for (const auto& [other, known] : spaces_)
    if (other != number && known.told.target() == told.target()) return damaged("a disk twice");
  // A medium that is there is the same.
  if (disk->read_only()) {
    GW_ASSIGN_OR_RETURN(const bool exists, hypervisor_->disk_exists(disk->path()));
    if (exists) return absl::OkStatus();
  }
  entry_.add_vm_disks(disk->path());
  GW_RETURN_IF_ERROR(node_.journal().write(entry_));
  // As a file without a format: what is written to it has its own.
  const absl::Status made = hypervisor_->create_disk(disk->path(), "raw", told.bytes());
  if (absl::IsAlreadyExists(made)) {
    // Somebody else's, by now.
    entry_.mutable_vm_disks()->RemoveLast();
    GW_RETURN_IF_ERROR(node_.journal().write(entry_));
  }
  GW_RETURN_IF_ERROR(made);
  GW_ASSIGN_OR_RETURN(space.writer, hypervisor_->write_file(disk->path()));
  return absl::OkStatus();
}

absl::Status VmRestore::write_disk(uint64_t number, uint64_t offset,
                                   std::span<const std::byte> bytes) {
  const auto found = spaces_.find(number);
  if (found == spaces_.end()) return damaged("pages of a disk before its section");
  const uint64_t end = found->second.told.bytes();
  // The last page is filled up.
  if (offset >= end ||
      bytes.size() - std::min<uint64_t>(bytes.size(), end - offset) >= stream::kPageSize)
    return damaged("pages behind the end of a disk");
  if (found->second.writer == nullptr) return absl::OkStatus();
  return found->second.writer->write(offset,
                                     bytes.first(std::min<uint64_t>(bytes.size(), end - offset)));
}

absl::Status VmRestore::load_memory() {
  if (!image_.definition().empty())
    GW_RETURN_IF_ERROR(hypervisor_->define(image_.definition()).status());
  const std::string& folder = node_.config().vm_sockets;
  GW_RETURN_IF_ERROR(make_vm_socket_folder(folder));
  const std::string path = vm_fifo(folder, entry_.id());
  if (::mkfifo(path.c_str(), 0600) != 0)
    return errno_status(errno, fmt::format("mkfifo({})", path));
  // For both: libvirt does not wait for a writer then, and its end is no SIGPIPE.
  UniqueFd fifo(::open(path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!fifo) {
    const absl::Status why = errno_status(errno, fmt::format("open({})", path));
    ::unlink(path.c_str());
    return why;
  }
  ::fcntl(fifo.get(), F_SETPIPE_SZ, 1 << 20);  // fewer bytes do, too
  std::thread loading([&] {
    const absl::Status done = hypervisor_->load(vm_fifo(kVmSockets, entry_.id()));
    std::lock_guard lock(mutex_);
    loaded_ = true;
    load_status_ = done;
    changed_.notify_all();
  });
  std::thread closing([&] { close_bridges(); });
  const absl::Status fed = feed_memory(fifo.get());
  absl::Status done = fed;
  {
    std::unique_lock lock(mutex_);
    const auto patience = fed.ok() ? kSilence : kOpenWait;
    changed_.wait_for(lock, absl::ToChronoMilliseconds(patience), [&] { return loaded_; });
  }
  // Now whoever reads yet sees an end.
  ::unlink(path.c_str());
  fifo.reset();
  loading.join();
  closing.join();
  if (!load_status_.ok()) done = load_status_;
  if (!fed.ok() && !absl::IsUnavailable(fed)) done = fed;
  GW_RETURN_IF_ERROR(done);
  for (const Deadline deadline = Deadline::in(kSilence);;) {
    GW_ASSIGN_OR_RETURN(const bool loaded, hypervisor_->loaded(image_.uuid()));
    if (loaded) break;
    if (deadline.passed()) return absl::DeadlineExceededError("QEMU does not finish loading");
    absl::SleepFor(absl::Milliseconds(kLookMs));
  }
  FAULT_POINT("vm_restore.loaded");
  return absl::OkStatus();
}

absl::Status VmRestore::wait_for_closed_bridges() {
  const auto spec = vm::parse_domain(image_.xml());
  GW_RETURN_IF_ERROR(spec.status());
  const auto bridged = [](const vm::Interface& each) { return !each.bridge.empty(); };
  if (std::none_of(spec->interfaces.begin(), spec->interfaces.end(), bridged))
    return absl::OkStatus();
  std::unique_lock lock(mutex_);
  const auto known = [&] { return bridges_closed_ || loaded_; };
  if (changed_.wait_for(lock, absl::ToChronoMilliseconds(kSilence), known)) return absl::OkStatus();
  return absl::DeadlineExceededError("libvirt does not start QEMU, or its taps are on no bridge");
}

// kUnavailable: libvirt takes no more, and says why.
absl::Status VmRestore::feed_memory(int fifo) {
  const auto write_all = [&](std::span<const std::byte> bytes) -> absl::Status {
    for (Deadline silence = Deadline::in(kSilence); !bytes.empty();) {
      const ssize_t put = ::write(fifo, bytes.data(), bytes.size());
      if (put > 0) {
        bytes = bytes.subspan(static_cast<size_t>(put));
        silence = Deadline::in(kSilence);
        continue;
      }
      if (put < 0 && errno != EAGAIN && errno != EINTR) return errno_status(errno, "write(FIFO)");
      if (cancelled_()) return absl::CancelledError("cancelled");
      if (silence.passed()) return absl::DeadlineExceededError("QEMU takes no memory");
      {
        std::lock_guard lock(mutex_);
        if (loaded_ && !load_status_.ok()) return absl::UnavailableError("libvirt has given up");
      }
      pollfd polled{fifo, POLLOUT, 0};
      ::poll(&polled, 1, kLookMs);
    }
    return absl::OkStatus();
  };
  const std::string head = vm::saved_domain_head(image_.xml());
  GW_RETURN_IF_ERROR(write_all(std::as_bytes(std::span(head))));
  GW_ASSIGN_OR_RETURN(const auto feed, open_stream());
  const uint64_t end = spaces_[kVmMemory].told.bytes();
  const std::vector<std::byte> zeros(size_t{1} << 20);
  uint64_t at = 0;
  const auto fill_to = [&](uint64_t offset) -> absl::Status {
    while (at < offset) {
      const size_t count = std::min<uint64_t>(offset - at, zeros.size());
      GW_RETURN_IF_ERROR(write_all(std::span(zeros).first(count)));
      at += count;
    }
    return absl::OkStatus();
  };
  VmImageReader reader;
  reader.on_image = [](const VmImage&) { return absl::OkStatus(); };
  reader.on_bytes = [&](uint64_t number, uint64_t offset,
                        std::span<const std::byte> bytes) -> absl::Status {
    if (number != kVmMemory || offset >= end) return absl::OkStatus();
    const size_t count = std::min<uint64_t>(bytes.size(), end - offset);
    // Without its end QEMU does not finish.
    if (offset + count + kKeptBack > end) GW_RETURN_IF_ERROR(wait_for_closed_bridges());
    GW_RETURN_IF_ERROR(fill_to(offset));
    GW_RETURN_IF_ERROR(write_all(bytes.first(count)));
    at += count;
    return absl::OkStatus();
  };
  bool disks = false;
  reader.on_space = [&](uint64_t, const VmSpace&) {
    disks = true;
    return absl::OkStatus();
  };
  reader.on_frame = [&](uint64_t bytes_read) -> absl::StatusOr<bool> {
    if (disks) return false;
    return keep_on("memory", bytes_read);
  };
  GW_RETURN_IF_ERROR(annotate(reader.read(*feed), request_.file()));
  return fill_to(end);
}

// QEMU reads its taps before it has the state of its network cards (docs/decisions/0024), and when
// it has loaded it tells all bridges that the machine is here, whoever else has the same address.
void VmRestore::close_bridges() {
  for (;;) {
    const auto xml = hypervisor_->xml(image_.uuid(), false);
    const auto spec = xml.ok() ? vm::parse_domain(*xml) : xml.status();
    const auto has_tap = [](const vm::Interface& each) { return !each.tap.empty(); };
    const bool closed = spec.ok() &&
                        std::any_of(spec->interfaces.begin(), spec->interfaces.end(), has_tap) &&
                        connect_vm(*spec, false).ok();
    std::unique_lock lock(mutex_);
    bridges_closed_ |= closed;
    changed_.notify_all();
    if (loaded_ || closed) return;
    changed_.wait_for(lock, std::chrono::milliseconds(kLookMs));
    if (loaded_) return;
  }
}

absl::Status VmRestore::run() {
  const std::string& uuid = image_.uuid();
  // The original may have the same addresses on the same network.
  if (another_) GW_RETURN_IF_ERROR(hypervisor_->unplug(uuid));
  GW_ASSIGN_OR_RETURN(const std::string xml, hypervisor_->xml(uuid, false));
  GW_ASSIGN_OR_RETURN(const vm::DomainSpec domain, vm::parse_domain(xml));
  GW_RETURN_IF_ERROR(connect_plugged(domain));
  FAULT_POINT("vm_restore.before_commit");
  if (cancelled_()) return absl::CancelledError("cancelled");
  versioned_.record.set_state(api::SERVICE_RUNNING);
  versioned_.record.set_started_unix_ns(clock_ns(CLOCK_REALTIME));
  GW_RETURN_IF_ERROR(node_.until_answered([&] { return node_.records().put(versioned_); }));
  FAULT_POINT("vm_restore.after_commit");
  GW_RETURN_IF_ERROR(hypervisor_->resume(uuid));
  const absl::Status told = another_ ? absl::OkStatus() : announce_vm(domain);
  if (!told.ok()) log_warning("announcing {}: {}", image_.name(), message_of(told));
  return absl::OkStatus();
}

// What the record says is done, or undone.
absl::StatusOr<api::MigrateResult> VmRestore::conclude(const absl::Status& restored) {
  spaces_.clear();
  statistics_.set_id(entry_.id());
  statistics_.set_strategy("restore");
  statistics_.set_memory_bytes(image_.memory_bytes());
  statistics_.set_bytes_wire(file_bytes_);
  statistics_.set_total_ns(monotonic_ns() - begun_ns_);
  const absl::Status settled = node_.vms().settle_restore(entry_);
  if (!settled.ok() && !node_.stopping())
    node_.settle_later(entry_.service(), {entry_}, std::move(hold_));
  if (!restored.ok()) return restored;
  GW_RETURN_IF_ERROR(settled);
  api::MigrateResult result;
  result.set_name(image_.name());
  result.set_node(node_.config().name);
  result.set_outcome("restored");
  if (another_)
    *result.add_warnings() = to_refusal(vm_reason(
        "vm.unplugged", image_.name(),
        "its network cards have no link, and their ports of the bridges are closed: it has the "
        "addresses that the machine had that was saved",
        "give its guest others (godwit vm console), then virsh domif-setlink, and bridge link set "
        "dev TAP state 3"));
  statistics_.set_outcome("restored");
  *result.mutable_statistics() = statistics_;
  return result;
}

absl::StatusOr<bool> VmRestore::keep_on(const char* phase, uint64_t bytes_read) {
  if (cancelled_()) return absl::CancelledError("cancelled");
  if (monotonic_ns() - told_ns_ < kTellNs) return true;
  told_ns_ = monotonic_ns();
  api::MigrateProgress progress;
  progress.set_phase(phase);
  progress.set_pages_left((file_bytes_ - std::min(file_bytes_, bytes_read)) / stream::kPageSize);
  progress.set_pages_total(file_bytes_ / stream::kPageSize);
  on_progress_(progress);
  return true;
}

}  // namespace godwit::node
