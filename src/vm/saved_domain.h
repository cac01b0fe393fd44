// The head of a file that libvirt restores a domain from (virDomainSave(3),
// src/qemu/qemu_saveimage.h of libvirt 9.0, version 2): fixed part, the domain's XML, and behind it
// what QEMU wrote. libvirt reads it in order and never goes back, so that a FIFO does as well.
#ifndef GODWIT_VM_SAVED_DOMAIN_H_
#define GODWIT_VM_SAVED_DOMAIN_H_

#include <string>

namespace godwit::vm {

std::string saved_domain_head(const std::string& xml);

}  // namespace godwit::vm

#endif  // GODWIT_VM_SAVED_DOMAIN_H_
