// Disks as volumes of libvirt's storage pools: a folder is a pool of type "dir", and where nobody
// has defined one, it is for the time of a call.
#ifdef GODWIT_LIBVIRT
#include <algorithm>
#include <pugixml.hpp>
#include <span>
#include <sstream>
#include <vector>

#include "base/status.h"
#include "vm/libvirt_hypervisor.h"

namespace godwit::vm {
namespace {

// Also those that a daemon which died has left.
constexpr std::string_view kOurs = "godwit-";

using Pool = std::unique_ptr<virStoragePool, int (*)(virStoragePoolPtr)>;
using Volume = std::unique_ptr<virStorageVol, int (*)(virStorageVolPtr)>;

std::string folder_of(const std::string& path) { return path.substr(0, path.rfind('/')); }
std::string name_of(const std::string& path) { return path.substr(path.rfind('/') + 1); }

std::string printed(const pugi::xml_document& document) {
  std::ostringstream out;
  document.print(out, "", pugi::format_raw);
  return out.str();
}

std::string pool_xml(const std::string& folder) {
  pugi::xml_document document;
  pugi::xml_node pool = document.append_child("pool");
  pool.append_attribute("type") = "dir";
  const std::string name = fmt::format("{}{:016x}", kOurs, std::hash<std::string>()(folder));
  pool.append_child("name").text() = name.c_str();
  pool.append_child("target").append_child("path").text() = folder.c_str();
  return printed(document);
}

struct Base {
  std::string path;
  std::string format;
};

std::string volume_xml(const std::string& name, const std::string& format, uint64_t bytes,
                       const Base* base = nullptr) {
  pugi::xml_document document;
  pugi::xml_node volume = document.append_child("volume");
  volume.append_child("name").text() = name.c_str();
  pugi::xml_node capacity = volume.append_child("capacity");
  capacity.append_attribute("unit") = "bytes";
  capacity.text() = static_cast<unsigned long long>(bytes);
  volume.append_child("allocation").text() = 0;
  volume.append_child("target").append_child("format").append_attribute("type") = format.c_str();
  if (base != nullptr) {
    pugi::xml_node below = volume.append_child("backingStore");
    below.append_child("path").text() = base->path.c_str();
    below.append_child("format").append_attribute("type") = base->format.c_str();
  }
  return printed(document);
}

// Of libvirt's messages (VIR_NET_MESSAGE_LEGACY_PAYLOAD_MAX).
constexpr size_t kMessageBytes = 262120;
// Of virStreamRecvFlags(): a hole comes next.
constexpr int kAtHole = -3;

}  // namespace

absl::Status LibvirtHypervisor::in_pool(const std::string& path,
                                        absl::FunctionRef<absl::Status(virStoragePoolPtr)> act) {
  if (!path.starts_with('/') || path.ends_with('/') || folder_of(path).empty())
    return make_error(absl::StatusCode::kInvalidArgument, "{} is no file in a folder", path);
  GW_ASSIGN_OR_RETURN(const std::shared_ptr<Connection> connected, connection());
  // Pools of ours come and go.
  std::lock_guard lock(pools_mutex_);
  const std::string folder = folder_of(path);
  Pool pool(api_.virStoragePoolLookupByTargetPath(connected->get(), folder.c_str()),
            api_.virStoragePoolFree);
  if (pool == nullptr) {
    const absl::Status found = libvirt_error(api_, fmt::format("the pool of {}", folder));
    if (!absl::IsNotFound(found)) return found;
    pool.reset(api_.virStoragePoolCreateXML(connected->get(), pool_xml(folder).c_str(), 0));
    if (pool == nullptr)
      return make_error(absl::StatusCode::kNotFound, "{}: {}", folder,
                        message_of(libvirt_error(api_, "virStoragePoolCreateXML()")));
  }
  absl::Status done = absl::OkStatus();
  if (api_.virStoragePoolRefresh(pool.get(), 0) != 0)
    done = libvirt_error(api_, fmt::format("reading the folder {}", folder));
  if (done.ok()) done = act(pool.get());
  const char* name = api_.virStoragePoolGetName(pool.get());
  if (name != nullptr && std::string_view(name).starts_with(kOurs))
    api_.virStoragePoolDestroy(pool.get());  // of libvirt's memory; the folder stays
  return done;
}

absl::StatusOr<DiskSize> LibvirtHypervisor::disk_size(const std::string& uuid,
                                                      const std::string& target) {
  virDomainBlockInfo info{};
  GW_RETURN_IF_ERROR(on_domain(uuid, "virDomainGetBlockInfo()", [&](virDomainPtr found) {
    return api_.virDomainGetBlockInfo(found, target.c_str(), &info, 0);
  }));
  return DiskSize{info.capacity, info.allocation};
}

absl::StatusOr<uint64_t> LibvirtHypervisor::room_for(const std::string& path) {
  virStoragePoolInfo info{};
  GW_RETURN_IF_ERROR(in_pool(path, [&](virStoragePoolPtr pool) {
    return api_.virStoragePoolGetInfo(pool, &info) != 0
               ? libvirt_error(api_, "virStoragePoolGetInfo()")
               : absl::OkStatus();
  }));
  return info.available;
}

absl::StatusOr<bool> LibvirtHypervisor::disk_exists(const std::string& path) {
  bool exists = false;
  GW_RETURN_IF_ERROR(in_pool(path, [&](virStoragePoolPtr pool) {
    const Volume found(api_.virStorageVolLookupByName(pool, name_of(path).c_str()),
                       api_.virStorageVolFree);
    exists = found != nullptr;
    const absl::Status why = exists ? absl::OkStatus() : libvirt_error(api_, path);
    return absl::IsNotFound(why) ? absl::OkStatus() : why;
  }));
  return exists;
}

absl::Status LibvirtHypervisor::create_disk(const std::string& path, const std::string& format,
                                            uint64_t bytes) {
  return in_pool(path, [&](virStoragePoolPtr pool) {
    const Volume made(
        api_.virStorageVolCreateXML(pool, volume_xml(name_of(path), format, bytes).c_str(), 0),
        api_.virStorageVolFree);
    return made == nullptr ? libvirt_error(api_, fmt::format("creating {}", path))
                           : absl::OkStatus();
  });
}

absl::Status LibvirtHypervisor::create_overlay(const std::string& path, const std::string& base,
                                               const std::string& base_format, uint64_t bytes) {
  return in_pool(path, [&](virStoragePoolPtr pool) {
    const Base below{base, base_format};
    const Volume made(api_.virStorageVolCreateXML(
                          pool, volume_xml(name_of(path), "qcow2", bytes, &below).c_str(), 0),
                      api_.virStorageVolFree);
    return made == nullptr ? libvirt_error(api_, fmt::format("creating {}", path))
                           : absl::OkStatus();
  });
}

absl::StatusOr<uint64_t> LibvirtHypervisor::file_bytes(const std::string& path) {
  virStorageVolInfo info{};
  GW_RETURN_IF_ERROR(in_pool(path, [&](virStoragePoolPtr pool) {
    const Volume found(api_.virStorageVolLookupByName(pool, name_of(path).c_str()),
                       api_.virStorageVolFree);
    if (found == nullptr) return libvirt_error(api_, path);
    return api_.virStorageVolGetInfoFlags(found.get(), &info, VIR_STORAGE_VOL_GET_PHYSICAL) != 0
               ? libvirt_error(api_, fmt::format("the size of {}", path))
               : absl::OkStatus();
  }));
  return info.allocation;
}

class LibvirtHypervisor::FileStream final : public FileWriter {
 public:
  FileStream(const Libvirt& api, std::shared_ptr<Connection> connection, std::string path)
      : api_(api),
        connection_(std::move(connection)),
        path_(std::move(path)),
        stream_(api.virStreamNew(connection_->get(), 0)) {}
  ~FileStream() override {
    if (stream_ == nullptr) return;
    if (!ended_) api_.virStreamAbort(stream_);
    api_.virStreamFree(stream_);
  }
  FileStream(const FileStream&) = delete;
  FileStream& operator=(const FileStream&) = delete;
  virStreamPtr get() const { return stream_; }

  absl::Status read(const TakeBytes& take) {
    std::vector<std::byte> buffer(kMessageBytes);
    for (;;) {
      const int got = api_.virStreamRecvFlags(stream_, reinterpret_cast<char*>(buffer.data()),
                                              buffer.size(), VIR_STREAM_RECV_STOP_AT_HOLE);
      long long hole = 0;
      if (got == kAtHole) {
        if (api_.virStreamRecvHole(stream_, &hole, 0) != 0) return failed("reading");
        at_ += static_cast<uint64_t>(hole);
        continue;
      }
      if (got < 0) return failed("reading");
      if (got == 0) break;
      const auto bytes = std::span(buffer).first(static_cast<size_t>(got));
      GW_RETURN_IF_ERROR(take(at_, bytes));
      at_ += bytes.size();
    }
    return end("reading");
  }

  absl::Status write(uint64_t offset, std::span<const std::byte> bytes) override {
    GW_RETURN_IF_ERROR(leave_out_until(offset));
    while (!bytes.empty()) {
      const int sent = api_.virStreamSend(stream_, reinterpret_cast<const char*>(bytes.data()),
                                          std::min(bytes.size(), kMessageBytes));
      if (sent < 0) return failed("writing");
      bytes = bytes.subspan(static_cast<size_t>(sent));
      at_ += static_cast<uint64_t>(sent);
    }
    return absl::OkStatus();
  }
  absl::Status finish(uint64_t file_bytes) override {
    GW_RETURN_IF_ERROR(leave_out_until(file_bytes));
    return end("writing");
  }

 private:
  absl::Status leave_out_until(uint64_t offset) {
    if (offset < at_)
      return make_error(absl::StatusCode::kInvalidArgument, "{}: offset {} after {}", path_, offset,
                        at_);
    if (offset == at_) return absl::OkStatus();
    if (api_.virStreamSendHole(stream_, static_cast<long long>(offset - at_), 0) != 0)
      return failed("writing");
    at_ = offset;
    return absl::OkStatus();
  }
  absl::Status end(const char* doing) {
    ended_ = true;
    return api_.virStreamFinish(stream_) != 0 ? failed(doing) : absl::OkStatus();
  }
  // libvirt has ended the stream.
  absl::Status failed(const char* doing) {
    return libvirt_error(api_, fmt::format("{} {}", doing, path_));
  }

  const Libvirt& api_;
  std::shared_ptr<Connection> connection_;
  std::string path_;
  virStreamPtr stream_;
  uint64_t at_ = 0;
  bool ended_ = false;
};

absl::StatusOr<std::unique_ptr<LibvirtHypervisor::FileStream>> LibvirtHypervisor::open_file(
    const std::string& path, bool write) {
  // Its own: a stream that blocks would hold up the calls of others.
  GW_ASSIGN_OR_RETURN(const auto connected, Connection::open(api_, uri_of(socket_)));
  auto stream = std::make_unique<FileStream>(api_, connected, path);
  if (stream->get() == nullptr) return libvirt_error(api_, "virStreamNew()");
  GW_RETURN_IF_ERROR(in_pool(path, [&](virStoragePoolPtr) {
    const Pool pool(
        api_.virStoragePoolLookupByTargetPath(connected->get(), folder_of(path).c_str()),
        api_.virStoragePoolFree);
    if (pool == nullptr) return libvirt_error(api_, fmt::format("the pool of {}", path));
    const Volume found(api_.virStorageVolLookupByName(pool.get(), name_of(path).c_str()),
                       api_.virStorageVolFree);
    if (found == nullptr) return libvirt_error(api_, path);
    const int opened = write ? api_.virStorageVolUpload(found.get(), stream->get(), 0, 0,
                                                        VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM)
                             : api_.virStorageVolDownload(found.get(), stream->get(), 0, 0,
                                                          VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM);
    return opened != 0 ? libvirt_error(api_, fmt::format("opening {}", path)) : absl::OkStatus();
  }));
  return stream;
}

absl::Status LibvirtHypervisor::read_file(const std::string& path, const TakeBytes& take) {
  GW_ASSIGN_OR_RETURN(const auto stream, open_file(path, false));
  return stream->read(take);
}

absl::StatusOr<std::unique_ptr<Hypervisor::FileWriter>> LibvirtHypervisor::write_file(
    const std::string& path) {
  GW_ASSIGN_OR_RETURN(auto stream, open_file(path, true));
  return std::unique_ptr<FileWriter>(std::move(stream));
}

absl::Status LibvirtHypervisor::remove_disk(const std::string& path) {
  const absl::Status done = in_pool(path, [&](virStoragePoolPtr pool) {
    const Volume found(api_.virStorageVolLookupByName(pool, name_of(path).c_str()),
                       api_.virStorageVolFree);
    if (found == nullptr) return libvirt_error(api_, path);
    return api_.virStorageVolDelete(found.get(), 0) != 0
               ? libvirt_error(api_, fmt::format("removing {}", path))
               : absl::OkStatus();
  });
  return absl::IsNotFound(done) ? absl::OkStatus() : done;
}

}  // namespace godwit::vm
#endif
