#include "pages/applier.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "base/status.h"
#include "kernel/proc/text_scanner.h"
#include "pages/page_reader.h"
#include "pages/puppet_for_test.h"

namespace godwit::pages {
namespace {

constexpr uint64_t P = kPageSize;
constexpr uint64_t B = 0x2000'0000'0000;

std::string text_of(char first, uint64_t pages) {
  std::string text;
  for (uint64_t i = 0; i < pages; ++i) text += std::string(P, static_cast<char>(first + i));
  return text;
}

absl::Status apply(PageApplier& applier, std::vector<stream::PageRun> runs,
                   const std::string& text) {
  return applier.apply(runs, std::as_bytes(std::span(text)));
}

std::string read(const Puppet& puppet, uint64_t page) {
  PageReader reader(puppet.pid());
  std::string text(P, '\0');
  std::vector<PageRange> got;
  PageSet unreadable;
  const PageRange range{B + page * P, B + (page + 1) * P};
  EXPECT_TRUE(
      reader.read({&range, 1}, std::as_writable_bytes(std::span(text)), got, unreadable).ok());
  EXPECT_TRUE(unreadable.empty());
  return text;
}

// Of all mappings together.
uint64_t huge_kib(const Puppet& puppet) {
  const auto text = kernel::read_file(fmt::format("/proc/{}/smaps_rollup", puppet.pid().value));
  EXPECT_TRUE(text.ok()) << text.status();
  kernel::TextScanner line(std::string_view(*text).substr(text->find("AnonHugePages:") + 14));
  uint64_t kib = 0;
  line.skip_blanks();
  EXPECT_TRUE(line.number(kib));
  return kib;
}

bool machine_has_huge_pages() {
  const auto enabled = kernel::read_file("/sys/kernel/mm/transparent_hugepage/enabled");
  return enabled.ok() && enabled->find("[never]") == std::string::npos;
}

class PageApplierWays : public ::testing::TestWithParam<bool> {};

TEST_P(PageApplierWays, PagesReachEveryKindOfMapping) {
  Puppet husk;
  husk.map(B, 64 * P);
  PageApplier applier(husk.pid());
  if (GetParam()) {
    ASSERT_TRUE(applier.use_uffd(husk.make_uffd()).ok());
    ASSERT_TRUE(applier.fill_by_uffd({B, B + 64 * P}).ok());
  }
  husk.call(SYS_mprotect, B + 10 * P, 4 * P, PROT_READ);
  husk.call(SYS_mprotect, B + 20 * P, 4 * P, PROT_NONE);
  const std::vector<stream::PageRun> runs = {
      {B, 2}, {B + 9 * P, 2}, {B + 13 * P, 2}, {B + 19 * P, 3}, {B + 63 * P, 1}};
  for (const char first : {'a', 'k'}) {  // into holes, then over what is there
    const absl::Status status = apply(applier, runs, text_of(first, 10));
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(read(husk, 1), std::string(P, static_cast<char>(first + 1)));
    EXPECT_EQ(read(husk, 10), std::string(P, static_cast<char>(first + 3)));
    EXPECT_EQ(read(husk, 14), std::string(P, static_cast<char>(first + 5)));
    EXPECT_EQ(read(husk, 20), std::string(P, static_cast<char>(first + 7)));
    EXPECT_EQ(read(husk, 63), std::string(P, static_cast<char>(first + 9)));
  }
  EXPECT_EQ(applier.filled().pages(), 10u);
  applier.finish();
  husk.touch(B + 40 * P);  // nothing of ours is left in the way
}

INSTANTIATE_TEST_SUITE_P(WithAndWithoutUffd, PageApplierWays, ::testing::Bool());

TEST(PageApplier, APageAlreadyThereIsOverwrittenUnderUffdToo) {
  Puppet husk;
  husk.map(B, 8 * P);
  husk.poke(B + 3 * P, 1);
  PageApplier applier(husk.pid());
  ASSERT_TRUE(applier.use_uffd(husk.make_uffd()).ok());
  ASSERT_TRUE(applier.fill_by_uffd({B, B + 8 * P}).ok());
  const absl::Status status = apply(applier, {{B, 8}}, text_of('a', 8));
  ASSERT_TRUE(status.ok()) << status;
  for (uint64_t i = 0; i < 8; ++i)
    EXPECT_EQ(read(husk, i), std::string(P, static_cast<char>('a' + i))) << i;
}

TEST(PageApplier, ABlockThatArrivesWholeBecomesAHugePage) {
  if (!machine_has_huge_pages()) GTEST_SKIP() << "no transparent huge pages";
  constexpr uint64_t kBlock = 512;  // pages
  Puppet husk;
  husk.map(B, 8 * kBlock * P);
  PageApplier applier(husk.pid());
  applier.allow_huge({{B, B + 6 * kBlock * P}});
  std::string text;
  for (uint64_t i = 0; i < 1024; ++i) text += std::string(P, static_cast<char>('0' + i % 70));
  const auto bytes = [&](uint64_t pages) {
    return std::as_bytes(std::span(text)).first(pages * P);
  };
  const uint64_t before = huge_kib(husk);

  // Whole: the second block, not the first, whose first page is missing.
  ASSERT_TRUE(applier.apply(std::vector<stream::PageRun>{{B + P, 1023}}, bytes(1023)).ok());
  EXPECT_EQ(huge_kib(husk), before + 2048);
  EXPECT_EQ(read(husk, 0), std::string(P, '\0'));
  for (const uint64_t page : {1, 2, 511, 512, 513, 1022, 1023})
    EXPECT_EQ(read(husk, page), std::string(P, static_cast<char>('0' + (page - 1) % 70))) << page;

  // Two at once, after a run that is none; and again over what is there.
  for (int turn = 0; turn < 2; ++turn) {
    const std::vector<stream::PageRun> runs = {{B + 2 * kBlock * P, 1}, {B + 3 * kBlock * P, 1023}};
    ASSERT_TRUE(applier.apply(runs, bytes(1024)).ok());
    EXPECT_EQ(huge_kib(husk), before + 2 * 2048);
    EXPECT_EQ(read(husk, 2 * kBlock), std::string(P, '0'));
    EXPECT_EQ(read(husk, 3 * kBlock), std::string(P, '1'));
    EXPECT_EQ(read(husk, 4 * kBlock + 510), std::string(P, static_cast<char>('0' + 1023 % 70)));
    EXPECT_EQ(read(husk, 4 * kBlock + 511), std::string(P, '\0'));
  }

  // Something is there already; and where it is not allowed.
  ASSERT_TRUE(applier.apply(std::vector<stream::PageRun>{{B + 5 * kBlock * P, 1}}, bytes(1)).ok());
  for (const uint64_t block : {5, 6}) {
    ASSERT_TRUE(
        applier.apply(std::vector<stream::PageRun>{{B + block * kBlock * P, 512}}, bytes(512))
            .ok());
    EXPECT_EQ(huge_kib(husk), before + 2 * 2048) << block;
    EXPECT_EQ(read(husk, block * kBlock + 7), std::string(P, '7'));
  }
}

TEST(PageApplier, AddressesWithoutAMappingAreErrorsAtOnce) {
  Puppet husk;
  husk.map(B, 1024 * P);
  PageApplier applier(husk.pid());
  applier.allow_huge({{B, B + 1024 * P}});
  const std::string text(600 * P, 'x');
  const auto bytes = std::as_bytes(std::span(text));
  for (const uint64_t address :
       {uint64_t{0}, B - 300 * P, B + 700 * P, uint64_t{1} << 47, uint64_t{0} - 601 * P}) {
    EXPECT_FALSE(applier.apply(std::vector<stream::PageRun>{{address, 600}}, bytes).ok())
        << address;
  }
}

TEST(PageApplier, PagesWithoutAPlaceCanWaitUntilTheyComeAgain) {
  Puppet husk;
  husk.map(B, 4 * P);
  PageApplier applier(husk.pid());
  applier.pass_over_what_has_no_place(true);
  ASSERT_TRUE(apply(applier, {{B + 3 * P, 4}}, text_of('a', 4)).ok());
  EXPECT_EQ(read(husk, 3), std::string(P, 'a'));
  EXPECT_EQ(applier.unplaced(), (PageSet{{B + 4 * P, B + 7 * P}}));
  const std::vector<stream::PageRun> dropped = {{B + 4 * P, 1}};
  applier.drop(dropped);
  applier.forget({B + 5 * P, B + 6 * P});
  EXPECT_EQ(applier.unplaced(), (PageSet{{B + 6 * P, B + 7 * P}}));
  husk.map(B + 4 * P, 4 * P);
  ASSERT_TRUE(apply(applier, {{B + 6 * P, 1}}, text_of('b', 1)).ok());
  EXPECT_TRUE(applier.unplaced().empty());
  applier.pass_over_what_has_no_place(false);
  EXPECT_FALSE(apply(applier, {{B + 8 * P, 1}}, text_of('c', 1)).ok());
}

TEST(PageApplier, DropsAreOnlyAskedForWhatWasFilled) {
  Puppet husk;
  husk.map(B, 16 * P);
  PageApplier applier(husk.pid());
  ASSERT_TRUE(apply(applier, {{B, 4}}, text_of('a', 4)).ok());
  const std::vector<stream::PageRun> dropped = {{B + 2 * P, 10}};
  applier.drop(dropped);
  EXPECT_EQ(applier.to_drop(), (PageSet{{B + 2 * P, B + 4 * P}}));
  ASSERT_TRUE(apply(applier, {{B + 3 * P, 1}}, text_of('x', 1)).ok());
  EXPECT_EQ(applier.to_drop(), (PageSet{{B + 2 * P, B + 3 * P}}));
  ASSERT_TRUE(applier.write_zeros().ok());
  EXPECT_EQ(read(husk, 2), std::string(P, '\0'));
  EXPECT_EQ(read(husk, 3), std::string(P, 'x'));
  EXPECT_TRUE(applier.to_drop().empty());
}

TEST(PageApplier, NoMappingAndNoHuskAreErrors) {
  Puppet husk;
  husk.map(B, 4 * P);
  PageApplier applier(husk.pid());
  const absl::Status status = apply(applier, {{B + 3 * P, 2}}, text_of('a', 2));
  EXPECT_FALSE(status.ok());
  EXPECT_NE(message_of(status).find(fmt::format("{:#x}", B + 4 * P)), std::string_view::npos)
      << status;
  ::kill(husk.pid().value, SIGKILL);
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(husk.pid().value), &info, WEXITED | WNOWAIT), 0);
  EXPECT_EQ(errno_of(apply(applier, {{B, 1}}, text_of('a', 1))), ESRCH);
}

}  // namespace
}  // namespace godwit::pages
