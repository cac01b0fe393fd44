// Disks as volumes of libvirt's storage pools: a folder is a pool of type "dir", and where nobody
// has defined one, it is for the time of a call.
#ifdef GODWIT_LIBVIRT
#include <pugixml.hpp>
#include <sstream>

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

std::string volume_xml(const std::string& name, const std::string& format, uint64_t bytes) {
  pugi::xml_document document;
  pugi::xml_node volume = document.append_child("volume");
  volume.append_child("name").text() = name.c_str();
  pugi::xml_node capacity = volume.append_child("capacity");
  capacity.append_attribute("unit") = "bytes";
  capacity.text() = static_cast<unsigned long long>(bytes);
  volume.append_child("allocation").text() = 0;
  volume.append_child("target").append_child("format").append_attribute("type") = format.c_str();
  return printed(document);
}

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
