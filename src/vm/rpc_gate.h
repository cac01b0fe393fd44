// What libvirt's client says to libvirt, message by message, and the one that is held back:
// "finish" of a migration that went well, at which libvirt lets the machine run at the destination.
//
// A message (https://libvirt.org/kbase/internals/rpc.html) is, big endian: its length, these four
// bytes included, program, version, procedure, type, serial, status, and what the procedure says.
// "finish" is REMOTE_PROC_DOMAIN_MIGRATE_FINISH3_PARAMS, 306, of program 0x20008086 (libvirt's
// src/remote/remote_protocol.x), whose last member is the int `cancelled`.
#ifndef GODWIT_VM_RPC_GATE_H_
#define GODWIT_VM_RPC_GATE_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace godwit::vm {

// Not thread-safe.
class RpcGate {
 public:
  // Takes bytes of the client; returns those that may go on, whole messages. From a held one on
  // nothing does until open().
  std::string pass(std::string_view bytes);
  // "finish" waits here.
  bool held() const { return held_; }
  // What waits goes on, and from here on everything does.
  std::string open();
  // Too long for a message of libvirt's: whoever sends it is none of its clients.
  bool broken() const { return broken_; }

 private:
  std::string waiting_;
  bool held_ = false;
  bool open_ = false;
  bool broken_ = false;
};

}  // namespace godwit::vm

#endif  // GODWIT_VM_RPC_GATE_H_
