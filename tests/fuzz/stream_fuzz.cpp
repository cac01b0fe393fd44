// Fuzzing of the stream's reader (libFuzzer: LLVMFuzzerTestOneInput). Any bytes whatever:
//   - the reader ends in DATA_LOSS or OUT_OF_RANGE with an offset, it never crashes;
//   - what it accepts, written again, is the bytes that it accepted.
// The unit test of stream/ runs the same function over the corpus and over damaged copies of it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "base/status.h"
#include "stream/frame.h"
#include "stream/memory_for_test.h"
#include "stream/stream.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace godwit;          // NOLINT: one file
using namespace godwit::stream;  // NOLINT

void require(bool condition, const char* what, const absl::Status& status = absl::OkStatus()) {
  if (condition) return;
  std::fprintf(stderr, "stream_fuzz: %s: %s\n", what, status.ToString().c_str());
  std::abort();
}

struct WriteAgain {
  Writer& to;
  absl::Status operator()(const Preamble& f) { return to.preamble(f); }
  absl::Status operator()(const EpochBegin& f) { return to.begin_epoch(f.final); }
  absl::Status operator()(const Section& f) { return to.section(f.key, f.state); }
  absl::Status operator()(const SectionRemoved& f) { return to.section_removed(f.key); }
  absl::Status operator()(const Pages& f) {
    if (f.codec != Codec::kNone) return to.compressed_pages(f.space, f.runs, f.codec, f.stored);
    const iovec data = {const_cast<std::byte*>(f.data.data()), f.data.size()};
    return to.pages(f.space, f.runs, {&data, 1});
  }
  absl::Status operator()(const PagesDropped& f) { return to.pages_dropped(f.space, f.runs); }
  absl::Status operator()(const PagesMissing& f) { return to.pages_missing(f.space, f.runs); }
  absl::Status operator()(const FileBlocks& f) { return to.file_blocks(f.state, f.data); }
  absl::Status operator()(const StateEnd&) { return to.end_state(); }
  absl::Status operator()(const PageHashes& f) { return to.page_hashes(f.space, f.runs, f.hashes); }
  absl::Status operator()(const HashesEnd&) { return to.end_hashes(); }
  absl::Status operator()(const EpochEnd&) { return to.end_epoch(); }
};

void check(std::string_view bytes) {
  MemoryFeed feed(bytes);
  Reader reader(feed);
  MemorySink sink;
  Writer writer(sink);
  while (true) {
    auto frame = reader.next();
    if (!frame.ok()) {
      const absl::Status& status = frame.status();
      require(absl::IsDataLoss(status) || absl::IsOutOfRange(status), "kind of error", status);
      require(message_of(status).find("stream offset ") != std::string_view::npos,
              "error without offset", status);
      break;
    }
    const absl::Status status = std::visit(WriteAgain{writer}, *frame);
    require(status.ok(), "what was read cannot be written", status);
    require(reader.bytes_read() == sink.bytes.size(), "length differs");
    require(bytes.substr(0, sink.bytes.size()) == sink.bytes, "bytes differ");
  }
  // The other way to read ends in the same place.
  MemoryFeed again(bytes);
  Reader deferred(again, PageData::kDeferred);
  absl::Status end;
  while (end.ok()) end = deferred.next().status();
  require(absl::IsDataLoss(end) || absl::IsOutOfRange(end), "kind of error, deferred", end);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  check({reinterpret_cast<const char*>(data), size});
  return 0;
}

#ifdef GODWIT_LIBFUZZER
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

// Half of the mutants get right checksums, else nothing behind them would be reached.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  size = LLVMFuzzerMutate(data, size, max_size);
  if (seed % 2 == 0) return size;
  for (size_t at = 0; at + kHeaderBytes <= size;) {
    uint64_t length = 0;
    std::memcpy(&length, data + at + 16, sizeof length);
    if (length > size - at - kHeaderBytes) break;
    Checksum checksum;
    checksum.update(data + at, kHashedHeaderBytes);
    checksum.update(data + at + kHeaderBytes, length);
    const uint64_t value = checksum.value();
    std::memcpy(data + at + kHashedHeaderBytes, &value, sizeof value);
    at += kHeaderBytes + length;
  }
  return size;
}
#endif
