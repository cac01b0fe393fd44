// A domain's migration by libvirt, driven by its client (virDomainMigrate3): begin, prepare,
// perform, finish, confirm are calls that go from here to one daemon or the other. Whoever holds
// back what goes to the source after "perform" decides there.
#ifdef GODWIT_LIBVIRT
#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/status.h"
#include "vm/libvirt_hypervisor.h"

namespace godwit::vm {
namespace {

// virTypedParams, which grow.
class Parameters {
 public:
  explicit Parameters(const Libvirt& api) : api_(api) {}
  ~Parameters() { api_.virTypedParamsFree(list_, count_); }
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  void add(const char* name, const std::string& value) {
    ok_ &= api_.virTypedParamsAddString(&list_, &count_, &room_, name, value.c_str()) == 0;
  }
  void add(const char* name, unsigned long long value) {
    ok_ &= api_.virTypedParamsAddULLong(&list_, &count_, &room_, name, value) == 0;
  }
  bool ok() const { return ok_; }
  virTypedParameterPtr list() const { return list_; }
  unsigned count() const { return static_cast<unsigned>(count_); }

 private:
  const Libvirt& api_;
  virTypedParameterPtr list_ = nullptr;
  int count_ = 0;
  int room_ = 0;
  bool ok_ = true;
};

}  // namespace

absl::Status LibvirtHypervisor::migrate(const std::string& own_socket, const std::string& uuid,
                                        const MigrationParameters& parameters) {
  GW_ASSIGN_OR_RETURN(const auto source, Connection::open(api_, uri_of(own_socket)));
  GW_ASSIGN_OR_RETURN(const auto destination, Connection::open(api_, parameters.control_uri));
  GW_ASSIGN_OR_RETURN(const Domain moving, domain(*source, uuid));
  // Unsafe: libvirt knows shared file systems by their types only.
  unsigned flags = VIR_MIGRATE_ABORT_ON_ERROR | VIR_MIGRATE_UNSAFE;
  // libvirt refuses both together.
  flags |= parameters.post_copy ? VIR_MIGRATE_POSTCOPY : VIR_MIGRATE_PAUSED;
  if (parameters.live) flags |= VIR_MIGRATE_LIVE;
  if (parameters.persistent) flags |= VIR_MIGRATE_PERSIST_DEST;
  Parameters list(api_);
  list.add(VIR_MIGRATE_PARAM_URI, parameters.memory_uri);
  if (!parameters.copied_disks.empty()) {
    flags |= VIR_MIGRATE_NON_SHARED_DISK;
    list.add(VIR_MIGRATE_PARAM_DISKS_URI, parameters.disks_uri);
    for (const std::string& each : parameters.copied_disks)
      list.add(VIR_MIGRATE_PARAM_MIGRATE_DISKS, each);
  }
  if (parameters.post_copy && parameters.post_copy_bytes_per_s > 0)
    list.add(VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY,
             std::max<unsigned long long>(1, parameters.post_copy_bytes_per_s >> 20));
  if (!list.ok()) return libvirt_error(api_, "virTypedParamsAddString()");
  const Domain moved(
      api_.virDomainMigrate3(moving.get(), destination->get(), list.list(), list.count(), flags),
      api_.virDomainFree);
  return moved == nullptr ? libvirt_error(api_, "virDomainMigrate3()") : absl::OkStatus();
}

absl::StatusOr<JobFigures> LibvirtHypervisor::job(const std::string& uuid) {
  int type = 0;
  int count = 0;
  virTypedParameterPtr list = nullptr;
  GW_RETURN_IF_ERROR(on_domain(uuid, "virDomainGetJobStats()", [&](virDomainPtr found) {
    return api_.virDomainGetJobStats(found, &type, &list, &count, 0);
  }));
  const auto figure = [&](const char* name) -> uint64_t {
    unsigned long long value = 0;
    api_.virTypedParamsGetULLong(list, count, name, &value);
    return value;
  };
  JobFigures job;
  job.active = type == VIR_DOMAIN_JOB_BOUNDED || type == VIR_DOMAIN_JOB_UNBOUNDED;
  job.memory_total = figure(VIR_DOMAIN_JOB_MEMORY_TOTAL);
  job.memory_left = figure(VIR_DOMAIN_JOB_MEMORY_REMAINING);
  job.memory_sent = figure(VIR_DOMAIN_JOB_MEMORY_PROCESSED);
  job.bytes_per_s = figure(VIR_DOMAIN_JOB_MEMORY_BPS);
  job.dirty_bytes_per_s =
      figure(VIR_DOMAIN_JOB_MEMORY_DIRTY_RATE) * figure(VIR_DOMAIN_JOB_MEMORY_PAGE_SIZE);
  job.rounds = figure(VIR_DOMAIN_JOB_MEMORY_ITERATION);
  job.disk_total = figure(VIR_DOMAIN_JOB_DISK_TOTAL);
  job.disk_left = figure(VIR_DOMAIN_JOB_DISK_REMAINING);
  api_.virTypedParamsFree(list, count);
  return job;
}

absl::StatusOr<uint64_t> LibvirtHypervisor::measure_writes(const std::string& uuid) {
  constexpr int kSeconds = 1;
  constexpr absl::Duration kWait = absl::Seconds(5);
  // Page sampling: the other modes end a QEMU 7.2 that has no KVM.
  GW_RETURN_IF_ERROR(on_domain(uuid, "virDomainStartDirtyRateCalc()", [&](virDomainPtr found) {
    return api_.virDomainStartDirtyRateCalc(found, kSeconds,
                                            VIR_DOMAIN_DIRTYRATE_MODE_PAGE_SAMPLING);
  }));
  for (const Deadline deadline = Deadline::in(kWait); !deadline.passed();) {
    absl::SleepFor(absl::Milliseconds(100));
    int status = VIR_DOMAIN_DIRTYRATE_UNSTARTED;
    long long mib_per_s = 0;
    GW_RETURN_IF_ERROR(on_domain(uuid, "virDomainListGetStats()", [&](virDomainPtr found) {
      virDomainPtr asked[] = {found, nullptr};
      virDomainStatsRecordPtr* records = nullptr;
      const int count = api_.virDomainListGetStats(asked, VIR_DOMAIN_STATS_DIRTYRATE, &records, 0);
      if (count > 0) {
        const virDomainStatsRecord& first = *records[0];
        api_.virTypedParamsGetInt(first.params, first.nparams, "dirtyrate.calc_status", &status);
        api_.virTypedParamsGetLLong(first.params, first.nparams, "dirtyrate.megabytes_per_second",
                                    &mib_per_s);
      }
      api_.virDomainStatsRecordListFree(records);
      return count;
    }));
    if (status == VIR_DOMAIN_DIRTYRATE_MEASURED && mib_per_s >= 0)
      return static_cast<uint64_t>(mib_per_s) << 20;
  }
  return make_error(absl::StatusCode::kDeadlineExceeded, "the hypervisor did not tell in {}",
                    absl::FormatDuration(kWait));
}

absl::Status LibvirtHypervisor::abort_job(const std::string& uuid) {
  return on_domain(uuid, "virDomainAbortJob()",
                   [&](virDomainPtr found) { return api_.virDomainAbortJob(found); });
}

absl::Status LibvirtHypervisor::set_most_downtime(const std::string& uuid, int64_t ns) {
  const auto ms = static_cast<unsigned long long>(std::max<int64_t>(1, ns / 1'000'000));
  return on_domain(uuid, "virDomainMigrateSetMaxDowntime()", [&](virDomainPtr found) {
    return api_.virDomainMigrateSetMaxDowntime(found, ms, 0);
  });
}

}  // namespace godwit::vm
#endif
