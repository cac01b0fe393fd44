#ifdef GODWIT_LIBVIRT
#include "vm/libvirt.h"

#include <dlfcn.h>
#include <signal.h>

#include <thread>

#include "base/log.h"
#include "base/status.h"

namespace godwit::vm {
namespace {

absl::StatusOr<const Libvirt*> load() {
  void* library = ::dlopen("libvirt.so.0", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    return make_error(absl::StatusCode::kUnimplemented,
                      "this node has no libvirt ({}); install libvirt-daemon-system and "
                      "qemu-system-x86 and start the daemon again",
                      ::dlerror());
  static Libvirt api;
#define GODWIT_FIND(call)                                                   \
  api.call = reinterpret_cast<decltype(api.call)>(::dlsym(library, #call)); \
  if (api.call == nullptr)                                                  \
    return make_error(absl::StatusCode::kUnimplemented, "libvirt.so.0 is too old: no " #call);
  GODWIT_LIBVIRT_CALLS(GODWIT_FIND)
#undef GODWIT_FIND
  api.confirm_migration =
      reinterpret_cast<ConfirmMigration>(::dlsym(library, "virDomainMigrateConfirm3Params"));
  if (void* for_qemu = ::dlopen("libvirt-qemu.so.0", RTLD_NOW | RTLD_LOCAL)) {
    api.qemu_monitor_command =
        reinterpret_cast<QemuMonitorCommand>(::dlsym(for_qemu, "virDomainQemuMonitorCommand"));
    api.qemu_monitor_command_with_files = reinterpret_cast<QemuMonitorCommandWithFiles>(
        ::dlsym(for_qemu, "virDomainQemuMonitorCommandWithFiles"));
  }
  if (api.virInitialize() != 0) return libvirt_error(api, "virInitialize()");
  // Otherwise it prints each error.
  api.virSetErrorFunc(nullptr, [](void*, virErrorPtr) {});
  if (api.virEventRegisterDefaultImpl() != 0)
    return libvirt_error(api, "virEventRegisterDefaultImpl()");
  // It reads all connections, for as long as the process lives.
  std::thread([] {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
    for (;;)
      if (api.virEventRunDefaultImpl() != 0) log_warning("virEventRunDefaultImpl() failed");
  }).detach();
  return &api;
}

}  // namespace

absl::StatusOr<const Libvirt*> libvirt() {
  static const absl::StatusOr<const Libvirt*> loaded = load();
  return loaded;
}

absl::Status libvirt_error(const Libvirt& api, std::string_view call) {
  const virError* error = api.virGetLastError();
  if (error == nullptr) return make_error(absl::StatusCode::kInternal, "{} failed", call);
  absl::StatusCode code = absl::StatusCode::kFailedPrecondition;
  switch (error->code) {
    case VIR_ERR_NO_DOMAIN:
    case VIR_ERR_NO_STORAGE_POOL:
    case VIR_ERR_NO_STORAGE_VOL:
      code = absl::StatusCode::kNotFound;
      break;
    case VIR_ERR_XML_ERROR:
    case VIR_ERR_XML_DETAIL:
    case VIR_ERR_INVALID_ARG:
    case VIR_ERR_CONFIG_UNSUPPORTED:
      code = absl::StatusCode::kInvalidArgument;
      break;
    case VIR_ERR_STORAGE_VOL_EXIST:
      code = absl::StatusCode::kAlreadyExists;
      break;
    case VIR_ERR_OPERATION_TIMEOUT:
      code = absl::StatusCode::kDeadlineExceeded;
      break;
    case VIR_ERR_NO_CONNECT:
    case VIR_ERR_INVALID_CONN:
    case VIR_ERR_SYSTEM_ERROR:
    case VIR_ERR_RPC:
      // Of the connection itself; what its daemon has met comes from another domain.
      if (error->domain == VIR_FROM_RPC || error->domain == VIR_FROM_REMOTE ||
          error->code == VIR_ERR_NO_CONNECT || error->code == VIR_ERR_INVALID_CONN)
        code = absl::StatusCode::kUnavailable;
      break;
    default:
      break;
  }
  std::string_view message = error->message == nullptr ? "" : error->message;
  return make_error(code, "{}: {}", call, message);
}

}  // namespace godwit::vm
#endif
