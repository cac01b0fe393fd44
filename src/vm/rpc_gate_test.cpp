#include "vm/rpc_gate.h"

#include <endian.h>
#include <gtest/gtest.h>

#include <initializer_list>

namespace godwit::vm {
namespace {

std::string words(std::initializer_list<uint32_t> list) {
  std::string bytes;
  for (const uint32_t each : list) {
    const uint32_t big = htobe32(each);
    bytes.append(reinterpret_cast<const char*>(&big), sizeof big);
  }
  return bytes;
}

std::string message(uint32_t program, uint32_t procedure, uint32_t type, uint32_t last) {
  return words({36, program, 1, procedure, type, 7, 0, 0, last});
}

const std::string kOther = message(0x20008086, 303, 0, 0);
const std::string kFinish = message(0x20008086, 306, 0, 0);

TEST(RpcGate, HoldsTheFinishThatLetsItRun) {
  RpcGate gate;
  EXPECT_EQ(gate.pass(kOther + kFinish + kOther), kOther);
  EXPECT_TRUE(gate.held());
  EXPECT_EQ(gate.pass(kOther), "");
  EXPECT_EQ(gate.open(), kFinish + kOther + kOther);
  EXPECT_FALSE(gate.held());
  EXPECT_EQ(gate.pass(kFinish), kFinish);
}

TEST(RpcGate, LetsWhatEndsAFailedMigrationPass) {
  RpcGate gate;
  const std::string cancelled = message(0x20008086, 306, 0, 1);
  EXPECT_EQ(gate.pass(cancelled), cancelled);
  EXPECT_FALSE(gate.held());
}

TEST(RpcGate, IsForCallsOfTheRemoteProgramOnly) {
  RpcGate gate;
  const std::string others = message(0x6b656570, 306, 0, 0) + message(0x20008086, 306, 1, 0);
  EXPECT_EQ(gate.pass(others), others);
}

TEST(RpcGate, TakesBytesAsTheyCome) {
  RpcGate gate;
  std::string passed;
  for (const char each : kOther + kOther + kFinish) {
    EXPECT_FALSE(gate.held());
    passed += gate.pass({&each, 1});
  }
  EXPECT_EQ(passed, kOther + kOther);
  EXPECT_TRUE(gate.held());
}

TEST(RpcGate, KnowsWhatIsNoMessage) {
  RpcGate gate;
  EXPECT_EQ(gate.pass(words({27, 0, 0})), "");
  EXPECT_TRUE(gate.broken());
  RpcGate large;
  large.pass(words({0x7fffffff}));
  EXPECT_TRUE(large.broken());
}

}  // namespace
}  // namespace godwit::vm
