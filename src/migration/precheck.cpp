#include "migration/precheck.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

namespace godwit::migration {
namespace {

// The replica's own processes and page tables, and what the machine needs to breathe.
constexpr uint64_t kMemoryMargin = uint64_t{64} << 20;
constexpr uint64_t kMemoryShare = 20;  // a twentieth
constexpr uint64_t kDiskMargin = uint64_t{16} << 20;
// A mover's threads, init, shim and husks.
constexpr uint64_t kTasksMargin = 64;
constexpr int64_t kClockBoundNs = 100'000'000;
constexpr size_t kNamesShown = 8;

// A peer may say anything.
int64_t difference(int64_t a, int64_t b) {
  int64_t result = 0;
  if (__builtin_sub_overflow(a, b, &result)) return a > b ? INT64_MAX : INT64_MIN;
  return result;
}

uint64_t mib(uint64_t bytes) { return (bytes + (uint64_t{1} << 20) - 1) >> 20; }

std::string some_of(const std::vector<std::string>& names) {
  const size_t shown = std::min(names.size(), kNamesShown);
  std::string text = fmt::format(
      "{}", fmt::join(names.begin(), names.begin() + static_cast<ptrdiff_t>(shown), ", "));
  if (shown < names.size()) text += fmt::format(" and {} more", names.size() - shown);
  return text;
}

class Judge {
 public:
  Judge(const Needs& needs, const Machine& machine, const std::string& node)
      : needs_(needs), machine_(machine), node_(node) {}

  std::vector<Reason> reasons() {
    cpu();
    vdso();
    kernel();
    room();
    if (std::find(machine_.addresses().begin(), machine_.addresses().end(), needs_.address()) !=
        machine_.addresses().end())
      add("address.taken",
          fmt::format("{} is an address of the node itself there", needs_.address()),
          "give the node another one, or start the service with another --ip");
    return std::move(reasons_);
  }

  std::vector<Reason> kernel_reasons() {
    kernel();
    return std::move(reasons_);
  }

 private:
  void add(const char* code, std::string reason, const char* way_out) {
    Reason& one = reasons_.emplace_back();
    one.set_code(code);
    one.set_object(node_);
    one.set_reason(std::move(reason));
    one.set_way_out(way_out);
  }

  void cpu() {
    const Cpu& here = needs_.cpu();
    const Cpu& there = machine_.cpu();
    const std::set<std::string> has(there.features().begin(), there.features().end());
    std::vector<std::string> missing;
    for (const std::string& each : here.features())
      if (!has.contains(each)) missing.push_back(each);
    if (!missing.empty())
      add("cpu.features",
          fmt::format("its CPU ({}) lacks {}, which programs on this one ({}) may be using",
                      there.model(), some_of(missing), here.model()),
          "move it to a node whose CPU has them, or start it on the node with the older CPU");
    if ((here.xfeatures() & ~there.xfeatures()) != 0)
      add("cpu.xfeatures",
          fmt::format("its kernel keeps the register state {:#x}, this one {:#x}",
                      there.xfeatures(), here.xfeatures()),
          "choose a node with that state, or switch it off on both (clearcpuid=)");
    else if (here.xsave_bytes() != there.xsave_bytes())
      add("cpu.xsave_size",
          fmt::format("its register state has {} bytes, this one's {}: it is in signal frames on "
                      "the program's stacks",
                      there.xsave_bytes(), here.xsave_bytes()),
          "choose a node with the same register state, or make it the same (clearcpuid=)");
  }

  void vdso() {
    const Vdso& here = needs_.vdso();
    const Vdso& there = machine_.vdso();
    if (here.code() == there.code()) return;
    std::map<std::string, uint64_t> has;
    for (const Vdso::Symbol& each : there.symbols()) has[each.name()] = each.offset();
    std::vector<std::string> moved;
    for (const Vdso::Symbol& each : here.symbols()) {
      const auto found = has.find(each.name());
      if (found == has.end() || found->second != each.offset()) moved.push_back(each.name());
    }
    const char* way_out = "run the same kernel on both nodes";
    if (!moved.empty() || here.code().size() != there.code().size())
      add("vdso.symbols",
          fmt::format("its kernel ({}) has other vDSO code than this one ({}): programs would call "
                      "{} at the wrong place",
                      machine_.kernel(), needs_.kernel(),
                      moved.empty() ? "something" : some_of(moved)),
          way_out);
    else
      add("vdso.code",
          fmt::format("its kernel ({}) has other vDSO code than this one ({}): a thread may stand "
                      "in it",
                      machine_.kernel(), needs_.kernel()),
          way_out);
  }

  void kernel() {
    for (const std::string& need : needs_.kernel_features())
      for (const Machine::MissingFeature& each : machine_.missing_features())
        if (each.name() == need)
          add("kernel.feature", fmt::format("its kernel has no {}: {}", need, each.why()),
              "install a kernel with it there, or choose another node");
  }

  void room() {
    const uint64_t memory =
        needs_.memory_bytes() + std::max(kMemoryMargin, needs_.memory_bytes() / kMemoryShare);
    if (memory > machine_.memory_available())
      add("memory.room",
          fmt::format("it has {} MiB of memory to give, the service needs {} MiB",
                      machine_.memory_available() >> 20, mib(memory)),
          "end something there, or choose another node");
    for (const HugePages& need : needs_.huge_pages()) {
      uint64_t has = 0;
      for (const HugePages& each : machine_.huge_pages())
        if (each.page_bytes() == need.page_bytes()) has = each.pages();
      if (need.pages() > has)
        add("memory.huge_pages",
            fmt::format("{} more huge pages of {} KiB can be had there, the service needs {}", has,
                        need.page_bytes() >> 10, need.pages()),
            "raise nr_hugepages there (/sys/kernel/mm/hugepages), or choose another node");
    }
    const uint64_t disk = needs_.disk_bytes() + kDiskMargin;
    if (disk > machine_.disk_available())
      add("disk.room",
          fmt::format("No space left on device: {} MiB are free where its layers are, the "
                      "service's needs {} MiB",
                      machine_.disk_available() >> 20, mib(disk)),
          "make room in the node's state folder, or choose another node");
    if (needs_.tasks() + kTasksMargin > machine_.tasks_available())
      add("pids.room",
          fmt::format("{} more processes and threads are allowed there ({}), the service needs {}",
                      machine_.tasks_available(), machine_.tasks_limit(),
                      needs_.tasks() + kTasksMargin),
          "raise that limit there, or choose another node");
    if (needs_.highest_pid() >= machine_.pid_max())
      add("pids.max",
          fmt::format("pids are below {} there (kernel.pid_max), the service has {}",
                      machine_.pid_max(), needs_.highest_pid()),
          "raise kernel.pid_max there");
  }

  const Needs& needs_;
  const Machine& machine_;
  const std::string& node_;
  std::vector<Reason> reasons_;
};

}  // namespace

std::vector<Reason> judge(const Needs& needs, const Machine& machine, const std::string& node) {
  return Judge(needs, machine, node).reasons();
}

std::vector<Reason> judge_kernel(const Needs& needs, const Machine& machine,
                                 const std::string& node) {
  return Judge(needs, machine, node).kernel_reasons();
}

std::vector<Reason> judge_clock(int64_t asked_ns, int64_t answered_ns, int64_t there_ns,
                                const std::string& node) {
  const int64_t behind = difference(asked_ns, there_ns);    // at least
  const int64_t ahead = difference(there_ns, answered_ns);  // at least
  const int64_t off = std::max(behind, ahead);
  if (off <= kClockBoundNs) return {};
  Reason reason;
  reason.set_code("clock.skew");
  reason.set_object(node);
  reason.set_reason(
      fmt::format("its CLOCK_REALTIME is {:.3f} s {} this one: the service would see "
                  "the time jump",
                  static_cast<double>(off) * 1e-9, behind > ahead ? "behind" : "ahead of"));
  reason.set_way_out("let both nodes keep their time by NTP");
  return {reason};
}

}  // namespace godwit::migration
