#include "kernel/btf.h"

#include <gtest/gtest.h>
#include <linux/btf.h>

#include <cstring>

#include "base/status.h"

namespace godwit::kernel {
namespace {

// struct outer { int a; const struct { int *b; union { short c[3]; }; } in; int d : 3; };
// int bpf_iter_x();
std::string small_btf() {
  const char texts[] = "\0int\0outer\0a\0in\0b\0c\0d\0bpf_iter_x";
  const auto name = [&](const char* text) {
    for (uint32_t at = 0; at < sizeof texts;
         at += static_cast<uint32_t>(std::strlen(texts + at)) + 1)
      if (std::strcmp(texts + at, text) == 0) return at;
    return 0U;
  };
  constexpr uint32_t kWithWidths = 1U << 31;
  const auto info = [](uint32_t kind, uint32_t count) { return kind << 24 | count; };
  const std::vector<uint32_t> types = {name("int"),
                                       info(BTF_KIND_INT, 0),
                                       4,
                                       32,  // 1
                                       0,
                                       info(BTF_KIND_PTR, 0),
                                       1,  // 2
                                       name("int"),
                                       info(BTF_KIND_INT, 0),
                                       2,
                                       16,  // 3
                                       0,
                                       info(BTF_KIND_ARRAY, 0),
                                       0,
                                       3,
                                       1,
                                       3,  // 4: of 3
                                       0,
                                       info(BTF_KIND_UNION, 1),
                                       6,
                                       name("c"),
                                       4,
                                       0,  // 5
                                       0,
                                       info(BTF_KIND_STRUCT, 2),
                                       16,
                                       name("b"),
                                       2,
                                       0,
                                       0,
                                       5,
                                       64,  // 6
                                       0,
                                       info(BTF_KIND_CONST, 0),
                                       6,  // 7
                                       name("outer"),
                                       info(BTF_KIND_STRUCT, 3) | kWithWidths,
                                       32,  // 8
                                       name("a"),
                                       1,
                                       0,
                                       name("in"),
                                       7,
                                       64,
                                       name("d"),
                                       1,
                                       192 | 3U << 24,
                                       0,
                                       info(BTF_KIND_FUNC_PROTO, 0),
                                       1,  // 9
                                       name("bpf_iter_x"),
                                       info(BTF_KIND_FUNC, 0),
                                       9};  // 10
  btf_header header{};
  header.magic = BTF_MAGIC;
  header.version = BTF_VERSION;
  header.hdr_len = sizeof header;
  header.type_len = static_cast<uint32_t>(types.size() * 4);
  header.str_off = header.type_len;
  header.str_len = sizeof texts;
  std::string bytes(reinterpret_cast<const char*>(&header), sizeof header);
  bytes.append(reinterpret_cast<const char*>(types.data()), types.size() * 4);
  bytes.append(texts, sizeof texts);
  return bytes;
}

TEST(BtfTest, FindsMembersThroughWhatIsInside) {
  const auto btf = Btf::parse(small_btf());
  ASSERT_TRUE(btf.ok()) << btf.status();
  EXPECT_EQ(btf->function("bpf_iter_x").value(), 10U);
  EXPECT_EQ(btf->function("bpf_iter_y").status().code(), absl::StatusCode::kNotFound);
  const auto at = [&](const char* path) {
    const auto field = btf->field("outer", path);
    return field.ok() ? std::pair(field->offset, field->size) : std::pair(0U, 0U);
  };
  EXPECT_EQ(at("a"), std::pair(0U, 4U));
  EXPECT_EQ(at("in"), std::pair(8U, 16U));
  EXPECT_EQ(at("in.b"), std::pair(8U, 8U));
  EXPECT_EQ(at("in.c"), std::pair(16U, 6U));
  for (const char* path : {"d", "in.b.c", "in.x", "x"})  // a bit field, a pointer, none
    EXPECT_EQ(at(path), std::pair(0U, 0U)) << path;
  EXPECT_FALSE(btf->field("inner", "a").ok());
}

TEST(BtfTest, DamageIsAnErrorOrLeadsNowhere) {
  const std::string whole = small_btf();
  for (size_t size = 0; size < whole.size(); ++size)
    EXPECT_FALSE(Btf::parse(whole.substr(0, size)).ok()) << size;
  for (size_t at = 0; at < whole.size(); ++at)
    for (const int bit : {0, 3, 7}) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
      const auto btf = Btf::parse(damaged);
      if (btf.ok()) (void)btf->field("outer", "in.c");
    }
}

TEST(BtfTest, KnowsTheRunningKernel) {
  const auto known = Btf::of_kernel();
  if (errno_of(known.status()) == ENOENT) GTEST_SKIP() << "no BTF: CONFIG_DEBUG_INFO_BTF";
  ASSERT_TRUE(known.ok()) << known.status();
  EXPECT_EQ(Btf::of_kernel().value(), *known) << "read again";
  const Btf* btf = known->get();
  EXPECT_GT(btf->function("bpf_iter_task_file").value_or(0), 0U);
  const auto fd = btf->field("bpf_iter__task_file", "fd");
  ASSERT_TRUE(fd.ok()) << fd.status();
  EXPECT_EQ(fd->size, 4U);
  EXPECT_EQ(btf->field("tcp_sock", "inet_conn.icsk_inet.sk.__sk_common.skc_daddr").value().size,
            4U);
}

}  // namespace
}  // namespace godwit::kernel
