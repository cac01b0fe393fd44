#include "node/vm_checkpoint.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "absl/cleanup/cleanup.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "base/status.h"
#include "migration/image_file.h"
#include "node/compress_option.h"
#include "node/machine.h"
#include "node/node.h"
#include "node/vm_precheck.h"
#include "node/vms.h"
#include "stream/sealed.h"

namespace godwit::node {
namespace {

constexpr absl::Duration kHoldWait = absl::Seconds(1);
constexpr int kPipeBytes = 1 << 20;  // <= fs.pipe-max-size for all
constexpr size_t kReadBytes = size_t{1} << 20;
constexpr int kLookMs = 100;
// For QEMU to say a word or write a byte.
constexpr absl::Duration kSilence = absl::Seconds(30);
constexpr absl::Duration kRunWait = absl::Seconds(20);
constexpr uint64_t kPageSize = stream::kPageSize;

std::string overlay_of(const std::string& path, const std::string& id) {
  return fmt::format("{}.godwit-{}", path, id.substr(0, 12));
}

}  // namespace

absl::StatusOr<api::MigrateResult> VmCheckpoint::save(const api::CheckpointRequest& request) {
  request_ = request;
  begun_ns_ = monotonic_ns();
  GW_RETURN_IF_ERROR(check(request));
  GW_RETURN_IF_ERROR(look_at_domain());
  if (!reasons_.empty()) {
    api::MigrateResult refused = result("refused");
    refused.set_error(fmt::format("{}: {}; {}", reasons_[0].object(), reasons_[0].reason(),
                                  reasons_[0].way_out()));
    return refused;
  }
  GW_RETURN_IF_ERROR(node_.journal().write(entry_));
  const auto outgoing = node_.begin_outgoing(request.name());
  const auto ended = absl::MakeCleanup([&] { node_.end_outgoing(request.name()); });
  cancelled_ = [outgoing, before = std::move(cancelled_)] {
    return outgoing->cancelled || before();
  };
  absl::Status saved = prepare();
  if (saved.ok()) saved = write();
  if (saved.ok()) saved = publish();
  // Else libvirt's words for a machine that is not there any more.
  if (!saved.ok() && !keep_on().ok()) saved = keep_on();
  return conclude(saved);
}

absl::Status VmCheckpoint::check(const api::CheckpointRequest& request) {
  GW_RETURN_IF_ERROR(check_compress(request.compress()));
  if (request.verify())
    return make_error(absl::StatusCode::kInvalidArgument,
                      "{} is a virtual machine: --verify is for services", request.name());
  compression_.set(*pages::compress_named(request.compress()));
  GW_ASSIGN_OR_RETURN(hypervisor_, node_.vms().hypervisor());
  GW_ASSIGN_OR_RETURN(
      hold_, node_.busy().hold(request.name(), "being saved to a file", Deadline::in(kHoldWait)));
  GW_ASSIGN_OR_RETURN(current_, node_.records().service(request.name()));
  if (current_.record.owner() != node_.config().name)
    return make_error(absl::StatusCode::kAborted, "{} has just gone to {}; ask again",
                      request.name(), current_.record.owner());
  if (current_.record.state() == api::SERVICE_MIGRATING || !current_.record.pages_at().empty())
    return make_error(absl::StatusCode::kFailedPrecondition,
                      "an earlier move of {} is not settled yet", request.name());
  entry_.set_id(random_id());
  entry_.set_side(api::MigrationJournal::LOCAL);
  entry_.set_service(request.name());
  entry_.set_vm_uuid(current_.record.vm().uuid());
  entry_.set_vm_file(request.file());
  return absl::OkStatus();
}

absl::Status VmCheckpoint::look_at_domain() {
  const std::string& uuid = entry_.vm_uuid();
  GW_ASSIGN_OR_RETURN(const vm::DomainState state, hypervisor_->state(uuid));
  if (state == vm::DomainState::kStopped)
    return make_error(
        absl::StatusCode::kFailedPrecondition,
        "{} is stopped: there is no memory to save; its disks are files, which can be "
        "copied",
        request_.name());
  GW_ASSIGN_OR_RETURN(const std::string xml, hypervisor_->xml(uuid, true));
  GW_ASSIGN_OR_RETURN(domain_, vm::parse_domain(xml));
  GW_ASSIGN_OR_RETURN(reasons_, unmovable_parts(*hypervisor_, domain_, true));
  if (state == vm::DomainState::kPaused)
    reasons_.push_back(vm_reason("vm.paused", domain_.name, "it is paused",
                                 "let it run (virsh resume) and save it then"));
  judge_devices();
  GW_ASSIGN_OR_RETURN(const bool persistent, hypervisor_->persistent(uuid));
  image_.set_name(domain_.name);
  image_.set_uuid(uuid);
  image_.set_xml(xml);
  if (persistent) {
    GW_ASSIGN_OR_RETURN(*image_.mutable_definition(), hypervisor_->definition(uuid));
  }
  image_.set_address(current_.record.address());
  image_.set_memory_bytes(domain_.memory_bytes);
  image_.set_cpus(domain_.cpus);
  image_.set_machine(domain_.machine);
  for (const vm::Disk& each : domain_.disks)
    if (!each.source.empty()) GW_RETURN_IF_ERROR(judge_disk(each));
  return absl::OkStatus();
}

void VmCheckpoint::judge_devices() {
  if (domain_.nvram)
    reasons_.push_back(
        vm_reason("vm.nvram", domain_.name,
                  "its firmware keeps variables in a file of this node, which is not "
                  "saved with it",
                  "let it boot by BIOS, or move it instead"));
  if (domain_.tpm)
    reasons_.push_back(vm_reason("vm.tpm", domain_.name,
                                 "its emulated TPM keeps its secrets in files of this node, which "
                                 "are not saved with it",
                                 "remove the <tpm>, or move the machine instead"));
}

absl::Status VmCheckpoint::judge_disk(const vm::Disk& disk) {
  const std::string object = fmt::format("disk {}", disk.target);
  const bool format = disk.format == "qcow2" || disk.format == "raw";
  if (disk.kind != "file" || disk.shareable || !format) {
    reasons_.push_back(vm_reason("vm.disk_not_file", object,
                                 "only disks in files of their own (qcow2, raw) are saved",
                                 "copy it to such a file (virsh blockcopy --pivot)"));
    return absl::OkStatus();
  }
  if (disk.backed) {
    reasons_.push_back(vm_reason("vm.disk_backed", object, "it is a difference from another file",
                                 "make it one file (virsh blockpull)"));
    return absl::OkStatus();
  }
  GW_ASSIGN_OR_RETURN(const vm::DiskSize size,
                      hypervisor_->disk_size(entry_.vm_uuid(), disk.target));
  VmImageDisk& saved = *image_.add_disks();
  saved.set_target(disk.target);
  saved.set_path(disk.source);
  saved.set_format(disk.format);
  saved.set_bytes(size.bytes);
  saved.set_allocated(size.allocated);
  saved.set_read_only(disk.read_only);
  saved.set_carried(!disk.read_only || request_.with_files());
  return absl::OkStatus();
}

absl::Status VmCheckpoint::prepare() {
  tell("prepare", 0, 0);
  const std::string& uuid = entry_.vm_uuid();
  for (VmImageDisk& each : *image_.mutable_disks()) {
    if (!each.read_only()) continue;
    GW_ASSIGN_OR_RETURN(*each.mutable_hash(), hash_file(*hypervisor_, each.path()));
  }
  GW_ASSIGN_OR_RETURN(file_, migration::create_image(migration::partial_image(request_.file())));
  // Now, so that a key that is none stops nothing.
  GW_ASSIGN_OR_RETURN(sink_, stream::image_sink(file_.get(), request_.key_file()));
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return errno_status(errno, "pipe2()");
  memory_.reset(ends[0]);
  const UniqueFd writing(ends[1]);
  ::fcntl(writing.get(), F_SETPIPE_SZ, kPipeBytes);  // fewer do, too
  GW_ASSIGN_OR_RETURN(drain_, VmDrain::start(memory_.get()));
  GW_RETURN_IF_ERROR(hypervisor_->prepare_sending(uuid, writing.get()));
  GW_ASSIGN_OR_RETURN(watch_, hypervisor_->watch(uuid, [this](vm::Happened what) {
    const int64_t now = monotonic_ns();
    std::lock_guard lock(mutex_);
    if (what == vm::Happened::kResumed && resumed_ns_ == 0) resumed_ns_ = now;
    if (what == vm::Happened::kStopped) ended_ = true;
    changed_.notify_all();
  }));
  if (!request_.leave_running()) return absl::OkStatus();
  const absl::Status can = hypervisor_->set_background(uuid, true);
  background_ = can.ok();
  if (!can.ok()) why_stopped_ = std::string(message_of(can));
  for (const VmImageDisk& each : image_.disks()) {
    if (each.read_only()) continue;
    api::VmOverlay& overlay = *entry_.add_vm_overlays();
    overlay.set_target(each.target());
    overlay.set_path(overlay_of(each.path(), entry_.id()));
  }
  GW_RETURN_IF_ERROR(node_.journal().write(entry_));
  for (const api::VmOverlay& each : entry_.vm_overlays()) {
    const auto disk =
        std::find_if(image_.disks().begin(), image_.disks().end(),
                     [&](const VmImageDisk& known) { return known.target() == each.target(); });
    GW_RETURN_IF_ERROR(
        hypervisor_->create_overlay(each.path(), disk->path(), disk->format(), disk->bytes()));
  }
  return keep_on();
}

absl::Status VmCheckpoint::write() {
  stream::Writer writer(*sink_);
  stream::Preamble preamble;
  const bool compressed = !request_.compress().empty() && request_.compress() != "none";
  preamble.version = compressed ? stream::kVersionCompressed : stream::kVersion;
  preamble.workload = request_.name();
  preamble.created_unix_ns = clock_ns(CLOCK_REALTIME);
  GW_RETURN_IF_ERROR(writer.preamble(preamble));
  GW_RETURN_IF_ERROR(writer.begin_epoch(false));
  GW_RETURN_IF_ERROR(writer.section({kVmSection, 0}, image_.SerializeAsString()));
  GW_RETURN_IF_ERROR(stop());
  GW_RETURN_IF_ERROR(save_memory(writer));
  GW_RETURN_IF_ERROR(save_disks(writer));
  GW_RETURN_IF_ERROR(writer.flush());
  statistics_.set_bytes_wire(writer.bytes_written());
  return absl::OkStatus();
}

// From here on nothing is done that could be done before.
absl::Status VmCheckpoint::stop() {
  const std::string& uuid = entry_.vm_uuid();
  std::vector<vm::DivertedDisk> disks;
  for (const api::VmOverlay& each : entry_.vm_overlays())
    disks.push_back({each.target(), each.path()});
  FAULT_POINT("vm_checkpoint.before_stop");
  stop_ns_ = monotonic_ns();
  GW_RETURN_IF_ERROR(hypervisor_->pause(uuid));
  FAULT_POINT("vm_checkpoint.stopped");
  if (!disks.empty()) GW_RETURN_IF_ERROR(hypervisor_->divert_disks(uuid, disks));
  FAULT_POINT("vm_checkpoint.diverted");
  return hypervisor_->begin_sending(uuid);
}

// Not all versions let one run that stood still when they began. In a thread of its own: QEMU may
// be writing to the pipe while it cannot answer.
void VmCheckpoint::follow_qemu() {
  const std::string& uuid = entry_.vm_uuid();
  std::unique_lock lock(mutex_);
  while (!read_) {
    changed_.wait_for(lock, std::chrono::milliseconds(kLookMs));
    if (resumed_ns_ != 0) return;
    lock.unlock();
    const auto now = hypervisor_->memory_sending(uuid);
    if (now.ok() && now->pages_go) {
      const auto state = hypervisor_->state(uuid);
      const absl::Status resumed = state.ok() && *state == vm::DomainState::kPaused
                                       ? hypervisor_->resume(uuid)
                                       : state.status();
      if (!resumed.ok()) log_warning("{}: {}", request_.name(), message_of(resumed));
    }
    lock.lock();
  }
}

absl::Status VmCheckpoint::read_memory(SpaceWriter& space) {
  std::vector<std::byte> buffer(kReadBytes);
  Deadline silence = Deadline::in(kSilence);
  int64_t told_ns = monotonic_ns();
  for (;;) {
    pollfd polled{memory_.get(), POLLIN, 0};
    const int ready = ::poll(&polled, 1, kLookMs);
    if (ready < 0 && errno != EINTR) return errno_status(errno, "poll()");
    if (monotonic_ns() - told_ns > kLookMs * int64_t{1'000'000}) {
      told_ns = monotonic_ns();
      GW_RETURN_IF_ERROR(keep_on());
      const uint64_t total = image_.memory_bytes();
      tell("memory", total - std::min(total, space.end()), total);
    }
    if (ready <= 0) {
      if (silence.passed())
        return make_error(absl::StatusCode::kDeadlineExceeded, "QEMU is silent for {}",
                          absl::FormatDuration(kSilence));
      continue;
    }
    const ssize_t got = ::read(memory_.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno_status(errno, "read(pipe of QEMU)");
    if (got == 0) return space.finish();
    silence = Deadline::in(kSilence);
    FAULT_POINT("vm_checkpoint.memory");
    GW_RETURN_IF_ERROR(space.add(space.end(), std::span(buffer).first(static_cast<size_t>(got))));
  }
}

absl::Status VmCheckpoint::save_memory(stream::Writer& writer) {
  SpaceWriter space(writer, compression_, kVmMemory);
  std::thread following;
  if (background_) following = std::thread([this] { follow_qemu(); });
  const absl::Status done = read_memory(space);
  // Whatever is left goes nowhere.
  memory_.reset();
  drain_.begin();
  {
    std::lock_guard lock(mutex_);
    read_ = true;
  }
  changed_.notify_all();
  if (following.joinable()) following.join();
  GW_RETURN_IF_ERROR(done);
  FAULT_POINT("vm_checkpoint.memory_saved");
  // It may say so a moment later.
  for (const Deadline deadline = Deadline::in(kRunWait);;) {
    GW_ASSIGN_OR_RETURN(const vm::MemorySending now, hypervisor_->memory_sending(entry_.vm_uuid()));
    if (now.state == vm::MemorySending::State::kDone) break;
    if (now.state == vm::MemorySending::State::kFailed || deadline.passed())
      return make_error(absl::StatusCode::kFailedPrecondition, "QEMU has not sent all memory: {}",
                        now.error);
    ::usleep(1000);
  }
  if (request_.leave_running()) GW_RETURN_IF_ERROR(see_it_run());
  VmSpace told;
  told.set_bytes(space.end());
  GW_RETURN_IF_ERROR(writer.end_epoch());
  GW_RETURN_IF_ERROR(writer.begin_epoch(true));
  return writer.section({kVmSpaceSection, kVmMemory}, told.SerializeAsString());
}

absl::Status VmCheckpoint::see_it_run() {
  if (!background_) GW_RETURN_IF_ERROR(hypervisor_->resume(entry_.vm_uuid()));
  std::unique_lock lock(mutex_);
  const auto seen = [&] { return resumed_ns_ != 0 || ended_; };
  if (changed_.wait_for(lock, absl::ToChronoMilliseconds(kRunWait), seen)) return absl::OkStatus();
  return make_error(absl::StatusCode::kDeadlineExceeded, "QEMU does not let it run on");
}

absl::Status VmCheckpoint::save_disks(stream::Writer& writer) {
  uint64_t number = kFirstVmDisk;
  for (const VmImageDisk& each : image_.disks()) {
    if (!each.carried()) continue;
    VmSpace told;
    told.set_target(each.target());
    GW_ASSIGN_OR_RETURN(const uint64_t bytes, hypervisor_->file_bytes(each.path()));
    told.set_bytes(bytes);
    GW_RETURN_IF_ERROR(writer.section({kVmSpaceSection, number++}, told.SerializeAsString()));
  }
  number = kFirstVmDisk;
  for (const VmImageDisk& each : image_.disks())
    if (each.carried()) GW_RETURN_IF_ERROR(save_disk(writer, each, number++));
  return writer.end_epoch();
}

absl::Status VmCheckpoint::save_disk(stream::Writer& writer, const VmImageDisk& disk,
                                     uint64_t space_number) {
  uint64_t total = 0;
  for (const VmImageDisk& each : image_.disks()) total += each.carried() ? each.allocated() : 0;
  SpaceWriter space(writer, compression_, space_number);
  int64_t told_ns = 0;
  const auto take = [&](uint64_t offset, std::span<const std::byte> bytes) -> absl::Status {
    GW_RETURN_IF_ERROR(space.add(offset, bytes));
    disk_bytes_done_ += bytes.size();
    if (monotonic_ns() - told_ns < kLookMs * int64_t{1'000'000}) return absl::OkStatus();
    told_ns = monotonic_ns();
    tell("disks", total - std::min(total, disk_bytes_done_), total);
    return keep_on();
  };
  GW_RETURN_IF_ERROR(hypervisor_->read_file(disk.path(), take));
  FAULT_POINT("vm_checkpoint.disk_saved");
  return space.finish();
}

absl::Status VmCheckpoint::publish() {
  const std::string partial = migration::partial_image(request_.file());
  GW_RETURN_IF_ERROR(migration::sync_image(file_.get(), partial));
  GW_RETURN_IF_ERROR(keep_on());
  if (!request_.leave_running()) {
    // Whoever finds this note looks whether the file has its name.
    entry_.set_vm_ends(true);
    for (const VmImageDisk& each : image_.disks())
      if (!each.read_only()) entry_.add_vm_disks(each.path());
    GW_RETURN_IF_ERROR(node_.journal().write(entry_));
  }
  FAULT_POINT("vm_checkpoint.before_publish");
  GW_RETURN_IF_ERROR(migration::publish_image(partial, request_.file()));
  FAULT_POINT("vm_checkpoint.published");
  return absl::OkStatus();
}

absl::Status VmCheckpoint::keep_on() {
  if (cancelled_()) return absl::CancelledError("cancelled; the machine runs on");
  std::lock_guard lock(mutex_);
  if (ended_) return absl::FailedPreconditionError("the machine has ended");
  return absl::OkStatus();
}

void VmCheckpoint::tell(const char* phase, uint64_t left, uint64_t total) {
  api::MigrateProgress progress;
  progress.set_phase(phase);
  progress.set_pages_left(left / kPageSize);
  progress.set_pages_total(total / kPageSize);
  on_progress_(progress);
}

absl::StatusOr<api::MigrateResult> VmCheckpoint::conclude(const absl::Status& saved) {
  statistics_.set_id(entry_.id());
  statistics_.set_strategy("checkpoint");
  statistics_.set_rounds(1);
  statistics_.set_finished_unix_ns(clock_ns(CLOCK_REALTIME));
  statistics_.set_memory_bytes(image_.memory_bytes());
  statistics_.set_bytes_pages(compression_.bytes());
  statistics_.set_bytes_pages_wire(compression_.wire_bytes());
  statistics_.set_compression(compression_.used());
  statistics_.set_total_ns(monotonic_ns() - begun_ns_);
  if (stop_ns_ != 0) {
    std::lock_guard lock(mutex_);
    statistics_.set_freeze_ns((resumed_ns_ != 0 ? resumed_ns_ : monotonic_ns()) - stop_ns_);
  }
  if (request_.leave_running())
    statistics_.set_chosen_because(
        background_ ? "memory was saved while it ran on"
                    : fmt::format("it stood still while its memory was saved: {}", why_stopped_));
  memory_.reset();
  drain_.begin();
  watch_.reset();
  const absl::Status settled = node_.vms().settle_checkpoint(entry_);
  if (!settled.ok()) {
    if (!node_.stopping()) node_.settle_later(entry_.service(), {entry_}, std::move(hold_));
    if (!saved.ok()) return saved;
    log_error("after the checkpoint of {}: {}", entry_.service(), message_of(settled));
  }
  if (saved.ok()) return result("saved");
  api::MigrateResult back = result("rolled_back");
  back.set_error(fmt::format("{}: {}", request_.file(), message_of(saved)));
  return back;
}

api::MigrateResult VmCheckpoint::result(const std::string& outcome) {
  api::MigrateResult result;
  result.set_name(request_.name());
  result.set_node(node_.config().name);
  result.set_outcome(outcome);
  statistics_.set_source(node_.config().name);
  statistics_.set_outcome(outcome);
  *result.mutable_statistics() = statistics_;
  for (const migration::Reason& each : reasons_) *result.add_refusals() = to_refusal(each);
  return result;
}

}  // namespace godwit::node
