// libvirt's C API (libvirt.so.0), loaded when it is first needed: whoever has no virtual machines
// need not install it, and its thirty libraries would be linked into every process of ours.
#ifndef GODWIT_VM_LIBVIRT_H_
#define GODWIT_VM_LIBVIRT_H_

#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace godwit::vm {

#define GODWIT_LIBVIRT_CALLS(X)         \
  X(virConnectClose)                    \
  X(virConnectDomainEventDeregisterAny) \
  X(virConnectDomainEventRegisterAny)   \
  X(virConnectGetDomainCapabilities)    \
  X(virConnectCompareHypervisorCPU)     \
  X(virConnectIsAlive)                  \
  X(virConnectOpenAuth)                 \
  X(virConnectSetKeepAlive)             \
  X(virDomainAbortJob)                  \
  X(virDomainBlockCommit)               \
  X(virDomainBlockJobAbort)             \
  X(virDomainCreate)                    \
  X(virDomainCreateWithFlags)           \
  X(virDomainDefineXMLFlags)            \
  X(virDomainDestroy)                   \
  X(virDomainFree)                      \
  X(virDomainGetBlockInfo)              \
  X(virDomainGetBlockJobInfo)           \
  X(virDomainGetJobStats)               \
  X(virDomainGetState)                  \
  X(virDomainGetUUIDString)             \
  X(virDomainGetXMLDesc)                \
  X(virDomainHasManagedSaveImage)       \
  X(virDomainIsPersistent)              \
  X(virDomainListGetStats)              \
  X(virDomainLookupByName)              \
  X(virDomainLookupByUUIDString)        \
  X(virDomainMemoryStats)               \
  X(virDomainMigrate3)                  \
  X(virDomainMigrateSetMaxDowntime)     \
  X(virDomainMigrateStartPostCopy)      \
  X(virDomainOpenConsole)               \
  X(virDomainRestoreFlags)              \
  X(virDomainResume)                    \
  X(virDomainShutdown)                  \
  X(virDomainSnapshotCreateXML)         \
  X(virDomainSnapshotFree)              \
  X(virDomainSnapshotNum)               \
  X(virDomainStartDirtyRateCalc)        \
  X(virDomainStatsRecordListFree)       \
  X(virDomainSuspend)                   \
  X(virDomainUndefineFlags)             \
  X(virDomainUpdateDeviceFlags)         \
  X(virEventAddTimeout)                 \
  X(virEventRegisterDefaultImpl)        \
  X(virEventRunDefaultImpl)             \
  X(virGetLastError)                    \
  X(virInitialize)                      \
  X(virSetErrorFunc)                    \
  X(virStoragePoolCreateXML)            \
  X(virStoragePoolDestroy)              \
  X(virStoragePoolFree)                 \
  X(virStoragePoolGetInfo)              \
  X(virStoragePoolGetName)              \
  X(virStoragePoolLookupByTargetPath)   \
  X(virStoragePoolRefresh)              \
  X(virStorageVolCreateXML)             \
  X(virStorageVolDelete)                \
  X(virStorageVolDownload)              \
  X(virStorageVolFree)                  \
  X(virStorageVolGetInfoFlags)          \
  X(virStorageVolLookupByName)          \
  X(virStorageVolUpload)                \
  X(virStreamAbort)                     \
  X(virStreamFinish)                    \
  X(virStreamFree)                      \
  X(virStreamNew)                       \
  X(virStreamRecv)                      \
  X(virStreamRecvFlags)                 \
  X(virStreamRecvHole)                  \
  X(virStreamSend)                      \
  X(virStreamSendHole)                  \
  X(virTypedParamsAddString)            \
  X(virTypedParamsAddULLong)            \
  X(virTypedParamsFree)                 \
  X(virTypedParamsGetLLong)             \
  X(virTypedParamsGetULLong)            \
  X(virTypedParamsGetInt)

// Not in libvirt's public headers: "confirm", a step of each migration that its client drives, with
// `cancelled` the one that ends a job whose domain stays (src/libvirt_private.syms).
using ConfirmMigration = int (*)(virDomainPtr, virTypedParameterPtr, int, const char*, int,
                                 unsigned, int);
// libvirt-qemu.so.0. The second gives QEMU descriptors with it (libvirt 8.2).
using QemuMonitorCommand = int (*)(virDomainPtr, const char*, char**, unsigned);
using QemuMonitorCommandWithFiles = int (*)(virDomainPtr, const char*, unsigned, int*, unsigned*,
                                            int**, char**, unsigned);

struct Libvirt {
  // Null: not there, and then there is no post-copy.
  ConfirmMigration confirm_migration = nullptr;
  QemuMonitorCommand qemu_monitor_command = nullptr;
  // Null before libvirt 8.2, and then there are no checkpoints.
  QemuMonitorCommandWithFiles qemu_monitor_command_with_files = nullptr;
#define GODWIT_DECLARE(call) decltype(&::call) call = nullptr;
  GODWIT_LIBVIRT_CALLS(GODWIT_DECLARE)
#undef GODWIT_DECLARE
};

// Loads it at the first call and starts the thread that reads its connections. kUnimplemented: it
// is not installed, with what to do. The object lives for ever.
absl::StatusOr<const Libvirt*> libvirt();

// The calling thread's last error of libvirt. kUnavailable: its daemon does not answer; kNotFound:
// no such domain.
absl::Status libvirt_error(const Libvirt& api, std::string_view call);

}  // namespace godwit::vm

#endif  // GODWIT_VM_LIBVIRT_H_
