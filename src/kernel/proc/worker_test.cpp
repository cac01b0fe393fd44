#include <dirent.h>
#include <gtest/gtest.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <vector>

#include "base/unique_fd.h"
#include "kernel/proc/stat.h"

namespace godwit::kernel {
namespace {

std::vector<HostPid> own_tasks() {
  std::vector<HostPid> tasks;
  DIR* folder = ::opendir("/proc/self/task");
  while (const dirent* entry = ::readdir(folder))
    if (const int tid = std::atoi(entry->d_name); tid > 0) tasks.push_back({tid});
  ::closedir(folder);
  return tasks;
}

// A read that is to be made aside makes the kernel start one.
TEST(KernelWorker, ItIsToldFromThreadsOfTheProgram) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child > 0) {
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    return;
  }
  // One of the program's own that has such a name.
  ::prctl(PR_SET_NAME, "iou-wrk-1");
  io_uring_params params{};
  const int ring = static_cast<int>(::syscall(SYS_io_uring_setup, 4, &params));
  const int file = ::memfd_create("read", MFD_CLOEXEC);
  if (ring < 0 || file < 0) ::_exit(1);
  const size_t bytes = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
  auto* rings = static_cast<char*>(
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING));
  auto* entries =
      static_cast<io_uring_sqe*>(::mmap(nullptr, params.sq_entries * sizeof(io_uring_sqe),
                                        PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES));
  static char byte;
  entries[0].opcode = IORING_OP_READ;
  entries[0].flags = IOSQE_ASYNC;
  entries[0].fd = file;
  entries[0].addr = reinterpret_cast<uint64_t>(&byte);
  entries[0].len = 1;
  *reinterpret_cast<volatile uint32_t*>(rings + params.sq_off.tail) = 1;
  if (::syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, nullptr, 0) != 1)
    ::_exit(2);
  int workers = 0;
  for (const HostPid task : own_tasks()) workers += is_kernel_worker(task) ? 1 : 0;
  if (workers != 1) ::_exit(3);
  ::_exit(is_kernel_worker({::getpid()}) ? 4 : 0);
}

}  // namespace
}  // namespace godwit::kernel
