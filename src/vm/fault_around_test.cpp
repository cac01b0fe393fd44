#include "vm/fault_around.h"

#include <gtest/gtest.h>

namespace godwit::vm {
namespace {

constexpr uint64_t kPage = 4096;

std::string number(uint64_t value, size_t size) {
  std::string bytes;
  for (size_t i = size; i > 0; --i) bytes.push_back(static_cast<char>(value >> (8 * (i - 1))));
  return bytes;
}

std::string request(uint64_t page, uint64_t pages = 1) {
  return number(4, 2) + number(12, 2) + number(page * kPage, 8) + number(pages * kPage, 4);
}

std::string request_of(const std::string& block, uint64_t page) {
  return number(3, 2) + number(13 + block.size(), 2) + number(page * kPage, 8) + number(kPage, 4) +
         number(block.size(), 1) + block;
}

TEST(FaultAround, AsksForWhatIsBesideOnce) {
  FaultAround around;
  // Beyond it the block may end.
  EXPECT_EQ(around.pass(request_of("pc.ram", 100)), request_of("pc.ram", 100) + request(96, 4));
  EXPECT_EQ(around.pass(request(99)), request(99));
  EXPECT_EQ(around.pass(request(37)), request(37) + request(38, 10) + request(32, 5));
  EXPECT_EQ(around.pass(request(32)), request(32));
  // Another block's end is not known by that.
  EXPECT_EQ(around.pass(request_of("vga", 1)), request_of("vga", 1) + request(0, 1));
  EXPECT_EQ(around.pass(request_of("pc.ram", 90)),
            request_of("pc.ram", 90) + request(91, 5) + request(80, 10));
}

TEST(FaultAround, WaitsForWholeMessages) {
  FaultAround around;
  const std::string whole = number(2, 2) + number(4, 2) + number(7, 4) + request_of("pc.ram", 16);
  std::string seen;
  for (const char each : whole) seen += around.pass(std::string_view(&each, 1));
  EXPECT_EQ(seen, whole);  // page 16 begins a window
}

TEST(FaultAround, LeavesARecoveryAlone) {
  FaultAround around;
  const std::string bitmap = number(5, 2) + number(7, 2) + "\6pc.ram" + request(100);
  EXPECT_EQ(around.pass(bitmap), bitmap);
  EXPECT_EQ(around.pass(request(100)), request(100));
}

}  // namespace
}  // namespace godwit::vm
