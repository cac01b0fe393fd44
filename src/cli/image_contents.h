// What is in a checkpoint file, read without a daemon and without privileges. The file may be of
// anybody: the reader checks every frame, and what a section says is looked at, never acted on.
#ifndef GODWIT_CLI_IMAGE_CONTENTS_H_
#define GODWIT_CLI_IMAGE_CONTENTS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "capsule/used_file.pb.h"
#include "node/vm_image.pb.h"
#include "resource/fd_table/fd_table.pb.h"
#include "resource/memory_map/memory_map.pb.h"
#include "resource/process_tree/process_tree.pb.h"
#include "stream/stream.h"

namespace godwit::cli {

struct ImageEpoch {
  uint64_t number = 0;
  bool final = false;
  uint64_t frames = 0;
  uint64_t sections = 0;
  uint64_t pages = 0;                                     // with contents
  uint64_t page_bytes = 0;                                // what these take in the file
  std::map<std::string, uint64_t> compressed_pages = {};  // of them, by codec
  uint64_t dropped_pages = 0;                             // given back, or all zero
  uint64_t file_changes = 0;                              // of the writable layer
  uint64_t file_bytes = 0;
  uint64_t bytes = 0;  // in the file
};

struct ImageProcess {
  resource::ProcessTreeState::Process process;
  std::string name;                     // comm; empty in an image without a final epoch
  std::vector<std::string> task_names;  // by the process's list of threads
  resource::MemoryMapState memory_map;
  resource::FdTableState fd_table;
  uint64_t mapped_bytes = 0;  // sums may not overflow: clipped
};

struct ImageDescription {
  uint64_t id = 0;
  std::string kind;
  std::string text;  // FileKind::describe()
};

struct ImageKind {
  uint64_t sections = 0;
  uint64_t bytes = 0;
};

// A virtual machine instead of processes.
struct ImageVm {
  node::VmImage machine;
  uint64_t memory_bytes = 0;                        // as QEMU wrote it, with its devices
  std::map<std::string, uint64_t> file_bytes = {};  // of disks, by target
};

struct Image {
  stream::Preamble preamble;
  uint64_t bytes = 0;
  bool complete = false;  // it ends with a final epoch: it can be restored
  std::vector<ImageEpoch> epochs;
  std::vector<ImageProcess> processes;
  std::optional<ImageVm> vm;
  std::map<uint64_t, ImageDescription> descriptions;
  // In use below the writable layer: must be there, the same, where it is restored.
  std::map<std::string, capsule::UsedFile> files;
  // As they stand after the last epoch.
  std::map<std::string, ImageKind> kinds;
};

// kDataLoss with the offset for anything that is not a whole, undamaged stream.
absl::StatusOr<Image> read_image(stream::Feed& feed);

// Names in an image are somebody else's bytes: what a terminal would act on becomes \xNN.
std::string printable(std::string_view text);

}  // namespace godwit::cli

#endif  // GODWIT_CLI_IMAGE_CONTENTS_H_
