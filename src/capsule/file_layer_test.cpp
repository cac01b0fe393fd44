#include "capsule/file_layer.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include <algorithm>
#include <fstream>
#include <random>

#include "capsule/test_service.h"

namespace godwit::capsule {
namespace {

namespace fs = std::filesystem;

// Two services' folders, source and destination, without capsules.
class LayerTest : public testing::Test {
 protected:
  void SetUp() override {
    char dir[] = "/tmp/godwit-layer-XXXXXX";
    base_ = ::mkdtemp(dir);
    source_ = {base_ + "/source"};
    target_ = {base_ + "/target"};
    ASSERT_TRUE(make_service_dirs(source_).ok());
    ASSERT_TRUE(make_service_dirs(target_).ok());
  }
  void TearDown() override { fs::remove_all(base_); }

  std::string base_;
  ServicePaths source_;
  ServicePaths target_;
};

void write_file(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void expect_same_tree(const std::string& a_root, const LayerTreeListing& a,
                      const std::string& b_root, const LayerTreeListing& b) {
  std::map<uint64_t, std::string> a_first;
  std::map<uint64_t, std::string> b_first;
  for (const auto& [path, entry] : b) EXPECT_TRUE(a.contains(path)) << "too much: " << path;
  for (const auto& [path, entry] : a) {
    const auto found = b.find(path);
    if (found == b.end()) {
      ADD_FAILURE() << "missing: " << path;
      continue;
    }
    LayerNode left = entry.node;
    LayerNode right = found->second.node;
    const bool whiteout = S_ISCHR(left.mode()) && left.rdev() == 0;
    for (LayerNode* node : {&left, &right}) {
      node->set_atime_ns(0);
      if (whiteout) {
        node->set_mtime_ns(0);
        node->set_mode(S_IFCHR);
      }
    }
    EXPECT_EQ(left.ShortDebugString(), right.ShortDebugString()) << path;
    if (S_ISREG(left.mode())) {
      EXPECT_TRUE(content(a_root + "/" + path) == content(b_root + "/" + path)) << path;
    }
    if (!S_ISDIR(left.mode()) && !whiteout) {
      EXPECT_EQ(a_first.emplace(entry.inode, path).first->second,
                b_first.emplace(found->second.inode, path).first->second)
          << "hard links of " << path;
    }
  }
}

void expect_same(const ServicePaths& a, const ServicePaths& b) {
  const auto left = list_layer(a, nullptr);
  const auto right = list_layer(b, nullptr);
  ASSERT_STATUS_OK(left.status());
  ASSERT_STATUS_OK(right.status());
  expect_same_tree(a.upper(), left->upper, b.upper(), right->upper);
  expect_same_tree(a.shm(), left->shm, b.shm(), right->shm);
}

absl::StatusOr<LayerStatistics> move(LayerSource& source, bool frozen, LayerTarget& target) {
  return source.send_changes(frozen, [&](std::string_view state, std::span<const std::byte> data) {
    return target.apply(state, data);
  });
}

TEST_F(LayerTest, CarriesEveryKindWithAllItHas) {
  const std::string up = source_.upper();
  fs::create_directories(up + "/d/e");
  write_file(up + "/d/file", "text");
  fs::create_hard_link(up + "/d/file", up + "/d/e/other-name");
  fs::create_symlink("../nowhere", up + "/d/link");
  ASSERT_EQ(::mkfifo((up + "/d/fifo").c_str(), 0640), 0);
  ASSERT_EQ(::mknod((up + "/d/gone").c_str(), S_IFCHR, 0), 0);
  ASSERT_EQ(::mknod((up + "/d/null").c_str(), S_IFCHR | 0666, makedev(1, 3)), 0);
  ASSERT_EQ(::mknod((up + "/d/sock").c_str(), S_IFSOCK | 0755, 0), 0);
  ASSERT_EQ(::setxattr((up + "/d/e").c_str(), "trusted.overlay.opaque", "y", 1, 0), 0);
  ASSERT_EQ(::setxattr((up + "/d/e").c_str(), "trusted.overlay.origin", "x", 1, 0), 0);
  ASSERT_EQ(::setxattr((up + "/d/file").c_str(), "user.a", "value", 5, 0), 0);
  ASSERT_EQ(::lsetxattr((up + "/d/link").c_str(), "trusted.b", "", 0, 0), 0);
  ASSERT_EQ(::chown((up + "/d/file").c_str(), 12, 34), 0);
  ASSERT_EQ(::lchown((up + "/d/link").c_str(), 56, 78), 0);
  ASSERT_EQ(::chmod((up + "/d/file").c_str(), 06751), 0);
  ASSERT_EQ(::chmod((up + "/d").c_str(), 01712), 0);
  write_file(source_.shm() + "/seg", std::string(200'000, 'z'));
  const timespec times[2] = {{1000, 7}, {-5, 999'999'999}};
  for (const char* path : {"/d/file", "/d/link", "/d/e", "/d", ""}) {
    ASSERT_EQ(::utimensat(AT_FDCWD, (up + path).c_str(), times, AT_SYMLINK_NOFOLLOW), 0);
  }
  auto target = LayerTarget::bare(target_);
  LayerSource source(source_);
  ASSERT_STATUS_OK(move(source, true, *target).status());
  expect_same(source_, target_);
  char value[4];
  EXPECT_EQ(::getxattr((target_.upper() + "/d/e").c_str(), "trusted.overlay.origin", value, 4), -1);
}

TEST_F(LayerTest, KeepsHolesAndSendsChangedBlocksOnly) {
  const std::string path = source_.upper() + "/big";
  {
    const auto fd = kernel::open(path, O_CREAT | O_RDWR, 0600);
    ASSERT_EQ(::ftruncate(fd->get(), 64 << 20), 0);
    const std::string text(300'000, 'a');
    ASSERT_GT(::pwrite(fd->get(), text.data(), text.size(), 10 << 20), 0);
    ASSERT_EQ(::pwrite(fd->get(), "end", 3, (64 << 20) - 3), 3);
  }
  auto target = LayerTarget::bare(target_);
  LayerSource source(source_);
  auto sent = move(source, false, *target);
  ASSERT_STATUS_OK(sent.status());
  EXPECT_LT(sent->bytes, 1'000'000U);
  struct stat info {};
  ASSERT_EQ(::stat((target_.upper() + "/big").c_str(), &info), 0);
  EXPECT_LT(info.st_blocks * 512, 1 << 20);
  expect_same(source_, target_);
  {
    const auto fd = kernel::open(path, O_RDWR);
    ASSERT_EQ(::pwrite(fd->get(), "x", 1, (10 << 20) + 100), 1);
    ASSERT_EQ(::fallocate(fd->get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                          (10 << 20) + 131072, 131072),
              0);
    ASSERT_EQ(::ftruncate(fd->get(), (64 << 20) - 1), 0);
  }
  ASSERT_EQ(::stat((target_.upper() + "/big").c_str(), &info), 0);
  const ino_t inode = info.st_ino;
  sent = move(source, true, *target);
  ASSERT_STATUS_OK(sent.status());
  EXPECT_LE(sent->bytes, 2U * 65536);
  expect_same(source_, target_);
  ASSERT_EQ(::stat((target_.upper() + "/big").c_str(), &info), 0);
  EXPECT_EQ(info.st_ino, inode) << "who has it open keeps the right file";
}

TEST_F(LayerTest, SeesStoresIntoASharedMappingAfterARound) {
  const std::string path = source_.upper() + "/mapped";
  write_file(path, std::string(1 << 20, 'm'));
  const auto fd = kernel::open(path, O_RDWR);
  auto* const map = static_cast<char*>(
      ::mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd->get(), 0));
  ASSERT_NE(map, MAP_FAILED);
  map[5] = 'A';  // the page is writable and dirty when the round begins
  auto target = LayerTarget::bare(target_);
  LayerSource source(source_);
  // Until the file is older than the slack of the clock: then ctime alone decides.
  for (int i = 0; i < 3; ++i) {
    ASSERT_STATUS_OK(move(source, false, *target).status());
    ::usleep(30'000);
  }
  map[6] = 'B';
  const auto sent = move(source, true, *target);
  ASSERT_STATUS_OK(sent.status());
  EXPECT_EQ(sent->bytes, 65536U);
  expect_same(source_, target_);
  ::munmap(map, 1 << 20);
}

TEST_F(LayerTest, ARenameKeepsTheInode) {
  fs::create_directories(source_.upper() + "/a/b");
  write_file(source_.upper() + "/a/b/f", std::string(500'000, 'r'));
  auto target = LayerTarget::bare(target_);
  LayerSource source(source_);
  ASSERT_STATUS_OK(move(source, false, *target).status());
  struct stat before {};
  ASSERT_EQ(::stat((target_.upper() + "/a/b/f").c_str(), &before), 0);
  fs::rename(source_.upper() + "/a", source_.upper() + "/c");
  const auto sent = move(source, true, *target);
  ASSERT_STATUS_OK(sent.status());
  EXPECT_EQ(sent->bytes, 0U);
  expect_same(source_, target_);
  struct stat after {};
  ASSERT_EQ(::stat((target_.upper() + "/c/b/f").c_str(), &after), 0);
  EXPECT_EQ(after.st_ino, before.st_ino);
}

// Random changes, in rounds; each must leave both sides the same.
class Mutator {
 public:
  Mutator(std::string root, unsigned seed) : root_(std::move(root)), random_(seed) {}
  void step() {
    const std::string path = root_ + "/" + some_name();
    const std::string other = root_ + "/" + some_name();
    std::error_code error;
    switch (next() % 12) {
      case 0:
      case 1:
        fs::create_directories(path, error);
        break;
      case 2:
      case 3:
        write_file(path, std::string(next() % 200'000, static_cast<char>('a' + next() % 26)));
        break;
      case 4:
        std::ofstream(path, std::ios::binary | std::ios::app) << "appended";
        break;
      case 5:
        if (fs::is_regular_file(fs::symlink_status(path, error))) {
          fs::resize_file(path, next() % 300'000, error);
        }
        break;
      case 6:
        fs::remove_all(path, error);
        break;
      case 7:
        fs::rename(path, other, error);
        break;
      case 8:
        fs::create_hard_link(path, other, error);
        break;
      case 9:
        fs::create_symlink("to/" + other, path, error);
        break;
      case 10:
        if (::lchown(path.c_str(), next() % 9, next() % 9) == 0) {
          ::lsetxattr(path.c_str(), "trusted.t", "v", next() % 2, 0);
        }
        break;
      default:
        if (fs::is_regular_file(fs::symlink_status(path, error))) {
          const auto fd = kernel::open(path, O_WRONLY);
          if (fd.ok()) {
            [[maybe_unused]] const ssize_t n =
                ::pwrite(fd->get(), "patch", 5, static_cast<off_t>(next() % 200'000));
          }
        }
    }
  }

 private:
  std::string some_name() {
    std::string name;
    for (unsigned depth = 1 + next() % 3; depth > 0; --depth) {
      name += (name.empty() ? "" : "/") + std::string(1, static_cast<char>('a' + next() % 5));
    }
    return name;
  }
  unsigned next() { return static_cast<unsigned>(random_()); }
  std::string root_;
  std::mt19937 random_;
};

TEST_F(LayerTest, RandomChangesInRoundsEndTheSame) {
  for (unsigned seed = 1; seed <= 12; ++seed) {
    TearDown();
    SetUp();
    Mutator mutator(source_.upper(), seed);
    auto target = LayerTarget::bare(target_);
    LayerSource source(source_);
    for (int round = 0; round < 12; ++round) {
      for (int i = 0; i < 40; ++i) mutator.step();
      ASSERT_STATUS_OK(move(source, round % 3 == 2, *target).status());
      expect_same(source_, target_);
      if (HasFailure()) FAIL() << "seed " << seed << " round " << round;
    }
  }
}

TEST_F(LayerTest, RefusesWhatLeadsOutOfTheLayer) {
  auto target = LayerTarget::bare(target_);
  fs::create_symlink("/etc", target_.upper() + "/out");
  const auto apply = [&](const std::string& path, const std::string& link) {
    LayerChange change;
    change.set_tree(LAYER_UPPER);
    change.set_path(path);
    if (link.empty()) {
      change.mutable_make()->mutable_node()->set_mode(S_IFREG);
      change.mutable_make()->set_replace(true);
    } else {
      change.set_link(link);
    }
    return target->apply(change.SerializeAsString(), {});
  };
  for (const char* path : {"..", "../x", "a/../../x", "/etc/x", "a//b", ".", "out/x", ""}) {
    EXPECT_FALSE(apply(path, "").ok()) << path;
  }
  EXPECT_FALSE(apply("y", "../../z").ok());
  EXPECT_FALSE(apply("y", "out/passwd").ok());
  EXPECT_FALSE(apply(std::string("a\0b", 3), "").ok());
  EXPECT_TRUE(apply("fine", "").ok());
  EXPECT_FALSE(target->apply("\xff\xff garbage", {}).ok());
  LayerChange change;
  change.set_tree(LAYER_UPPER);
  change.set_path("fine");
  change.set_write(uint64_t{1} << 63);
  EXPECT_FALSE(target->apply(change.SerializeAsString(), {}).ok());
  EXPECT_NE(::access("/etc/x", F_OK), 0);
}

// The whole way: a service writes, its layer is carried while it runs, a replica is built on it,
// what changed since comes through the replica's own view.
TEST(LayerMoveTest, TheReplicasLayerIsTheServices) {
  TestService from;
  TestService to;
  auto service = from.sh(
      "cd /var; mkdir kept; echo one > kept/a; cp /etc/passwd kept/b; rm -r /usr/share/doc/bash;"
      "echo s > /dev/shm/seg; echo first; until test -e /dev/shm/go; do sleep 0.01; done;"
      "echo two >> kept/a; mv kept/b kept/c; rm /etc/group; echo new > /etc/services;"
      "rm -r /usr/share/doc/tar; mkdir /usr/share/doc/tar; echo t > /usr/share/doc/tar/x;"
      "mkdir -p kept/d/e; ln kept/a kept/d/e/link; ln -s a kept/sym; chown 7:8 kept/c; chmod 4711 "
      "kept/c; rm /dev/shm/go; echo s2 > /dev/shm/seg; touch -d @5 kept; echo second; exec sleep "
      "1000");
  ASSERT_STATUS_OK(service.status());
  ASSERT_STATUS_OK(from.await_log("first"));
  const ServicePaths target_paths = to.node().service("svc");
  ASSERT_STATUS_OK(make_service_dirs(target_paths));
  LayerSource source(service->paths(), service->work());
  {
    auto bare = LayerTarget::bare(target_paths);
    ASSERT_STATUS_OK(move(source, false, *bare).status());
  }
  to.options().replica = true;
  auto replica = to.create();
  ASSERT_STATUS_OK(replica.status());
  const HostPid init{replica->info()->init_pid()};
  // A file that is open there already is brought up to date, not replaced.
  const auto open_there =
      kernel::open(fmt::format("/proc/{}/root/var/kept/a", init.value), O_RDONLY);
  ASSERT_STATUS_OK(open_there.status());
  write_file(service->paths().shm() + "/go", "");
  ASSERT_STATUS_OK(from.await_log("second"));
  ASSERT_STATUS_OK(service->freeze(soon()));
  auto merged = LayerTarget::merged(init);
  ASSERT_STATUS_OK(merged.status());
  ASSERT_STATUS_OK(move(source, true, *merged).status());
  char text[16] = {};
  EXPECT_EQ(::pread(open_there->get(), text, sizeof text, 0), 8);
  EXPECT_STREQ(text, "one\ntwo\n");
  expect_same(service->paths(), target_paths);
}

TEST_F(LayerTest, AThousandUnchangedFilesCostLittle) {
  for (int i = 0; i < 1000; ++i) {
    write_file(source_.upper() + "/f" + std::to_string(i), "some text " + std::to_string(i));
  }
  auto target = LayerTarget::bare(target_);
  LayerSource source(source_);
  ASSERT_STATUS_OK(move(source, false, *target).status());
  ::usleep(30'000);
  ASSERT_STATUS_OK(move(source, false, *target).status());
  const int64_t start = clock_ns(CLOCK_THREAD_CPUTIME_ID);
  const auto sent = move(source, true, *target);
  RecordProperty("last_cpu_us",
                 static_cast<int>((clock_ns(CLOCK_THREAD_CPUTIME_ID) - start) / 1000));
  ASSERT_STATUS_OK(sent.status());
  EXPECT_EQ(sent->entries, 1002U);
  EXPECT_EQ(sent->changes, 0U);
}

}  // namespace
}  // namespace godwit::capsule
