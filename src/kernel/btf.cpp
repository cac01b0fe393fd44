#include "kernel/btf.h"

#include <linux/btf.h>

#include <cstring>
#include <span>
#include <utility>

#include "absl/base/const_init.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "kernel/syscalls.h"

namespace godwit::kernel {
namespace {

constexpr int kMaxDepth = 16;

absl::Status damaged(std::string_view what) {
  return make_error(absl::StatusCode::kDataLoss, "BTF of the kernel: {}", what);
}

// What follows a btf_type (linux/btf.h of 6.1; kinds that are newer than it are an error).
absl::StatusOr<size_t> extra_bytes(uint32_t info) {
  const size_t count = BTF_INFO_VLEN(info);
  switch (BTF_INFO_KIND(info)) {
    case BTF_KIND_PTR:
    case BTF_KIND_FWD:
    case BTF_KIND_TYPEDEF:
    case BTF_KIND_VOLATILE:
    case BTF_KIND_CONST:
    case BTF_KIND_RESTRICT:
    case BTF_KIND_FUNC:
    case BTF_KIND_FLOAT:
    case BTF_KIND_TYPE_TAG:
      return size_t{0};
    case BTF_KIND_INT:
    case BTF_KIND_VAR:
    case BTF_KIND_DECL_TAG:
      return size_t{4};
    case BTF_KIND_ARRAY:
      return sizeof(btf_array);
    case BTF_KIND_STRUCT:
    case BTF_KIND_UNION:
      return count * sizeof(btf_member);
    case BTF_KIND_DATASEC:
      return count * sizeof(btf_var_secinfo);
    case BTF_KIND_ENUM64:
      return count * sizeof(btf_enum64);
    case BTF_KIND_ENUM:
      return count * sizeof(btf_enum);
    case BTF_KIND_FUNC_PROTO:
      return count * sizeof(btf_param);
    default:
      return make_error(absl::StatusCode::kUnimplemented, "BTF of the kernel has kind {}",
                        BTF_INFO_KIND(info));
  }
}

bool is_aggregate(const btf_type& type) {
  return BTF_INFO_KIND(type.info) == BTF_KIND_STRUCT || BTF_INFO_KIND(type.info) == BTF_KIND_UNION;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Btf>> Btf::of_kernel() {
  static absl::Mutex mutex(absl::kConstInit);
  static auto& known = *new std::shared_ptr<const Btf>;
  const absl::MutexLock lock(&mutex);
  if (known == nullptr) {
    GW_ASSIGN_OR_RETURN(std::string bytes, read_file("/sys/kernel/btf/vmlinux"));
    GW_ASSIGN_OR_RETURN(Btf btf, parse(std::move(bytes)));
    known = std::make_shared<const Btf>(std::move(btf));
  }
  return known;
}

absl::StatusOr<Btf> Btf::parse(std::string bytes) {
  Btf btf;
  btf.bytes_ = std::move(bytes);
  btf_header header{};
  if (btf.bytes_.size() < sizeof header) return damaged("no header");
  std::memcpy(&header, btf.bytes_.data(), sizeof header);
  if (header.magic != BTF_MAGIC || header.version != BTF_VERSION) return damaged("another version");
  const uint64_t types = uint64_t{header.hdr_len} + header.type_off;
  const uint64_t texts = uint64_t{header.hdr_len} + header.str_off;
  if (types % 4 != 0 || types + header.type_len > btf.bytes_.size() ||
      texts + header.str_len > btf.bytes_.size() || header.str_len == 0 ||
      btf.bytes_[texts + header.str_len - 1] != '\0')
    return damaged("parts beyond its end");
  btf.texts_ = std::string_view(btf.bytes_).substr(texts, header.str_len);
  btf.at_.push_back(0);  // void
  const uint64_t end = types + header.type_len;
  for (uint64_t at = types; at < end;) {
    if (end - at < sizeof(btf_type)) return damaged("a type beyond its end");
    const auto id = static_cast<uint32_t>(btf.at_.size());
    btf.at_.push_back(static_cast<uint32_t>(at));
    const btf_type& one = *btf.type(id);
    GW_ASSIGN_OR_RETURN(const size_t extra, extra_bytes(one.info));
    if (end - at - sizeof(btf_type) < extra) return damaged("a type beyond its end");
    if (BTF_INFO_KIND(one.info) == BTF_KIND_STRUCT)
      btf.structures_.try_emplace(btf.text(one.name_off), id);
    else if (BTF_INFO_KIND(one.info) == BTF_KIND_FUNC &&
             btf.text(one.name_off).starts_with("bpf_iter_"))
      btf.functions_.try_emplace(btf.text(one.name_off), id);
    at += sizeof(btf_type) + extra;
  }
  return btf;
}

const btf_type* Btf::type(uint32_t id) const {
  if (id == 0 || id >= at_.size()) return nullptr;
  return reinterpret_cast<const btf_type*>(bytes_.data() + at_[id]);
}

std::string_view Btf::text(uint32_t offset) const {
  return offset < texts_.size() ? std::string_view(texts_.data() + offset) : std::string_view();
}

uint32_t Btf::resolve(uint32_t id) const {
  for (int depth = 0; depth < kMaxDepth; ++depth) {
    const btf_type* one = type(id);
    if (one == nullptr) return 0;
    switch (BTF_INFO_KIND(one->info)) {
      case BTF_KIND_TYPEDEF:
      case BTF_KIND_CONST:
      case BTF_KIND_VOLATILE:
      case BTF_KIND_RESTRICT:
      case BTF_KIND_TYPE_TAG:
        id = one->type;
        break;
      default:
        return id;
    }
  }
  return 0;
}

// 0 where it has none.
uint32_t Btf::size_of(uint32_t id) const {
  const btf_type* one = type(id);
  if (one == nullptr) return 0;
  switch (BTF_INFO_KIND(one->info)) {
    case BTF_KIND_INT:
    case BTF_KIND_ENUM:
    case BTF_KIND_ENUM64:
    case BTF_KIND_FLOAT:
    case BTF_KIND_STRUCT:
    case BTF_KIND_UNION:
      return one->size;
    case BTF_KIND_PTR:
      return sizeof(void*);
    case BTF_KIND_ARRAY: {
      const auto& array = *reinterpret_cast<const btf_array*>(one + 1);
      const uint32_t element = resolve(array.type);
      // Arrays of arrays are not looked into.
      const btf_type* of = type(element);
      if (of == nullptr || BTF_INFO_KIND(of->info) == BTF_KIND_ARRAY) return 0;
      return size_of(element) * array.nelems;
    }
    default:
      return 0;
  }
}

bool Btf::find_member(uint32_t id, std::string_view name, int depth, Member& found) const {
  const btf_type* structure = type(id);
  if (structure == nullptr || !is_aggregate(*structure) || depth > kMaxDepth) return false;
  const bool with_widths = BTF_INFO_KFLAG(structure->info) != 0;
  const std::span<const btf_member> members(reinterpret_cast<const btf_member*>(structure + 1),
                                            BTF_INFO_VLEN(structure->info));
  for (const btf_member& member : members) {
    const uint32_t bits = with_widths ? BTF_MEMBER_BIT_OFFSET(member.offset) : member.offset;
    const uint32_t width = with_widths ? BTF_MEMBER_BITFIELD_SIZE(member.offset) : 0;
    const uint32_t of = resolve(member.type);
    if (text(member.name_off) == name) {
      found = {bits / 8, of};
      return width == 0 && bits % 8 == 0;
    }
    Member inside;
    if (text(member.name_off).empty() && find_member(of, name, depth + 1, inside)) {
      found = {bits / 8 + inside.offset, inside.type};
      return true;
    }
  }
  return false;
}

absl::StatusOr<uint32_t> Btf::function(std::string_view name) const {
  const auto found = functions_.find(name);
  if (found == functions_.end())
    return make_error(absl::StatusCode::kNotFound, "BTF of the kernel has no function {}", name);
  return found->second;
}

absl::StatusOr<Btf::Field> Btf::field(std::string_view structure, std::string_view path) const {
  const auto none = [&] {
    return make_error(absl::StatusCode::kNotFound, "BTF of the kernel has no {} in struct {}", path,
                      structure);
  };
  const auto start = structures_.find(structure);
  if (start == structures_.end()) return none();
  Field field;
  uint32_t id = start->second;
  for (std::string_view rest = path; !rest.empty();) {
    const size_t dot = rest.find('.');
    Member member;
    if (!find_member(id, rest.substr(0, dot), 0, member)) return none();
    field.offset += member.offset;
    id = member.type;
    rest = dot == std::string_view::npos ? std::string_view() : rest.substr(dot + 1);
  }
  field.size = size_of(id);
  // An array at a structure's end may have no length of its own.
  const btf_type* last = type(resolve(id));
  if (field.size == 0 && (last == nullptr || BTF_INFO_KIND(last->info) != BTF_KIND_ARRAY))
    return none();
  return field;
}

absl::StatusOr<uint32_t> Btf::size(std::string_view structure) const {
  const auto found = structures_.find(structure);
  if (found == structures_.end())
    return make_error(absl::StatusCode::kNotFound, "BTF of the kernel has no struct {}", structure);
  return size_of(found->second);
}

}  // namespace godwit::kernel
