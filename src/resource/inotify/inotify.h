// inotify(7): watches of files and folders.
//
// Facts (Linux 6.18, fs/notify). fdinfo has a watch's number, mask and inode; the name by which it
// was added is nowhere kept. The inode's entries in the cache of names (struct dentry) have it,
// from the kernel's memory; whether a name found there still leads to that inode is asked by
// opening it. INOTIFY_IOC_SETNEXTWD (CONFIG_CHECKPOINT_RESTORE, Linux 4.17) chooses the number of
// the next watch. Events cannot be put back into a queue, so capture() of the final epoch returns
// kUnavailable until they have been read.
#ifndef GODWIT_RESOURCE_INOTIFY_INOTIFY_H_
#define GODWIT_RESOURCE_INOTIFY_INOTIFY_H_

#include "resource/resource.h"

namespace godwit::resource {

const FileKind& inotify_kind();

}  // namespace godwit::resource

#endif  // GODWIT_RESOURCE_INOTIFY_INOTIFY_H_
