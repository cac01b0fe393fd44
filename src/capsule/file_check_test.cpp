// Source and destination of the comparison, joined without a stream between them.
#include "capsule/file_check.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "capsule/file_layer.h"
#include "capsule/file_offers.h"
#include "capsule/test_service.h"

namespace godwit::capsule {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;

class FileCheckTest : public testing::Test {
 protected:
  void SetUp() override {
    char dir[] = "/tmp/godwit-files-XXXXXX";
    base_ = ::mkdtemp(dir);
    here_ = base_ + "/here";
    source_ = {base_ + "/source"};
    target_ = {base_ + "/target"};
    fs::create_directory(here_);
    ASSERT_STATUS_OK(make_service_dirs(source_));
    ASSERT_STATUS_OK(make_service_dirs(target_));
    there_ = target_.upper();  // stands for the merged view
    auto layer = LayerTarget::bare(target_);
    ASSERT_STATUS_OK(layer.status());
    layer_ = std::make_unique<LayerTarget>(*std::move(layer));
    offers_ = std::make_unique<FileOffers>(files(here_, source_));
    check_ = std::make_unique<FileCheck>(files(there_, {base_ + "/nothing"}));
  }
  void TearDown() override { fs::remove_all(base_); }

  CapsuleFiles files(const std::string& root, const ServicePaths& paths) {
    CapsuleSpec spec;
    spec.set_rootfs(root);
    auto opened = CapsuleFiles::open_at(root, spec, paths, HostPid{::getpid()}, base_ + "/hashes");
    EXPECT_TRUE(opened.ok()) << opened.status();
    return *std::move(opened);
  }
  static void write(const std::string& path, const std::string& text) {
    fs::create_directories(fs::path(path).parent_path());
    std::ofstream(path, std::ios::binary) << text;
  }
  static std::string content(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  static struct stat info(const std::string& path) {
    struct stat result {};
    EXPECT_EQ(::lstat(path.c_str(), &result), 0) << path;
    return result;
  }
  FileUse use(const std::string& path, bool mapped = false) const {
    FileUse one{path, mapped, "", 0, 0};
    one.device = info(here_ + path).st_dev;
    one.inode = info(here_ + path).st_ino;
    return one;
  }
  FileSink sink() {
    FileSink to;
    to.section = [this](uint64_t id, std::string_view state) {
      ++sections_;
      return check_->offered(id, state);
    };
    to.removed = [this](uint64_t id) {
      ++removed_;
      check_->withdrawn(id);
      return absl::OkStatus();
    };
    to.blocks = [this](std::string_view state, std::span<const std::byte> data) {
      return layer_->apply(state, data);
    };
    return to;
  }
  // A round: what differed, as the destination says it.
  absl::StatusOr<std::vector<std::string>> round(std::vector<FileUse> uses, bool frozen = false) {
    GW_RETURN_IF_ERROR(offers_->update(uses, frozen, sink()).status());
    GW_ASSIGN_OR_RETURN(const auto differences, check_->differences());
    std::vector<WantedFile> wanted;
    std::vector<std::string> said;
    for (const FileDifference& one : differences) {
      wanted.push_back(check_->want(one));
      said.push_back(one.path + " " + one.what);
    }
    GW_RETURN_IF_ERROR(offers_->carry(wanted, sink()));
    GW_ASSIGN_OR_RETURN(const auto left, check_->differences());
    EXPECT_TRUE(left.empty()) << left[0].path << " " << left[0].what;
    return said;
  }

  std::string base_, here_, there_;
  ServicePaths source_, target_;
  std::unique_ptr<LayerTarget> layer_;
  std::unique_ptr<FileOffers> offers_;
  std::unique_ptr<FileCheck> check_;
  int sections_ = 0;
  int removed_ = 0;
};

TEST_F(FileCheckTest, WhatIsEqualIsNotCarried) {
  for (const std::string& root : {here_, there_}) write(root + "/lib/equal", "equal");
  const auto said = round({use("/lib/equal", true)});
  ASSERT_STATUS_OK(said.status());
  EXPECT_THAT(*said, IsEmpty());
  EXPECT_EQ(offers_->carried(), 0U);
}

TEST_F(FileCheckTest, WhatIsMissingOrDifferentComesWithAllItHas) {
  write(here_ + "/a/deep/missing", std::string(3'000'000, 'm'));
  write(here_ + "/a/shorter", "0123456789");
  write(here_ + "/a/other", "0123456789");
  write(here_ + "/a/mode", "0123456789");
  write(here_ + "/a/link", "0123456789");
  write(there_ + "/a/shorter", "0123");
  write(there_ + "/a/other", "012345678x");
  write(there_ + "/a/mode", "0123456789");
  fs::create_symlink("mode", there_ + "/a/link");
  ASSERT_EQ(::chmod((here_ + "/a/deep").c_str(), 01750), 0);
  ASSERT_EQ(::chown((here_ + "/a/deep").c_str(), 7, 8), 0);
  ASSERT_EQ(::chmod((there_ + "/a").c_str(), 0711), 0);
  const std::string missing = here_ + "/a/deep/missing";
  ASSERT_EQ(::truncate(missing.c_str(), 9'000'001), 0);  // and a hole
  ASSERT_EQ(::chown(missing.c_str(), 12, 34), 0);
  ASSERT_EQ(::chmod(missing.c_str(), 04751), 0);
  ASSERT_EQ(::setxattr(missing.c_str(), "user.note", "kept", 4, 0), 0);
  const timespec times[2] = {{1000, 7}, {2000, 123'456'789}};
  ASSERT_EQ(::utimensat(AT_FDCWD, missing.c_str(), times, 0), 0);
  ASSERT_EQ(::chmod((here_ + "/a/mode").c_str(), 0600), 0);

  const auto said = round({use("/a/deep/missing", true), use("/a/shorter"), use("/a/other"),
                           use("/a/mode", true), use("/a/link")});
  ASSERT_STATUS_OK(said.status());
  ASSERT_EQ(said->size(), 5U);
  EXPECT_EQ((*said)[0], "/a/deep/missing is missing here");
  EXPECT_EQ((*said)[1], "/a/shorter is another one here: 4 bytes, not 10");
  EXPECT_EQ((*said)[2], "/a/other is another one here, also of 10 bytes");
  EXPECT_THAT((*said)[3], HasSubstr("/a/mode has mode 644 and owner 0:0 here, not 600 and 0:0"));
  EXPECT_EQ((*said)[4], "/a/link is not a regular file here");
  for (const char* path : {"/a/deep/missing", "/a/shorter", "/a/other", "/a/mode", "/a/link"}) {
    EXPECT_TRUE(content(here_ + path) == content(there_ + path)) << path;
    const struct stat a = info(here_ + path);
    const struct stat b = info(there_ + path);
    EXPECT_EQ(a.st_mode, b.st_mode) << path;
    EXPECT_EQ(a.st_uid, b.st_uid) << path;
    EXPECT_EQ(a.st_gid, b.st_gid) << path;
    EXPECT_EQ(stamp_of(a).mtime_ns, stamp_of(b).mtime_ns) << path;
  }
  EXPECT_LT(info(there_ + "/a/deep/missing").st_blocks, 9'000'001 / 512);
  char note[8] = {};
  EXPECT_EQ(::getxattr((there_ + "/a/deep/missing").c_str(), "user.note", note, sizeof note), 4);
  EXPECT_EQ(info(there_ + "/a/deep").st_mode & 07777, 01750U);
  EXPECT_EQ(info(there_ + "/a/deep").st_uid, 7U);
  EXPECT_EQ(info(there_ + "/a").st_mode & 07777, 0711U);  // was there: as it was
  EXPECT_EQ(offers_->carried(), 5U);
}

TEST_F(FileCheckTest, TheFreezeLooksAtNothingThatItKnows) {
  for (const std::string& root : {here_, there_}) write(root + "/f", "text");
  const FileUse known = use("/f", true);
  ASSERT_STATUS_OK(round({known}).status());
  const uint64_t hashed = offers_->files().hashes().files_hashed();
  const int sections = sections_;
  ASSERT_STATUS_OK(round({known}, true).status());
  EXPECT_EQ(offers_->files().hashes().files_hashed(), hashed);
  EXPECT_EQ(sections_, sections);
  // What is new, and what has changed, is.
  write(here_ + "/new", "new");
  write(here_ + "/f", "changed!");
  const auto said = round({use("/f"), use("/new")}, true);
  EXPECT_FALSE(said.ok());  // mapped from the node's own file
  EXPECT_THAT(std::string(message_of(said.status())), HasSubstr("/f: was changed"));
}

TEST_F(FileCheckTest, AFileThatChangesBetweenRoundsIsComparedAnew) {
  for (const std::string& root : {here_, there_}) write(root + "/open", "text");
  write(here_ + "/mapped", "text");
  const std::vector<FileUse> uses = {use("/open"), use("/mapped", true)};
  ASSERT_STATUS_OK(round(uses).status());
  const ino_t own = info(there_ + "/mapped").st_ino;
  EXPECT_EQ(offers_->carried(), 1U);
  for (const char* text : {"longer text", "text", "x"}) {
    write(here_ + "/open", text);
    write(here_ + "/mapped", text);
    ASSERT_STATUS_OK(round(uses).status());
    EXPECT_EQ(content(there_ + "/open"), text);
    EXPECT_EQ(content(there_ + "/mapped"), text);
    // A husk has it mapped.
    EXPECT_EQ(info(there_ + "/mapped").st_ino, own);
  }
  ASSERT_STATUS_OK(round({use("/open")}).status());
  EXPECT_EQ(removed_, 1);
}

TEST_F(FileCheckTest, OnlyWhatLiesBelowTheLayerIsCompared) {
  write(here_ + "/f", "text");
  write(source_.upper() + "/f", "text");
  ASSERT_STATUS_OK(round({use("/f")}).status());
  EXPECT_EQ(sections_, 0);
  fs::remove(source_.upper() + "/f");
  ASSERT_STATUS_OK(round({use("/f")}).status());
  EXPECT_EQ(sections_, 1);
  write(source_.upper() + "/f", "text");  // written by the service
  ASSERT_STATUS_OK(round({use("/f")}).status());
  EXPECT_EQ(removed_, 1);
  FileUse device;
  device.path = "/dev/null";
  CapsuleFiles host = files("/", source_);
  EXPECT_EQ(host.find("/dev/null")->place, FilePlace::kOther);
  EXPECT_EQ(host.find("/proc/self/stat").status().code(), absl::StatusCode::kNotFound);  // a link
  EXPECT_EQ(host.find(fmt::format("/proc/{}/stat", ::getpid()))->place, FilePlace::kOther);
}

TEST_F(FileCheckTest, APathThatLeadsToAnotherFileIsRefused) {
  write(here_ + "/f", "text");
  FileUse replaced = use("/f", true);
  ++replaced.inode;
  EXPECT_THAT(std::string(message_of(round({replaced}).status())),
              HasSubstr("not under this name any more"));
  FileUse gone = use("/f", true);
  fs::remove(here_ + "/f");
  EXPECT_FALSE(round({gone}).ok());
  gone.path = "/g";
  gone.mapped = false;  // the descriptor's own kind says what becomes of it
  EXPECT_TRUE(round({gone}).ok());
}

TEST_F(FileCheckTest, HostileBytesAreErrors) {
  UsedFile file;
  file.set_hash(std::string(kHashBytes, 'h'));
  file.set_mode(S_IFREG | 0644);
  for (const char* path : {"", "relative", "/..", "/a/../b", "/a//b", "/a/", "/./a"}) {
    file.set_path(path);
    EXPECT_FALSE(check_->offered(1, file.SerializeAsString()).ok()) << path;
  }
  file.set_path("/a");
  file.set_hash("short");
  EXPECT_FALSE(check_->offered(1, file.SerializeAsString()).ok());
  file.set_hash(std::string(kHashBytes, 'h'));
  file.set_mode(S_IFDIR);
  EXPECT_FALSE(check_->offered(1, file.SerializeAsString()).ok());
  EXPECT_FALSE(check_->offered(1, "\xff").ok());
  const WantedFile unknown[] = {{7, false}};
  EXPECT_FALSE(offers_->carry(unknown, sink()).ok());
}

TEST_F(FileCheckTest, AFolderThatIsALinkThereIsNotWrittenThrough) {
  write(here_ + "/lib/f", "text");
  fs::create_directory(there_ + "/usr");
  fs::create_symlink("usr", there_ + "/lib");
  const auto said = round({use("/lib/f")});
  EXPECT_THAT(std::string(message_of(said.status())), HasSubstr("is not a folder here"));
  EXPECT_TRUE(fs::is_empty(there_ + "/usr"));
}

}  // namespace
}  // namespace godwit::capsule
