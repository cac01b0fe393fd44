#include "vm/saved_domain.h"

#include <cstdint>
#include <cstring>

namespace godwit::vm {

//  0                  16        20         24        28           32            36           92
//  +------------------+---------+----------+---------+------------+-------------+------------+
//  | LibvirtQemudSave | version | XML, NUL | running | compressed | cookie's at | 14 times 0 |
//  +------------------+---------+----------+---------+------------+-------------+------------+
std::string saved_domain_head(const std::string& xml) {
  constexpr char kMagic[] = "LibvirtQemudSave";
  constexpr uint32_t kVersion = 2;
  constexpr size_t kBytes = 92;
  const auto length = static_cast<uint32_t>(xml.size() + 1);
  std::string head(kBytes, '\0');
  std::memcpy(head.data(), kMagic, sizeof kMagic - 1);
  // In the machine's byte order.
  std::memcpy(head.data() + 16, &kVersion, sizeof kVersion);
  std::memcpy(head.data() + 20, &length, sizeof length);
  return head + xml + '\0';
}

}  // namespace godwit::vm
