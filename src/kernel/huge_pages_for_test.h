// Huge pages for a test: the pool is larger while it runs. It is the machine's, so that changes of
// it are made one after the other.
#ifndef GODWIT_KERNEL_HUGE_PAGES_FOR_TEST_H_
#define GODWIT_KERNEL_HUGE_PAGES_FOR_TEST_H_

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <string>

#include "base/unique_fd.h"

namespace godwit::kernel {

class HugePagesForTest {
 public:
  explicit HugePagesForTest(uint64_t pages, uint64_t page_bytes = uint64_t{2} << 20)
      : path_("/sys/kernel/mm/hugepages/hugepages-" + std::to_string(page_bytes >> 10) +
              "kB/nr_hugepages"),
        wanted_(pages) {
    const auto lock = this->lock();
    const uint64_t before = size();
    std::ofstream(path_) << before + pages << std::flush;
    const uint64_t now = size();
    got_ = now > before ? now - before : 0;
  }
  ~HugePagesForTest() {
    const auto lock = this->lock();
    std::ofstream(path_) << size() - got_ << std::flush;
  }
  HugePagesForTest(const HugePagesForTest&) = delete;
  HugePagesForTest& operator=(const HugePagesForTest&) = delete;

  // False: this kernel has none to give (fragmentation, or no such size).
  bool there() const { return got_ == wanted_; }

 private:
  static UniqueFd lock() {
    UniqueFd folder(::open("/sys/kernel/mm/hugepages", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (folder) ::flock(folder.get(), LOCK_EX);
    return folder;
  }
  uint64_t size() const {
    uint64_t pages = 0;
    std::ifstream(path_) >> pages;
    return pages;
  }

  std::string path_;
  uint64_t wanted_;
  uint64_t got_ = 0;
};

}  // namespace godwit::kernel

#endif  // GODWIT_KERNEL_HUGE_PAGES_FOR_TEST_H_
