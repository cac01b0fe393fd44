#include "resource/regular_file/regular_file.h"

#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "resource/file_description.h"
#include "resource/regular_file/regular_file.pb.h"
#include "resource/testing_contexts.h"

namespace godwit::resource {
namespace {

using testing::FakeCaptureContext;
using testing::FakeRestoreContext;
using testing::open_file;

class RegularFile : public ::testing::Test {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/godwit-file-XXXXXX";
    ASSERT_NE(::mkdtemp(folder), nullptr);
    folder_ = folder;
    write("file", "0123456789");
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  UniqueFd open(const std::string& name, int flags) const {
    UniqueFd fd(::open(path(name).c_str(), flags | O_CLOEXEC, 0640));
    EXPECT_TRUE(fd) << name;
    return fd;
  }
  void write(const std::string& name, const std::string& text) {
    const UniqueFd fd = open(name, O_WRONLY | O_CREAT);
    ASSERT_EQ(::write(fd.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  std::vector<Refusal> refusals(const OpenFile& file) const {
    std::vector<Refusal> found;
    const absl::Status s = kind_.precheck(file, FakeCaptureContext(), found);
    EXPECT_TRUE(s.ok()) << s;
    return found;
  }
  // Captures, makes anew, captures again: the same.
  UniqueFd round_trip(int fd, std::string* state_out = nullptr) const {
    const FakeCaptureContext source;
    FakeRestoreContext destination;
    const OpenFile file = open_file(fd);
    EXPECT_TRUE(kind_.recognise(file));
    EXPECT_TRUE(refusals(file).empty()) << refusals(file)[0].reason;
    const auto state = kind_.capture(file, source);
    EXPECT_TRUE(state.ok()) << state.status();
    auto made = kind_.create(1, state.value_or(""), destination);
    EXPECT_TRUE(made.ok()) << made.status();
    if (!made.ok()) return UniqueFd();
    const auto again = kind_.capture(open_file(made->get()), source);
    EXPECT_TRUE(again.ok()) << again.status();
    RegularFileState a;
    RegularFileState b;
    EXPECT_TRUE(a.ParseFromString(*state) && b.ParseFromString(*again));
    if (a.has_unnamed()) {
      a.mutable_unnamed()->clear_inode();
      b.mutable_unnamed()->clear_inode();
      a.mutable_unnamed()->clear_object();
      b.mutable_unnamed()->clear_object();
    }
    EXPECT_EQ(a.DebugString(), b.DebugString());
    if (state_out != nullptr) *state_out = *state;
    return *std::move(made);
  }

  std::string folder_;
  const FileKind& kind_ = regular_file_kind();
};

TEST_F(RegularFile, PositionAndEveryFlag) {
  for (const int flags : {O_RDONLY, O_WRONLY | O_APPEND, O_RDWR | O_NONBLOCK | O_NOATIME,
                          O_RDWR | O_SYNC, O_RDWR | O_DSYNC | O_NOFOLLOW, O_RDONLY | O_DIRECT}) {
    const UniqueFd fd = open("file", flags);
    ASSERT_EQ(::lseek(fd.get(), 4, SEEK_SET), 4);
    const UniqueFd made = round_trip(fd.get());
    EXPECT_EQ(::fcntl(made.get(), F_GETFL), ::fcntl(fd.get(), F_GETFL)) << flags;
    EXPECT_EQ(::lseek(made.get(), 0, SEEK_CUR), 4);
    if ((flags & (O_ACCMODE | O_DIRECT)) == O_RDONLY) {
      char c = 0;
      EXPECT_EQ(::read(made.get(), &c, 1), 1);
      EXPECT_EQ(c, '4');
      EXPECT_EQ(::lseek(fd.get(), 0, SEEK_CUR), 4);
    }
  }
  const UniqueFd far = open("file", O_RDWR);
  ASSERT_EQ(::lseek(far.get(), int64_t{1} << 40, SEEK_SET), int64_t{1} << 40);
  EXPECT_EQ(::lseek(round_trip(far.get()).get(), 0, SEEK_CUR), int64_t{1} << 40);
}

TEST_F(RegularFile, CreationFlagsAreNotRepeated) {
  const UniqueFd fd = open("new\n file", O_RDWR | O_CREAT | O_EXCL | O_TRUNC);
  ASSERT_EQ(::write(fd.get(), "kept", 4), 4);
  const UniqueFd made = round_trip(fd.get());
  char text[8] = {};
  EXPECT_EQ(::pread(made.get(), text, sizeof text, 0), 4);
  EXPECT_STREQ(text, "kept");
}

TEST_F(RegularFile, FoldersAndPathOnlyDescriptors) {
  const UniqueFd folder = open("", O_RDONLY | O_DIRECTORY);
  const UniqueFd made = round_trip(folder.get());
  EXPECT_EQ(::faccessat(made.get(), "file", R_OK, 0), 0);
  ASSERT_EQ(::symlink("nowhere", path("link").c_str()), 0);
  ASSERT_EQ(::mkfifo(path("fifo").c_str(), 0600), 0);
  for (const auto& [name, flags] : {std::pair("file", 0), std::pair("", int{O_DIRECTORY}),
                                    std::pair("link", int{O_NOFOLLOW}), std::pair("fifo", 0)}) {
    const UniqueFd place = open(name, O_PATH | flags);
    const UniqueFd copy = round_trip(place.get());
    struct stat a {};
    struct stat b {};
    ASSERT_EQ(::fstat(place.get(), &a), 0);
    ASSERT_EQ(::fstat(copy.get(), &b), 0);
    EXPECT_EQ(a.st_ino, b.st_ino) << name;
    EXPECT_NE(::fcntl(copy.get(), F_GETFL) & O_PATH, 0);
  }
}

TEST_F(RegularFile, AFileWithoutANameBringsItsContent) {
  // As shm_open(3) opens.
  UniqueFd removed = open("gone", O_RDWR | O_CREAT | O_NOFOLLOW);
  ASSERT_EQ(::pwrite(removed.get(), "start", 5, 0), 5);
  ASSERT_EQ(::pwrite(removed.get(), "end", 3, 1 << 20), 3);
  ASSERT_EQ(::fchmod(removed.get(), 0604), 0);
  ASSERT_EQ(::fchown(removed.get(), 12, 34), 0);
  ASSERT_EQ(::lseek(removed.get(), 3, SEEK_SET), 3);
  ASSERT_EQ(::unlink(path("gone").c_str()), 0);
  std::string state;
  const UniqueFd made = round_trip(removed.get(), &state);
  EXPECT_LT(state.size(), 20'000U);  // the hole is not carried
  struct stat st {};
  ASSERT_EQ(::fstat(made.get(), &st), 0);
  EXPECT_EQ(st.st_nlink, 0U);
  EXPECT_EQ(st.st_uid, 12U);
  EXPECT_EQ(st.st_mode & 07777, 0604U);
  char text[8] = {};
  EXPECT_EQ(::pread(made.get(), text, sizeof text, 1 << 20), 3);
  EXPECT_STREQ(text, "end");

  const UniqueFd temporary = open("", O_TMPFILE | O_WRONLY);
  ASSERT_EQ(::write(temporary.get(), "secret", 6), 6);
  FakeRestoreContext destination;
  const auto bytes = kind_.capture(open_file(temporary.get()), FakeCaptureContext());
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  const auto again = kind_.create(1, *bytes, destination);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(::lseek(again->get(), 0, SEEK_CUR), 6);
  EXPECT_EQ(::fcntl(again->get(), F_GETFL) & O_ACCMODE, O_WRONLY);
  const auto reader = reopen(again->get(), O_RDONLY);
  char secret[8] = {};
  EXPECT_EQ(::read(reader->get(), secret, sizeof secret), 6);
  EXPECT_STREQ(secret, "secret");
  // Removed between two epochs: made anew, not changed.
  RegularFileState named;
  named.set_path("/x");
  named.set_type(S_IFREG);
  EXPECT_FALSE(*kind_.update(again->get(), named.SerializeAsString(), *bytes, destination));
}

TEST_F(RegularFile, TwoDescriptionsOfAFileWithoutANameShareIt) {
  const UniqueFd a = open("shared", O_RDWR | O_CREAT);
  const UniqueFd b = open("shared", O_RDONLY);
  ASSERT_EQ(::unlink(path("shared").c_str()), 0);
  ASSERT_EQ(::write(a.get(), "one", 3), 3);
  FakeCaptureContext source;
  const OpenFile& first = source.add(a.get(), 1);
  const OpenFile& second = source.add(b.get(), 2);
  const auto s1 = kind_.capture(first, source);
  const auto s2 = kind_.capture(second, source);
  ASSERT_TRUE(s1.ok() && s2.ok());
  for (const bool backwards : {false, true}) {
    FakeRestoreContext destination;
    const auto make = [&](uint64_t id) {
      auto fd = kind_.create(id, id == 1 ? *s1 : *s2, destination);
      ASSERT_TRUE(fd.ok()) << fd.status();
      destination.made[id] = *std::move(fd);
    };
    make(backwards ? 2 : 1);
    make(backwards ? 1 : 2);
    ASSERT_EQ(::pwrite(destination.description(1), "two", 3, 3), 3);
    char text[8] = {};
    EXPECT_EQ(::pread(destination.description(2), text, sizeof text, 0), 6);
    EXPECT_STREQ(text, "onetwo");
  }
}

// What others are told of the locks of a file: type and range of what is in the way of a whole one,
// from each byte on that this is known of.
std::string locks_in_the_way(int fd) {
  std::string all;
  for (off_t at = 0; at < 64; ++at) {
    struct flock probe {};
    probe.l_type = F_WRLCK;
    probe.l_start = at;
    probe.l_len = 1;
    EXPECT_EQ(::fcntl(fd, F_OFD_GETLK, &probe), 0);
    all += probe.l_type == F_UNLCK ? '.' : probe.l_type == F_WRLCK ? 'W' : 'r';
  }
  return all;
}

TEST_F(RegularFile, LocksOfTheDescription) {
  const FakeCaptureContext source;
  FakeRestoreContext destination;
  write("other", "0123456789");
  const UniqueFd stranger = open("file", O_RDWR);
  for (const int kind : {LOCK_EX, LOCK_SH}) {
    UniqueFd locked = open("file", O_RDWR);
    ASSERT_EQ(::flock(locked.get(), kind), 0);
    struct flock range {};
    range.l_type = F_WRLCK;
    range.l_start = 5;
    range.l_len = 10;
    ASSERT_EQ(::fcntl(locked.get(), F_OFD_SETLK, &range), 0);
    range.l_type = F_RDLCK;
    range.l_start = 30;
    range.l_len = 0;
    ASSERT_EQ(::fcntl(locked.get(), F_OFD_SETLK, &range), 0);
    const std::string seen = locks_in_the_way(stranger.get());
    const auto state = kind_.capture(open_file(locked.get()), source);
    ASSERT_TRUE(state.ok()) << state.status();
    EXPECT_TRUE(kind_.finishes(*state));
    RegularFileState captured;
    ASSERT_TRUE(captured.ParseFromString(*state));
    ASSERT_EQ(captured.flocks_size(), 1);
    EXPECT_EQ(captured.flocks(0).exclusive(), kind == LOCK_EX);
    const auto made = kind_.create(1, *state, destination);
    ASSERT_TRUE(made.ok()) << made.status();
    tracee::Batch batch;
    // While the source has them nobody else gets them.
    EXPECT_EQ(kind_.finish(made->get(), *state, {1}, 3, batch, destination).status().code(),
              absl::StatusCode::kUnavailable);
    locked.reset();
    EXPECT_NE(locks_in_the_way(stranger.get()), seen);
    tracee::Batch flock_call;
    ASSERT_TRUE(kind_.finish(made->get(), *state, {1}, 3, flock_call, destination).ok());
    EXPECT_EQ(flock_call.size(), 1U);  // the subject of the system tests runs it
    EXPECT_EQ(locks_in_the_way(stranger.get()), seen);
  }
  const UniqueFd plain = open("other", O_RDWR);
  EXPECT_FALSE(kind_.finishes(kind_.capture(open_file(plain.get()), source).value()));
}

TEST_F(RegularFile, WhatCannotMoveIsRefusedByName) {
  const FakeCaptureContext source;
  write("leased", "x");
  const UniqueFd leased = open("leased", O_RDONLY);
  ASSERT_EQ(::fcntl(leased.get(), F_SETLEASE, F_RDLCK), 0);
  ASSERT_EQ(refusals(open_file(leased.get())).size(), 1U);
  EXPECT_EQ(refusals(open_file(leased.get()))[0].code, "fd.lease");
  EXPECT_FALSE(kind_.capture(open_file(leased.get()), source).ok());
  ASSERT_EQ(::fcntl(leased.get(), F_SETLEASE, F_UNLCK), 0);

  ASSERT_EQ(::mkdir(path("folder").c_str(), 0700), 0);
  const UniqueFd folder = open("folder", O_RDONLY | O_DIRECTORY);
  ASSERT_EQ(::rmdir(path("folder").c_str()), 0);
  EXPECT_EQ(refusals(open_file(folder.get()))[0].code, "fd.deleted");

  write("a", "a");
  const UniqueFd linked = open("a", O_RDONLY);
  ASSERT_EQ(::link(path("a").c_str(), path("b").c_str()), 0);
  ASSERT_EQ(::unlink(path("a").c_str()), 0);
  EXPECT_EQ(refusals(open_file(linked.get()))[0].code, "fd.deleted");
  EXPECT_FALSE(kind_.capture(open_file(linked.get()), source).ok());

  const UniqueFd of_process(::open("/proc/thread-self/stat", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(refusals(open_file(of_process.get()))[0].code, "fd.proc");

  OpenFile elsewhere = open_file(leased.get());
  elsewhere.fdinfo = "pos:\t0\nflags:\t02\nmnt_id:\t999999\nino:\t1\n";
  EXPECT_EQ(refusals(elsewhere)[0].code, "fd.outside");
  write("c (deleted)", "c");  // a name like any other
  const UniqueFd odd = open("c (deleted)", O_RDONLY);
  EXPECT_TRUE(refusals(open_file(odd.get())).empty());
  EXPECT_TRUE(kind_.capture(open_file(odd.get()), source).ok());
}

TEST_F(RegularFile, UpdateFollowsThePositionAndNoticesAReplacedFile) {
  FakeRestoreContext destination;
  const FakeCaptureContext source;
  const UniqueFd fd = open("file", O_RDWR);
  const auto before = kind_.capture(open_file(fd.get()), source);
  const auto made = kind_.create(1, *before, destination);
  ASSERT_TRUE(made.ok());
  ASSERT_EQ(::lseek(fd.get(), 7, SEEK_SET), 7);
  ASSERT_EQ(::fcntl(fd.get(), F_SETFL, O_APPEND), 0);
  const auto now = kind_.capture(open_file(fd.get()), source);
  EXPECT_TRUE(*kind_.update(made->get(), *before, *now, destination));
  EXPECT_EQ(*kind_.capture(open_file(made->get()), source), *now);
  write("other", "other");
  ASSERT_EQ(::rename(path("other").c_str(), path("file").c_str()), 0);
  EXPECT_FALSE(*kind_.update(made->get(), *before, *now, destination));
}

TEST_F(RegularFile, HostileStateIsAnError) {
  FakeRestoreContext destination;
  RegularFileState state;
  state.set_path("relative");
  EXPECT_FALSE(kind_.create(1, state.SerializeAsString(), destination).ok());
  state.set_path(path("file"));
  state.set_type(S_IFDIR);
  EXPECT_FALSE(kind_.create(1, state.SerializeAsString(), destination).ok());
  state.set_type(S_IFREG);
  state.set_size(3);
  state.mutable_unnamed()->set_has_content(true);
  auto& extent = *state.mutable_unnamed()->add_extents();
  extent.set_offset(UINT64_MAX);
  extent.set_data("xy");
  EXPECT_FALSE(kind_.create(1, state.SerializeAsString(), destination).ok());
  EXPECT_FALSE(kind_.create(1, "\xff", destination).ok());
}

}  // namespace
}  // namespace godwit::resource
