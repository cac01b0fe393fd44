#include "kernel/vdso.h"

#include <elf.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/status.h"
#include "base/unique_fd.h"
#include "kernel/proc/maps.h"
#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

// Bounds are checked at each step: an image comes from a program's memory.
class Image {
 public:
  explicit Image(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <typename T>
  bool read(uint64_t at, T& value) const {
    if (at > bytes_.size() || bytes_.size() - at < sizeof value) return false;
    std::memcpy(&value, bytes_.data() + at, sizeof value);
    return true;
  }
  bool text(uint64_t at, std::string& value) const {
    if (at >= bytes_.size()) return false;
    const auto* begin = reinterpret_cast<const char*>(bytes_.data() + at);
    const size_t length = ::strnlen(begin, bytes_.size() - at);
    if (length == bytes_.size() - at) return false;
    value.assign(begin, length);
    return true;
  }

 private:
  std::span<const std::byte> bytes_;
};

absl::Status broken(std::string_view what) {
  return make_error(absl::StatusCode::kDataLoss, "the vDSO's image: {}", what);
}

struct Tables {
  uint64_t symbols = 0;
  uint64_t strings = 0;
  uint64_t hash = 0;      // DT_HASH: has the number of symbols
  uint64_t gnu_hash = 0;  // DT_GNU_HASH: kernels since 6.12 have this one only
};

absl::StatusOr<Tables> find_tables(const Image& image, uint64_t at, uint64_t size) {
  Tables tables;
  for (uint64_t offset = 0; offset + sizeof(Elf64_Dyn) <= size; offset += sizeof(Elf64_Dyn)) {
    Elf64_Dyn entry{};
    if (!image.read(at + offset, entry)) return broken("its dynamic section is cut off");
    if (entry.d_tag == DT_NULL) break;
    if (entry.d_tag == DT_SYMTAB) tables.symbols = entry.d_un.d_ptr;
    if (entry.d_tag == DT_STRTAB) tables.strings = entry.d_un.d_ptr;
    if (entry.d_tag == DT_HASH) tables.hash = entry.d_un.d_ptr;
    if (entry.d_tag == DT_GNU_HASH) tables.gnu_hash = entry.d_un.d_ptr;
  }
  if (tables.symbols == 0 || tables.strings == 0) return broken("it has no symbols");
  return tables;
}

// Buckets name the first symbol of a chain; the last one of a chain has its lowest bit set.
absl::StatusOr<uint64_t> count_by_gnu_hash(const Image& image, uint64_t at) {
  struct {
    uint32_t buckets, first, bloom_words, bloom_shift;
  } head{};
  if (!image.read(at, head)) return broken("its hash table is cut off");
  const uint64_t buckets = at + sizeof head + uint64_t{head.bloom_words} * sizeof(uint64_t);
  uint64_t last = 0;
  for (uint64_t i = 0; i < head.buckets; ++i) {
    uint32_t symbol = 0;
    if (!image.read(buckets + i * sizeof symbol, symbol)) return broken("its buckets are cut off");
    last = std::max<uint64_t>(last, symbol);
  }
  if (last < head.first) return uint64_t{head.first};
  const uint64_t chains = buckets + uint64_t{head.buckets} * sizeof(uint32_t);
  for (;; ++last) {
    uint32_t link = 0;
    if (!image.read(chains + (last - head.first) * sizeof link, link))
      return broken("its chains are cut off");
    if ((link & 1) != 0) return last + 1;
  }
}

absl::StatusOr<uint64_t> count_symbols(const Image& image, const Tables& tables) {
  if (tables.hash != 0) {
    uint32_t chains = 0;
    if (!image.read(tables.hash + sizeof chains, chains)) return broken("its hash is cut off");
    return uint64_t{chains};
  }
  if (tables.gnu_hash == 0) return broken("it has no hash table");
  return count_by_gnu_hash(image, tables.gnu_hash);
}

}  // namespace

absl::StatusOr<Vdso> parse_vdso(std::span<const std::byte> bytes) {
  const Image image(bytes);
  Elf64_Ehdr head{};
  if (!image.read(0, head) || std::memcmp(head.e_ident, ELFMAG, SELFMAG) != 0 ||
      head.e_ident[EI_CLASS] != ELFCLASS64 || head.e_phentsize != sizeof(Elf64_Phdr))
    return broken("it is not an ELF-64 object");
  Vdso vdso;
  vdso.code.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  Elf64_Phdr dynamic{};
  for (uint64_t i = 0; i < head.e_phnum; ++i) {
    Elf64_Phdr part{};
    if (!image.read(head.e_phoff + i * sizeof part, part)) return broken("its parts are cut off");
    if (part.p_type == PT_DYNAMIC) dynamic = part;
    if (part.p_type != PT_NOTE) continue;
    if (part.p_offset > bytes.size() || bytes.size() - part.p_offset < part.p_filesz)
      return broken("its notes are cut off");
    vdso.code.replace(part.p_offset, part.p_filesz, part.p_filesz, '\0');
  }
  GW_ASSIGN_OR_RETURN(const Tables tables, find_tables(image, dynamic.p_offset, dynamic.p_filesz));
  GW_ASSIGN_OR_RETURN(const uint64_t count, count_symbols(image, tables));
  for (uint64_t i = 0; i < count; ++i) {
    Elf64_Sym symbol{};
    if (!image.read(tables.symbols + i * sizeof symbol, symbol))
      return broken("its symbols are cut off");
    const auto type = ELF64_ST_TYPE(symbol.st_info);
    if (symbol.st_shndx == SHN_UNDEF || (type != STT_FUNC && type != STT_NOTYPE)) continue;
    VdsoSymbol& one = vdso.symbols.emplace_back();
    one.offset = symbol.st_value;
    if (!image.text(tables.strings + symbol.st_name, one.name)) return broken("a name is cut off");
  }
  std::sort(vdso.symbols.begin(), vdso.symbols.end());
  return vdso;
}

absl::StatusOr<Vdso> read_vdso() {
  GW_ASSIGN_OR_RETURN(const auto maps, read_maps(HostPid{::getpid()}));
  for (const Mapping& mapping : maps) {
    if (mapping.path != "[vdso]") continue;
    GW_ASSIGN_OR_RETURN(const UniqueFd memory, open("/proc/self/mem", O_RDONLY));
    std::vector<std::byte> image(mapping.end - mapping.start);
    const ssize_t size =
        ::pread(memory.get(), image.data(), image.size(), static_cast<off_t>(mapping.start));
    if (size < 0) return errno_status(errno, "pread(\"/proc/self/mem\", [vdso])");
    return parse_vdso(std::span(image).first(static_cast<size_t>(size)));
  }
  return make_error(absl::StatusCode::kNotFound, "this process has no vDSO");
}

}  // namespace godwit::kernel
