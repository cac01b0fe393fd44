#include "resource/terminal/terminal.h"

#include <asm/ioctls.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "resource/terminal/line_discipline.h"
#include "resource/testing_contexts.h"

namespace godwit::resource {
namespace {

using testing::FakeCaptureContext;
using testing::FakeRestoreContext;
using testing::open_file;

class TerminalTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "reading kernel memory needs root";
    auto memory = kernel::KernelMemory::open();
    ASSERT_TRUE(memory.ok()) << memory.status();
    memory_ = *std::move(memory);
    make(source_);
  }

  struct Pair {
    UniqueFd master;
    UniqueFd slave;
  };

  static void make(Pair& pair, bool with_slave = true) {
    pair.master.reset(::open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK));
    ASSERT_TRUE(pair.master);
    const int unlocked = 0;
    ASSERT_EQ(::ioctl(pair.master.get(), TIOCSPTLCK, &unlocked), 0);
    if (!with_slave) return;
    pair.slave.reset(
        ::ioctl(pair.master.get(), TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK));
    ASSERT_TRUE(pair.slave);
  }

  static void change(const Pair& pair, const std::function<void(termios2&)>& how) {
    termios2 settings{};
    ASSERT_EQ(::ioctl(pair.master.get(), TCGETS2, &settings), 0);
    how(settings);
    ASSERT_EQ(::ioctl(pair.master.get(), TCSETS2, &settings), 0);
  }

  static void put(const UniqueFd& fd, std::string_view text) {
    ASSERT_EQ(::write(fd.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }

  static std::string take(const UniqueFd& fd, size_t most = 65536) {
    pollfd polled{fd.get(), POLLIN, 0};
    std::string text(most, '\0');
    if (::poll(&polled, 1, 0) != 1) return "";
    const ssize_t n = ::read(fd.get(), text.data(), text.size());
    text.resize(static_cast<size_t>(std::max<ssize_t>(n, 0)));
    return text;
  }

  // All there is, also what gets room by the reading.
  static std::string take_all(const UniqueFd& fd) {
    std::string all;
    pollfd polled{fd.get(), POLLIN, 0};
    // A kernel's thread brings it from the other side; all of these have something to come.
    while (::poll(&polled, 1, all.empty() ? 5000 : 100) == 1 && (polled.revents & POLLIN) != 0) {
      const std::string some = take(fd);
      if (some.empty()) break;
      all += some;
    }
    return all;
  }

  TerminalState captured(const Pair& pair) {
    const auto state =
        capture_terminal({pair.master.get(), pair.slave.get(), false}, true, *memory_);
    EXPECT_TRUE(state.ok()) << state.status();
    return state.value_or(TerminalState());
  }

  // What is captured of what was made of it is the same again, but for its number.
  Pair round_trip(const Pair& from) {
    TerminalState state = captured(from);
    state.set_mode(0620);
    Pair to;
    Terminal terminal;
    make(to, false);
    unsigned index = 0;
    EXPECT_EQ(::ioctl(to.master.get(), TIOCGPTN, &index), 0);
    terminal.master = std::move(to.master);
    EXPECT_TRUE(set_terminal(terminal, state).ok());
    const absl::Status completed = complete_terminal(terminal, memory_.get());
    EXPECT_TRUE(completed.ok()) << completed;
    to.master = std::move(terminal.master);
    to.slave = std::move(terminal.slave);
    if (to.slave) ::fcntl(to.slave.get(), F_SETFL, O_RDWR | O_NONBLOCK);
    TerminalState again = captured(to);
    again.set_index(state.index());
    again.set_mode(state.mode());
    EXPECT_EQ(again.DebugString(), state.DebugString());
    return to;
  }

  std::array<const Pair*, 2> both(const Pair& made) const { return {&source_, &made}; }

  Pair source_;
  std::unique_ptr<kernel::KernelMemory> memory_;
};

TEST_F(TerminalTest, EverySettingRoundTrips) {
  change(source_, [](termios2& s) {
    s.c_iflag = IGNBRK | BRKINT | IGNPAR | PARMRK | INPCK | ISTRIP | INLCR | IGNCR | IXON | IXANY;
    s.c_oflag = OPOST | OLCUC | ONLCR | OCRNL | ONOCR | ONLRET | XTABS;
    s.c_lflag = ICANON | ECHOE | ECHOK | NOFLSH | TOSTOP | ECHOCTL | ECHOKE | IEXTEN;
    s.c_cflag = (s.c_cflag & ~static_cast<tcflag_t>(CBAUD)) | BOTHER | HUPCL | CSTOPB | CLOCAL;
    s.c_ispeed = s.c_ospeed = 12345;
    for (unsigned char i = 0; i < NCCS; ++i) s.c_cc[i] = static_cast<unsigned char>(100 + i);
  });
  termios2 locked{};
  locked.c_lflag = ECHOK;
  locked.c_cc[VQUIT] = 0xff;
  ASSERT_EQ(::ioctl(source_.master.get(), TIOCSLCKTRMIOS, &locked), 0);
  const winsize size{41, 137, 901, 702};
  ASSERT_EQ(::ioctl(source_.master.get(), TIOCSWINSZ, &size), 0);
  const int on = 1;
  ASSERT_EQ(::ioctl(source_.master.get(), TIOCEXCL), 0);
  ASSERT_EQ(::ioctl(source_.slave.get(), TIOCEXCL), 0);
  ASSERT_EQ(::ioctl(source_.master.get(), TIOCPKT, &on), 0);
  ASSERT_EQ(::ioctl(source_.master.get(), TIOCSPTLCK, &on), 0);
  const TerminalState state = captured(source_);
  EXPECT_EQ(state.rows(), 41U);
  EXPECT_EQ(state.columns(), 137U);
  EXPECT_EQ(state.width(), 901U);
  EXPECT_EQ(state.height(), 702U);
  EXPECT_TRUE(state.pt_locked() && state.packets() && state.exclusive() &&
              state.master_exclusive() && state.opened());
  const Pair made = round_trip(source_);
  termios2 settings{};
  ASSERT_EQ(::ioctl(made.slave.get(), TCGETS2, &settings), 0);
  EXPECT_EQ(settings.c_ospeed, 12345U);
  EXPECT_EQ(settings.c_cc[VSTART], 100 + VSTART);
}

TEST_F(TerminalTest, LinesCompleteAndNotAreReadAsTheyWere) {
  change(source_, [](termios2& s) {
    s.c_lflag &= ~static_cast<tcflag_t>(ECHO);
    s.c_cc[VEOL] = ';';
    s.c_cc[VEOL2] = '|';
  });
  // A line, one that ends by another character each, one that an end of file ends, literal
  // specials, and the beginning of a line with a character that is to be taken literally next.
  put(source_.master,
      "one\ntwo;three|four\x04\x16\n\x16;\x16\x04\x16\x16 x\nhalf a \x16\nline\x16");
  const Pair made = round_trip(source_);
  for (const Pair* pair : both(made)) {
    EXPECT_EQ(take(pair->slave), "one\n");
    EXPECT_EQ(take(pair->slave), "two;");
    EXPECT_EQ(take(pair->slave), "three|");
    EXPECT_EQ(take(pair->slave), "four");
    EXPECT_EQ(take(pair->slave), "\n;\x04\x16 x\n");
    EXPECT_EQ(take(pair->slave), "");
    put(pair->master, "\x03 end\n");  // literally, not as an interrupt
    EXPECT_EQ(take(pair->slave), "half a \nline\x03 end\n");
  }
}

TEST_F(TerminalTest, RawInputAndOutputLiesUnreadAsItWas) {
  change(source_, [](termios2& s) {
    s.c_lflag = 0;
    s.c_iflag = 0;
    s.c_oflag = 0;
    s.c_cc[VMIN] = 1;
  });
  std::string input;
  for (int i = 0; i < 256; ++i) input.push_back(static_cast<char>(i));
  put(source_.master, input);
  put(source_.slave, input + "out");
  const Pair made = round_trip(source_);
  for (const Pair* pair : both(made)) {
    EXPECT_EQ(take_all(pair->slave), input);
    EXPECT_EQ(take_all(pair->master), input + "out");
  }
}

TEST_F(TerminalTest, WhatFindsNoRoomWaitsThereToo) {
  change(source_, [](termios2& s) {
    s.c_lflag = 0;
    s.c_iflag = 0;
    s.c_oflag = 0;
    s.c_cc[VMIN] = 1;
  });
  std::string in;
  std::string out;
  for (int i = 0; i < 400; ++i) {
    const std::string piece = std::to_string(i) + std::string(60, static_cast<char>('a' + i % 26));
    const ssize_t n = ::write(source_.master.get(), piece.data(), piece.size());
    if (n > 0) in += piece.substr(0, static_cast<size_t>(n));
    const ssize_t m = ::write(source_.slave.get(), piece.data(), piece.size());
    if (m > 0) out += piece.substr(0, static_cast<size_t>(m));
  }
  ASSERT_GT(in.size(), 5000U);
  ASSERT_GT(out.size(), 5000U);
  const TerminalState state = captured(source_);
  EXPECT_EQ(state.input() + state.input_waiting(), in);
  EXPECT_EQ(state.output(), out);
  const Pair made = round_trip(source_);
  for (const Pair* pair : both(made)) {
    EXPECT_EQ(take_all(pair->slave), in);
    EXPECT_EQ(take_all(pair->master), out);
  }
}

TEST_F(TerminalTest, ATabGoesToWhereItWouldHaveGone) {
  change(source_, [](termios2& s) { s.c_oflag = OPOST | XTABS; });
  put(source_.slave, "12345678901");
  const Pair made = round_trip(source_);
  for (const Pair* pair : both(made)) {
    put(pair->slave, "\tx");
    EXPECT_EQ(take_all(pair->master), "12345678901     x");
  }
}

TEST_F(TerminalTest, StoppedOutputIsStopped) {
  for (const bool by_character : {true, false}) {
    Pair pair;
    make(pair);
    change(pair, [](termios2& s) { s.c_lflag &= ~static_cast<tcflag_t>(ECHO); });
    put(pair.slave, "before");
    if (by_character) {
      put(pair.master, "half\x13");
    } else {
      ASSERT_EQ(::ioctl(pair.slave.get(), TCXONC, TCOOFF), 0);
    }
    EXPECT_EQ(captured(pair).flow(),
              by_character ? TerminalState::FLOW_STOPPED : TerminalState::FLOW_OFF);
    const Pair made = round_trip(pair);
    for (const Pair* each : {static_cast<const Pair*>(&pair), &made}) {
      EXPECT_EQ(::write(each->slave.get(), "x", 1), -1);
      if (by_character) {
        put(each->master, "\x11");
      } else {
        ASSERT_EQ(::ioctl(each->slave.get(), TCXONC, TCOON), 0);
      }
      EXPECT_EQ(take_all(each->master), "before");
      put(each->slave, "after");
      EXPECT_EQ(take_all(each->master), "after");
    }
  }
}

TEST_F(TerminalTest, ASlaveThatNobodyHasOpenIsTheEndOnlyAfterItWasOpened) {
  Pair never;
  make(never, false);
  EXPECT_FALSE(captured(never).opened());
  const Pair made = round_trip(never);
  EXPECT_FALSE(made.slave);
  pollfd polled{made.master.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&polled, 1, 0), 0);

  put(source_.slave, "last");
  source_.slave.reset();
  EXPECT_TRUE(captured(source_).opened());
  Pair ended = round_trip(source_);
  ended.slave.reset();
  EXPECT_EQ(take(ended.master), "last");
  char c = 0;
  EXPECT_EQ(::read(ended.master.get(), &c, 1), -1);
  EXPECT_EQ(errno, EIO);
}

TEST_F(TerminalTest, WhatPassesMakesTheFreezeWait) {
  const int on = 1;
  ASSERT_EQ(::ioctl(source_.master.get(), TIOCPKT, &on), 0);
  ASSERT_EQ(::ioctl(source_.slave.get(), TCFLSH, TCIFLUSH), 0);
  const auto state =
      capture_terminal({source_.master.get(), source_.slave.get(), false}, true, *memory_);
  EXPECT_EQ(state.status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(TerminalTest, DescriptionsOfBothSidesRoundTrip) {
  const FileKind& kind = terminal_kind();
  const FakeCaptureContext context;
  FakeRestoreContext destination;
  unsigned index = 0;
  ASSERT_EQ(::ioctl(source_.master.get(), TIOCGPTN, &index), 0);
  const std::string path = "/dev/pts/" + std::to_string(index);
  const UniqueFd other(::open(path.c_str(), O_WRONLY | O_NOCTTY | O_CLOEXEC));
  ASSERT_TRUE(other);
  Terminal pair;
  pair.master = *kernel::duplicate(source_.master.get());
  destination.terminals.emplace(index, std::move(pair));
  for (const int fd : {source_.master.get(), source_.slave.get(), other.get()}) {
    const OpenFile file = open_file(fd);
    ASSERT_TRUE(kind.recognise(file));
    const auto state = kind.capture(file, context);
    ASSERT_TRUE(state.ok()) << state.status();
    const auto made = kind.create(1, *state, destination);
    ASSERT_TRUE(made.ok()) << made.status();
    EXPECT_EQ(*kind.capture(open_file(made->get()), context), *state);
    EXPECT_TRUE(*kind.update(made->get(), *state, *state, destination));
  }
  const auto found = find_terminals(std::vector<const OpenFile*>(), source_.master.get());
  ASSERT_TRUE(found.contains(index));
  EXPECT_TRUE(found.at(index).outside);
}

TEST_F(TerminalTest, AHungUpSideIsHungUp) {
  const FileKind& kind = terminal_kind();
  const FakeCaptureContext context;
  FakeRestoreContext destination;
  source_.master.reset();
  const OpenFile file = open_file(source_.slave.get());
  const auto state = kind.capture(file, context);
  ASSERT_TRUE(state.ok()) << state.status();
  source_.slave.reset();  // its number is free then
  const auto made = kind.create(1, *state, destination);
  ASSERT_TRUE(made.ok()) << made.status();
  destination.drop_stash();
  char c = 0;
  EXPECT_EQ(::read(made->get(), &c, 1), 0);
  EXPECT_EQ(*kind.capture(open_file(made->get()), context), *state);
}

TEST_F(TerminalTest, BytesThatAreNoTerminalAreAnError) {
  TerminalState state = captured(source_);
  EXPECT_TRUE(parse_terminal(state.SerializeAsString()).ok());
  EXPECT_FALSE(parse_terminal("\xff").ok());
  for (const auto& spoil : std::vector<std::function<void(TerminalState&)>>{
           [](TerminalState& s) { s.set_settings("short"); },
           [](TerminalState& s) { s.set_index(1U << 30); },
           [](TerminalState& s) { s.set_rows(70000); },
           [](TerminalState& s) { s.add_line_ends(0); },
           [](TerminalState& s) { s.set_input(std::string(5000, 'x')); },
           [](TerminalState& s) { s.set_column(99); },
           [](TerminalState& s) { s.set_foreground(-1); }}) {
    TerminalState spoilt = state;
    spoil(spoilt);
    EXPECT_FALSE(parse_terminal(spoilt.SerializeAsString()).ok()) << spoilt.DebugString();
  }
  EXPECT_EQ(terminal_of_device(0x8800), 0U);
  EXPECT_EQ(terminal_of_device(0x0440), std::nullopt);
}

}  // namespace
}  // namespace godwit::resource
