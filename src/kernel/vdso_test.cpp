#include "kernel/vdso.h"

#include <elf.h>
#include <gtest/gtest.h>
#include <sys/auxv.h>

#include <algorithm>
#include <cstring>
#include <random>

namespace godwit::kernel {
namespace {

std::vector<std::byte> own_image() {
  const auto vdso = read_vdso();
  EXPECT_TRUE(vdso.ok()) << vdso.status();
  const auto* at = reinterpret_cast<const std::byte*>(::getauxval(AT_SYSINFO_EHDR));
  return {at, at + vdso->code.size()};
}

TEST(VdsoTest, FindsWhatProgramsCall) {
  const auto vdso = read_vdso();
  ASSERT_TRUE(vdso.ok()) << vdso.status();
  for (const char* name : {"__vdso_clock_gettime", "__vdso_gettimeofday", "__vdso_getcpu"}) {
    const auto found = std::find_if(vdso->symbols.begin(), vdso->symbols.end(),
                                    [&](const VdsoSymbol& s) { return s.name == name; });
    ASSERT_NE(found, vdso->symbols.end()) << name;
    EXPECT_GT(found->offset, 0u);
    EXPECT_LT(found->offset, vdso->code.size());
  }
}

TEST(VdsoTest, AnotherBuildIdIsTheSameCode) {
  std::vector<std::byte> image = own_image();
  const std::string code = parse_vdso(image)->code;
  Elf64_Ehdr head{};
  std::memcpy(&head, image.data(), sizeof head);
  bool changed = false;
  for (size_t i = 0; i < head.e_phnum; ++i) {
    Elf64_Phdr part{};
    std::memcpy(&part, image.data() + head.e_phoff + i * sizeof part, sizeof part);
    if (part.p_type != PT_NOTE) continue;
    image[part.p_offset + part.p_filesz - 1] ^= std::byte{1};
    changed = true;
  }
  ASSERT_TRUE(changed);
  EXPECT_EQ(parse_vdso(image)->code, code);
  image[head.e_entry != 0 ? head.e_entry : image.size() / 2] ^= std::byte{1};
  EXPECT_NE(parse_vdso(image)->code, code);
}

TEST(VdsoTest, AnyBytesAreAnAnswerAndNoCrash) {
  const std::vector<std::byte> image = own_image();
  EXPECT_FALSE(parse_vdso({}).ok());
  for (size_t size = 0; size < image.size(); size += 37)
    (void)parse_vdso(std::span(image).first(size));
  std::mt19937 random(1);
  for (int i = 0; i < 20'000; ++i) {
    std::vector<std::byte> bent = image;
    for (int j = 0; j < 4; ++j) bent[random() % 1024] = std::byte(random());
    (void)parse_vdso(bent);
  }
}

}  // namespace
}  // namespace godwit::kernel
