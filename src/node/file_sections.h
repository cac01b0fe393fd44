// How files below the writable layer are named in the stream.
#ifndef GODWIT_NODE_FILE_SECTIONS_H_
#define GODWIT_NODE_FILE_SECTIONS_H_

#include <string>

#include "capsule/paths.h"

namespace godwit::node {

// State: capsule.UsedFile; its id is the source's.
inline constexpr char kFileSection[] = "file";
// Between movers only, without a state: the destination is to say (PeerMessage.wanted_files) which
// of the files that it was told of it lacks.
inline constexpr char kFileQuestion[] = "file_question";

inline std::string file_hashes(const capsule::NodePaths& node) {
  return node.state_dir + "/file-hashes";
}

}  // namespace godwit::node

#endif  // GODWIT_NODE_FILE_SECTIONS_H_
