// Uses files in every way that a move has to keep right, and says on each connection whether what
// it sees of them is what it saw at the start.
//
//   file_user PORT FOLDER     FOLDER has: deep/private shared open equal
//
// An answer is "OK\n", or a line for each thing that is wrong and "END\n".
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

namespace {

constexpr size_t kWritten = 4096;  // of the private mapping: its second page
constexpr off_t kOffset = 1234;

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::exit(1);
}

std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class Mapped {
 public:
  Mapped(const std::string& path, int flags, int protection) : first_(content(path)) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) die(path.c_str());
    void* at = ::mmap(nullptr, first_.size(), protection, flags, fd, 0);
    if (at == MAP_FAILED) die("mmap");
    ::close(fd);
    bytes_ = static_cast<char*>(at);
  }
  void write(size_t at, std::string_view text) {
    std::memcpy(bytes_ + at, text.data(), text.size());
    first_.replace(at, text.size(), text);
  }
  bool right() const { return std::string_view(bytes_, first_.size()) == first_; }

 private:
  std::string first_;
  char* bytes_ = nullptr;
};

class Opened {
 public:
  explicit Opened(const std::string& path) : path_(path), first_(content(path)) {
    fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ < 0 || ::lseek(fd_, kOffset, SEEK_SET) != kOffset) die(path.c_str());
  }
  bool right() const {
    std::string rest(first_.size(), '\0');
    const ssize_t n = ::read(fd_, rest.data(), rest.size());
    if (n < 0 || ::lseek(fd_, kOffset, SEEK_SET) != kOffset) return false;
    rest.resize(static_cast<size_t>(n));
    return rest == first_.substr(kOffset) && content(path_) == first_;
  }

 private:
  std::string path_;
  std::string first_;
  int fd_ = -1;
};

std::string line_of(const struct stat& s) {
  char text[200];
  std::snprintf(text, sizeof text, "mode %o owner %u:%u size %lld mtime %lld.%09ld", s.st_mode,
                s.st_uid, s.st_gid, static_cast<long long>(s.st_size),
                static_cast<long long>(s.st_mtim.tv_sec), s.st_mtim.tv_nsec);
  return text;
}

std::string stat_text(const std::string& path) {
  struct stat s {};
  return ::stat(path.c_str(), &s) == 0 ? line_of(s) : "not there";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::string folder = argv[2];
  Mapped own(folder + "/deep/private", MAP_PRIVATE, PROT_READ | PROT_WRITE);
  own.write(kWritten, "written by the program");
  const Mapped shared(folder + "/shared", MAP_SHARED, PROT_READ);
  const Opened opened(folder + "/open");
  const Opened equal(folder + "/equal");
  const std::string looks = stat_text(folder + "/open");
  const volatile double two = 2;
  const double root = std::sqrt(two) + std::pow(two, 0.1);

  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(std::atoi(argv[1])));
  if (::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener, 8) != 0)
    die("listen");
  for (;;) {
    const int client = ::accept(listener, nullptr, nullptr);
    if (client < 0) continue;
    std::string wrong;
    if (!own.right()) wrong += "private mapping\n";
    if (!shared.right()) wrong += "shared mapping\n";
    if (!opened.right()) wrong += "open file\n";
    if (!equal.right()) wrong += "equal file\n";
    if (stat_text(folder + "/open") != looks)
      wrong += "open file: " + stat_text(folder + "/open") + ", not " + looks + "\n";
    if (std::sqrt(two) + std::pow(two, 0.1) != root) wrong += "library\n";
    if (content("/proc/self/maps").find("(deleted)") != std::string::npos)
      wrong += "a deleted file is mapped\n";
    const std::string answer = wrong.empty() ? "OK\n" : wrong + "END\n";
    (void)!::write(client, answer.data(), answer.size());
    ::close(client);
  }
}
