#include "resource/pipe/pipe.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "resource/file_description.h"
#include "resource/pipe/pipe.pb.h"
#include "resource/testing_contexts.h"

namespace godwit::resource {
namespace {

using testing::FakeCaptureContext;
using testing::FakeRestoreContext;
using testing::open_file;

std::string read_all(int fd) {
  std::string text(1 << 20, '\0');
  ::fcntl(fd, F_SETFL, O_NONBLOCK);
  size_t used = 0;
  while (true) {
    const ssize_t n = ::read(fd, text.data() + used, text.size() - used);
    if (n <= 0) break;
    used += static_cast<size_t>(n);
  }
  text.resize(used);
  return text;
}

std::string without_inode(const std::string& bytes) {
  PipeState state;
  EXPECT_TRUE(state.ParseFromString(bytes));
  state.clear_inode();
  return state.SerializeAsString();
}

// Captures all of `fds`, makes them anew in the given order, and checks that a second capture gives
// the same states. Gives the new descriptors in the order of `fds`.
std::vector<UniqueFd> round_trip(const std::vector<int>& fds, bool backwards = false) {
  FakeCaptureContext source;
  std::vector<std::string> states;
  for (size_t i = 0; i < fds.size(); ++i) source.add(fds[i], i + 1);
  for (size_t i = 0; i < fds.size(); ++i) {
    const auto state = pipe_kind().capture(open_file(fds[i], i + 1), source);
    EXPECT_TRUE(state.ok()) << state.status();
    states.push_back(state.value_or(""));
  }
  FakeRestoreContext destination;
  for (size_t n = 0; n < fds.size(); ++n) {
    const size_t i = backwards ? fds.size() - 1 - n : n;
    auto made = pipe_kind().create(i + 1, states[i], destination);
    EXPECT_TRUE(made.ok()) << made.status();
    if (made.ok()) destination.made[i + 1] = *std::move(made);
  }
  EXPECT_EQ(destination.stashed_count(), 0U);
  FakeCaptureContext again;
  std::vector<UniqueFd> result;
  for (auto& [id, fd] : destination.made) again.add(fd.get(), id);
  for (auto& [id, fd] : destination.made) {
    const auto state = pipe_kind().capture(open_file(fd.get(), id), again);
    EXPECT_TRUE(state.ok()) << state.status();
    EXPECT_EQ(without_inode(state.value_or("")), without_inode(states[id - 1]));
  }
  for (auto& [id, fd] : destination.made) result.push_back(std::move(fd));
  return result;
}

TEST(Pipe, ContentSizeAndFlagsMoveAndTheSourceKeepsItsOwn) {
  for (const bool backwards : {false, true}) {
    auto pipe = kernel::pipe2(0);
    ASSERT_TRUE(pipe.ok());
    ASSERT_GE(::fcntl(pipe->read.get(), F_SETPIPE_SZ, 16384), 16384);
    ASSERT_EQ(::fcntl(pipe->write.get(), F_SETFL, O_NONBLOCK), 0);
    const std::string text(10'000, 'x');
    ASSERT_EQ(::write(pipe->write.get(), text.data(), text.size()), 10'000);
    ASSERT_EQ(::write(pipe->write.get(), "tail", 4), 4);
    auto made = round_trip({pipe->read.get(), pipe->write.get()}, backwards);
    ASSERT_EQ(made.size(), 2U);
    EXPECT_EQ(::fcntl(made[0].get(), F_GETPIPE_SZ), 16384);
    EXPECT_EQ(::fcntl(made[0].get(), F_GETFL) & O_NONBLOCK, 0);
    EXPECT_NE(::fcntl(made[1].get(), F_GETFL) & O_NONBLOCK, 0);
    EXPECT_EQ(read_all(made[0].get()), text + "tail");
    EXPECT_EQ(read_all(pipe->read.get()), text + "tail");
    ASSERT_EQ(::write(made[1].get(), "go", 2), 2);
    EXPECT_EQ(read_all(made[0].get()), "go");
    // No end is left in our hands: closing the writer is the end of file.
    made[1].reset();
    char c = 0;
    EXPECT_EQ(::read(made[0].get(), &c, 1), 0);
  }
}

TEST(Pipe, AFullPipeMoves) {
  auto pipe = kernel::pipe2(O_NONBLOCK);
  std::string written;
  for (char c = 'a';; c = c == 'z' ? 'a' : static_cast<char>(c + 1)) {
    const std::string piece(1000, c);
    const ssize_t n = ::write(pipe->write.get(), piece.data(), piece.size());
    if (n <= 0) break;
    written += piece.substr(0, static_cast<size_t>(n));
  }
  ASSERT_GE(written.size(), 60'000U);
  const auto made = round_trip({pipe->read.get(), pipe->write.get()});
  EXPECT_EQ(read_all(made[0].get()), written);
}

TEST(Pipe, PacketsKeepTheirBoundaries) {
  auto pipe = kernel::pipe2(O_DIRECT);
  for (const char* packet : {"one", "four", "x"}) {
    ASSERT_GT(::write(pipe->write.get(), packet, std::strlen(packet)), 0);
  }
  const auto made = round_trip({pipe->read.get(), pipe->write.get()});
  char buffer[64];
  EXPECT_EQ(::read(made[0].get(), buffer, sizeof buffer), 3);
  EXPECT_EQ(::read(made[0].get(), buffer, 2), 2);  // the rest of a packet is dropped
  EXPECT_EQ(::read(made[0].get(), buffer, sizeof buffer), 1);
  EXPECT_EQ(buffer[0], 'x');
}

TEST(Pipe, SeveralDescriptionsOfOneEnd) {
  auto pipe = kernel::pipe2(0);
  const auto second = reopen(pipe->write.get(), O_WRONLY | O_NONBLOCK);
  const auto both = reopen(pipe->read.get(), O_RDWR | O_NONBLOCK);
  ASSERT_TRUE(second.ok() && both.ok());
  ASSERT_EQ(::write(second->get(), "ab", 2), 2);
  for (const bool backwards : {false, true}) {
    auto made =
        round_trip({pipe->write.get(), second->get(), pipe->read.get(), both->get()}, backwards);
    ASSERT_EQ(made.size(), 4U);
    bool same = true;
    const HostPid self{::getpid()};
    ASSERT_TRUE(kernel::kcmp_same_file(self, made[0].get(), self, made[1].get(), same).ok());
    EXPECT_FALSE(same);
    ASSERT_EQ(::write(made[3].get(), "cd", 2), 2);
    EXPECT_EQ(read_all(made[2].get()), "abcd");
  }
}

TEST(Pipe, AnEndAloneIsHungUpHereToo) {
  auto pipe = kernel::pipe2(0);
  ASSERT_EQ(::write(pipe->write.get(), "last", 4), 4);
  FakeCaptureContext alone;
  const OpenFile& reader = alone.add(pipe->read.get(), 1);
  // Its writer is ours, that is outside of the tree.
  std::vector<Refusal> refusals;
  ASSERT_TRUE(pipe_kind().precheck(reader, alone, refusals).ok());
  ASSERT_EQ(refusals.size(), 1U);
  EXPECT_EQ(refusals[0].code, "pipe.outside");
  EXPECT_FALSE(pipe_kind().capture(reader, alone).ok());

  pipe->write.reset();
  const auto made = round_trip({pipe->read.get()});
  EXPECT_EQ(read_all(made[0].get()), "last");
  char c = 0;
  EXPECT_EQ(::read(made[0].get(), &c, 1), 0);

  auto broken = kernel::pipe2(0);
  broken->read.reset();
  const auto writer = round_trip({broken->write.get()});
  pollfd p{writer[0].get(), POLLOUT, 0};
  ASSERT_EQ(::poll(&p, 1, 0), 1);
  EXPECT_NE(p.revents & POLLERR, 0);
}

TEST(Pipe, MadeEarlyAndFilledInTheEnd) {
  auto pipe = kernel::pipe2(0);
  ASSERT_EQ(::write(pipe->write.get(), "early", 5), 5);
  FakeCaptureContext source;
  source.is_final = false;
  const OpenFile& r = source.add(pipe->read.get(), 1);
  const OpenFile& w = source.add(pipe->write.get(), 2);
  const FileKind& kind = pipe_kind();
  const auto r1 = kind.capture(r, source);
  const auto w1 = kind.capture(w, source);
  FakeRestoreContext destination;
  destination.is_final = false;
  auto reader = kind.create(1, *r1, destination);
  auto writer = kind.create(2, *w1, destination);
  ASSERT_TRUE(reader.ok() && writer.ok());
  EXPECT_EQ(read_all(reader->get()), "");
  ASSERT_EQ(::write(pipe->write.get(), " late", 5), 5);
  source.is_final = true;
  destination.is_final = true;
  const auto r2 = kind.capture(r, source);
  const auto w2 = kind.capture(w, source);
  EXPECT_EQ(*w2, *w1);
  EXPECT_TRUE(*kind.update(reader->get(), *r1, *r2, destination));
  EXPECT_FALSE(*kind.update(reader->get(), *r2, *r1, destination));
  EXPECT_EQ(read_all(reader->get()), "early late");
}

TEST(Pipe, StdioComesFromTheShim) {
  auto out = kernel::pipe2(0);
  auto in = kernel::pipe2(0);
  FakeCaptureContext source;
  const OpenFile& capsule_out = source.add(out->write.get(), 1);
  const OpenFile& capsule_in = source.add(in->read.get(), 2);
  source.stdio_inodes[0] = capsule_in.stat.st_ino;
  source.stdio_inodes[1] = capsule_out.stat.st_ino;
  ASSERT_EQ(::write(out->write.get(), "stays here", 10), 10);
  ASSERT_EQ(::write(in->write.get(), "typed ahead", 11), 11);
  std::vector<Refusal> refusals;
  ASSERT_TRUE(pipe_kind().precheck(capsule_out, source, refusals).ok());
  EXPECT_TRUE(refusals.empty());
  const auto state_out = pipe_kind().capture(capsule_out, source);
  const auto state_in = pipe_kind().capture(capsule_in, source);
  ASSERT_TRUE(state_out.ok() && state_in.ok());

  auto new_out = kernel::pipe2(0);
  auto new_in = kernel::pipe2(0);
  FakeRestoreContext destination;
  EXPECT_FALSE(pipe_kind().create(1, *state_out, destination).ok());
  destination.stdio_fds[0] = new_in->read.get();
  destination.stdio_fds[1] = new_out->write.get();
  const auto writer = pipe_kind().create(1, *state_out, destination);
  const auto reader = pipe_kind().create(2, *state_in, destination);
  ASSERT_TRUE(writer.ok() && reader.ok());
  ASSERT_EQ(::write(writer->get(), "hello", 5), 5);
  EXPECT_EQ(read_all(new_out->read.get()), "hello");
  EXPECT_EQ(read_all(reader->get()), "typed ahead");
}

class NamedPipe : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(::mkdtemp(folder_), nullptr);
    path_ = std::string(folder_) + "/fifo";
    ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  }
  void TearDown() override {
    ::unlink(path_.c_str());
    EXPECT_EQ(::rmdir(folder_), 0);
  }
  UniqueFd open(int flags) const {
    return UniqueFd(::open(path_.c_str(), flags | O_NONBLOCK | O_CLOEXEC));
  }
  static short events(int fd) {
    pollfd p{fd, POLLIN | POLLOUT, 0};
    ::poll(&p, 1, 0);
    return p.revents;
  }
  // Captured, closed here, made again by its name, and captured again: the same.
  std::vector<UniqueFd> moved(std::vector<UniqueFd> fds) {
    std::vector<std::string> states;
    {
      FakeCaptureContext source;
      for (size_t i = 0; i < fds.size(); ++i) source.add(fds[i].get(), i + 1);
      for (size_t i = 0; i < fds.size(); ++i) {
        const OpenFile file = open_file(fds[i].get(), i + 1);
        EXPECT_TRUE(named_pipe_kind().recognise(file));
        EXPECT_FALSE(pipe_kind().recognise(file));
        std::vector<Refusal> refusals;
        EXPECT_TRUE(named_pipe_kind().precheck(file, source, refusals).ok());
        EXPECT_TRUE(refusals.empty());
        const auto state = named_pipe_kind().capture(file, source);
        EXPECT_TRUE(state.ok()) << state.status();
        states.push_back(state.value_or(""));
      }
    }
    fds.clear();
    FakeRestoreContext destination;
    for (size_t i = 0; i < states.size(); ++i) {
      auto made = named_pipe_kind().create(i + 1, states[i], destination);
      EXPECT_TRUE(made.ok()) << made.status();
      if (made.ok()) destination.made[i + 1] = *std::move(made);
    }
    destination.drop_stash();
    FakeCaptureContext again;
    for (auto& [id, fd] : destination.made) again.add(fd.get(), id);
    for (auto& [id, fd] : destination.made) {
      const auto state = named_pipe_kind().capture(open_file(fd.get(), id), again);
      EXPECT_TRUE(state.ok()) << state.status();
      EXPECT_EQ(without_inode(state.value_or("")), without_inode(states[id - 1]));
    }
    std::vector<UniqueFd> result;
    for (auto& [id, fd] : destination.made) result.push_back(std::move(fd));
    return result;
  }
  static std::vector<UniqueFd> list(UniqueFd a, UniqueFd b = {}, UniqueFd c = {}) {
    std::vector<UniqueFd> fds;
    for (UniqueFd* one : {&a, &b, &c})
      if (*one) fds.push_back(std::move(*one));
    return fds;
  }
  char folder_[32] = "/tmp/godwit-pipe-XXXXXX";
  std::string path_;
};

TEST_F(NamedPipe, ContentSizeAndFlagsMove) {
  UniqueFd reader = open(O_RDONLY);
  UniqueFd writer = open(O_WRONLY);
  UniqueFd both = open(O_RDWR);
  ASSERT_TRUE(reader && writer && both);
  ASSERT_GE(::fcntl(reader.get(), F_SETPIPE_SZ, 16384), 16384);
  ASSERT_EQ(::fcntl(writer.get(), F_SETFL, 0), 0);
  ASSERT_EQ(::write(writer.get(), "inside", 6), 6);
  auto made = moved(list(std::move(reader), std::move(writer), std::move(both)));
  ASSERT_EQ(made.size(), 3U);
  EXPECT_EQ(::fcntl(made[0].get(), F_GETPIPE_SZ), 16384);
  EXPECT_EQ(::fcntl(made[1].get(), F_GETFL) & O_NONBLOCK, 0);
  ASSERT_EQ(::write(made[1].get(), " and more", 9), 9);
  EXPECT_EQ(read_all(made[0].get()), "inside and more");
}

TEST_F(NamedPipe, AReaderIsHungUpOnlyAfterAWriter) {
  auto quiet = moved(list(open(O_RDONLY)));
  ASSERT_EQ(quiet.size(), 1U);
  EXPECT_EQ(events(quiet[0].get()), 0);
  EXPECT_TRUE(open(O_WRONLY));
  EXPECT_EQ(events(quiet[0].get()), POLLHUP);
  auto left = moved(std::move(quiet));
  ASSERT_EQ(left.size(), 1U);
  EXPECT_EQ(events(left[0].get()), POLLHUP);
  auto writer = list(open(O_WRONLY));
  left.clear();
  writer = moved(std::move(writer));
  ASSERT_EQ(writer.size(), 1U);
  EXPECT_NE(events(writer[0].get()) & POLLERR, 0);
}

TEST_F(NamedPipe, WhatCannotBeOpenedAgainIsRefused) {
  const auto code = [&](const UniqueFd& fd) -> std::string {
    FakeCaptureContext source;
    const OpenFile& file = source.add(fd.get(), 1);
    std::vector<Refusal> refusals;
    EXPECT_TRUE(named_pipe_kind().precheck(file, source, refusals).ok());
    if (!refusals.empty()) return refusals[0].code;
    const auto state = named_pipe_kind().capture(file, source);
    return state.ok() ? "" : std::string(state.status().message());
  };
  const UniqueFd reader = open(O_RDONLY);
  EXPECT_EQ(code(reader), "");
  const UniqueFd outside = open(O_WRONLY);
  EXPECT_NE(code(reader).find("pipe.outside"), std::string::npos);
  ASSERT_EQ(::rename(path_.c_str(), (path_ + "2").c_str()), 0);
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  ASSERT_EQ(::unlink((path_ + "2").c_str()), 0);
  EXPECT_EQ(code(reader), "fd.deleted");
}

TEST(Pipe, HostileStateIsAnError) {
  FakeRestoreContext destination;
  PipeState state;
  state.set_flags(3);
  EXPECT_FALSE(pipe_kind().create(1, state.SerializeAsString(), destination).ok());
  state.set_flags(O_WRONLY);
  state.set_capacity(65536);
  state.add_content(std::string(100'000, 'x'));  // more than fits
  state.set_has_reader(true);
  state.add_others(2);
  EXPECT_FALSE(pipe_kind().create(1, state.SerializeAsString(), destination).ok());
  EXPECT_FALSE(pipe_kind().create(1, "\xff", destination).ok());
}

}  // namespace
}  // namespace godwit::resource
