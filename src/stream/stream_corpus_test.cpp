// The fuzz target (tests/fuzz/stream_fuzz.cpp) over its corpus and random damage of it, so that
// every run of the unit tests does a little of it. The target aborts on a finding.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace godwit::stream {
namespace {

std::vector<std::string> corpus() {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(GODWIT_STREAM_CORPUS)) {
    std::ifstream file(entry.path(), std::ios::binary);
    files.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return files;
}

void feed(const std::string& bytes) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
}

TEST(StreamCorpus, EveryFileAndItsDamagedCopiesAreSurvived) {
  const std::vector<std::string> files = corpus();
  ASSERT_GE(files.size(), 3u);
  std::mt19937 random(1);
  const auto below = [&](size_t n) { return n == 0 ? 0 : static_cast<size_t>(random() % n); };
  for (const std::string& file : files) {
    feed(file);
    for (int i = 0; i < 500; ++i) {
      std::string bad = file;
      if (i % 3 == 0) bad.resize(below(bad.size()));
      for (size_t k = below(4); k > 0 && !bad.empty(); --k)
        bad[below(bad.size())] = static_cast<char>(random());
      if (i % 5 == 0) bad.insert(below(bad.size()), file.substr(below(file.size()), below(64)));
      feed(bad);
    }
  }
}

}  // namespace
}  // namespace godwit::stream
