#include "vm/hypervisor.h"

#include <unistd.h>

#include "base/status.h"
#ifdef GODWIT_LIBVIRT
#include "vm/libvirt_hypervisor.h"
#endif

namespace godwit::vm {

std::string Hypervisor::uri_of(const std::string& socket) {
  return "qemu+unix:///system?socket=" + socket;
}

std::string Hypervisor::default_socket() {
  const char* modular = "/run/libvirt/virtqemud-sock";
  return ::access(modular, F_OK) == 0 ? modular : "/run/libvirt/libvirt-sock";
}

#ifdef GODWIT_LIBVIRT
absl::StatusOr<std::shared_ptr<Hypervisor>> Hypervisor::open(const std::string& socket) {
  GW_ASSIGN_OR_RETURN(const Libvirt* api, libvirt());
  return std::make_shared<LibvirtHypervisor>(*api, socket.empty() ? default_socket() : socket);
}
#else
absl::StatusOr<std::shared_ptr<Hypervisor>> Hypervisor::open(const std::string&) {
  return make_error(absl::StatusCode::kUnimplemented,
                    "Godwit was built without virtual machines; install libvirt-dev and "
                    "libpugixml-dev and build it again");
}
#endif

}  // namespace godwit::vm
