// Shared memory objects of a replica: shmem files that only mappings and memfds refer to.
//
// A MAP_SHARED|MAP_ANONYMOUS mapping of ours is such an object; /proc/self/map_files/ (proc(5),
// CAP_CHECKPOINT_RESTORE) gives a descriptor of it, through which husks map the very same one under
// the same name ("/dev/zero (deleted)"). Husks attach System V segments themselves. We reserve no
// huge pages: husks do when they map an object, as the program did, and a reservation of a shared
// mapping is the object's.
#ifndef GODWIT_PROCESS_SHARED_OBJECTS_H_
#define GODWIT_PROCESS_SHARED_OBJECTS_H_

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "resource/shared_object/shared_object.h"

namespace godwit::process {

// The object behind a mapping of our own.
absl::StatusOr<UniqueFd> open_own_mapping(void* memory, uint64_t size, int flags);

// Runs its argument on a thread in the capsule's namespaces (SourceHost, ReplicaHost).
using InCapsule = absl::FunctionRef<absl::Status(absl::FunctionRef<absl::Status()>)>;

class SharedObjects {
 public:
  SharedObjects() = default;
  SharedObjects(const SharedObjects&) = delete;
  SharedObjects& operator=(const SharedObjects&) = delete;
  ~SharedObjects();

  // Makes it or, if it has grown, grows it. `existing`: a memfd that was restored as a
  // descriptor and is the same object, or -1.
  absl::Status ensure(const resource::SharedObjectState& state, int existing);
  // The same of a file that was removed, made in the capsule and removed again.
  absl::Status ensure_file(const resource::SharedObjectState& state, int existing,
                           InCapsule in_capsule);
  // The same of a System V segment. We have it attached until clear().
  absl::Status ensure_segment(const resource::SharedObjectState& state, InCapsule in_capsule);
  // Gives up all others.
  absl::Status keep(const std::set<uint64_t>& ids, InCapsule in_capsule);
  // Bytes, rounded up to pages; 0 if there is none.
  uint64_t size(uint64_t id) const;
  // Our descriptor of it, -1 if there is none.
  int descriptor(uint64_t id) const;
  // Where its byte `offset` is in our memory, with `bytes` after it inside of the object.
  absl::StatusOr<std::span<std::byte>> at(uint64_t id, uint64_t offset, uint64_t bytes);
  // The same, to be written to: where it is of huge pages they are there then, or it is an error.
  absl::StatusOr<std::span<std::byte>> writable(uint64_t id, uint64_t offset, uint64_t bytes);
  // Closes and unmaps all.
  void clear();

 private:
  struct Object {
    UniqueFd fd;
    void* memory = nullptr;
    uint64_t size = 0;
    uint64_t huge_page_bytes = 0;
    bool anonymous = false;
    int shmid = -1;  // of a segment
  };
  static absl::Status map(Object& object, uint64_t size);
  static absl::Status make_anonymous(Object& object, uint64_t size);
  std::map<uint64_t, Object> objects_;
};

}  // namespace godwit::process

#endif  // GODWIT_PROCESS_SHARED_OBJECTS_H_
