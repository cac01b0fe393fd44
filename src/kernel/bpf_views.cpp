#include "kernel/bpf_views.h"

#include <sys/mman.h>

#include <utility>

#include "base/status.h"
#include "kernel/bpf.h"

namespace godwit::kernel::bpf {

// What the program writes and we read.
struct Views::Shared {
  uint64_t count;  // of the objects that were seen; those beyond the capacity are counted only
  uint64_t records[1];
};

namespace {

constexpr int kShared = 8;
constexpr int kRecordsAt = 8;

int width(size_t bytes) {
  return bytes == 8 ? BPF_DW : bytes == 4 ? BPF_W : bytes == 2 ? BPF_H : BPF_B;
}

}  // namespace

void ViewProgram::follow(int dst, int src, std::string_view structure, std::string_view path) {
  const Btf::Field field = find(structure, path);
  add(load(width(field.size), dst, src, static_cast<int>(field.offset)));
}

void ViewProgram::copy(size_t to, size_t bytes, size_t piece, std::string_view structure,
                       std::string_view path) {
  const Btf::Field field = find(structure, path);
  if (field.size != bytes && status_.ok())
    status_ = make_error(absl::StatusCode::kUnimplemented, "{} of struct {} has {} bytes, not {}",
                         path, structure, field.size, bytes);
  for (size_t at = 0; at < bytes; at += piece) {
    add(load(width(piece), 1, kFrom, static_cast<int>(field.offset + at)));
    add(store(width(piece), kView, 1, static_cast<int>(to + at)));
  }
}

void ViewProgram::leave_if(int condition, int reg, uint32_t number) {
  leaving_.push_back(code_.size());
  add(jump_if(condition, reg, number, 0));
}

absl::StatusOr<std::vector<bpf_insn>> ViewProgram::finish() {
  GW_RETURN_IF_ERROR(status_);
  for (const size_t at : leaving_) code_[at].off = static_cast<int16_t>(code_.size() - at - 1);
  add(set(0, 0));
  add(leave());
  return std::move(code_);
}

Btf::Field ViewProgram::find(std::string_view structure, std::string_view path) {
  auto field = btf_.field(structure, path);
  if (!field.ok() && status_.ok()) status_ = field.status();
  return field.ok() ? *field : Btf::Field{0, 8};
}

absl::StatusOr<Views> Views::open(const Kind& kind, uint32_t capacity,
                                  absl::FunctionRef<void(ViewProgram&)> build) {
  static_assert(offsetof(Shared, count) == 0 && offsetof(Shared, records) == kRecordsAt);
  GW_ASSIGN_OR_RETURN(const std::shared_ptr<const Btf> btf, Btf::of_kernel());
  GW_ASSIGN_OR_RETURN(const uint32_t function, btf->function(kind.function));
  Views views;
  views.capacity_ = capacity;
  views.shared_bytes_ = kRecordsAt + size_t{capacity} * kind.record_bytes;
  GW_ASSIGN_OR_RETURN(const UniqueFd map,
                      create_mmapable_value(kind.name, static_cast<uint32_t>(views.shared_bytes_)));

  ViewProgram program(*btf);
  program.add(move(ViewProgram::kContext, 1));
  program.follow(ViewProgram::kFrom, ViewProgram::kContext, kind.context, kind.member);
  program.leave_if(BPF_JEQ, ViewProgram::kFrom, 0);  // the end
  load_value(program.code(), kShared, map.get());
  // view = &records[count++]
  program.add(load64(2, kShared, 0));
  program.add(move(3, 2));
  program.add(insn(BPF_ALU64 | BPF_ADD | BPF_K, 3, 0, 0, 1));
  program.add(store(BPF_DW, kShared, 3, 0));
  program.leave_if(BPF_JGE, 2, capacity);
  program.add(insn(BPF_ALU64 | BPF_MUL | BPF_K, 2, 0, 0, static_cast<int32_t>(kind.record_bytes)));
  program.add(move(ViewProgram::kView, kShared));
  program.add(insn(BPF_ALU64 | BPF_ADD | BPF_X, ViewProgram::kView, 2, 0, 0));
  program.add(insn(BPF_ALU64 | BPF_ADD | BPF_K, ViewProgram::kView, 0, 0, kRecordsAt));
  build(program);
  GW_ASSIGN_OR_RETURN(const std::vector<bpf_insn> code, program.finish());
  GW_ASSIGN_OR_RETURN(views.program_, load_iterator(function, kind.name, code));
  void* at = ::mmap(nullptr, views.shared_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, map.get(), 0);
  if (at == MAP_FAILED) return errno_status(errno, fmt::format("mmap(BPF array {})", kind.name));
  views.shared_ = static_cast<Shared*>(at);
  return views;
}

Views::Views(Views&& other) noexcept
    : program_(std::move(other.program_)),
      shared_(std::exchange(other.shared_, nullptr)),
      shared_bytes_(other.shared_bytes_),
      capacity_(other.capacity_) {}

Views::~Views() {
  if (shared_ != nullptr) ::munmap(shared_, shared_bytes_);
}

absl::StatusOr<size_t> Views::read(HostPid process) {
  shared_->count = 0;
  GW_RETURN_IF_ERROR(run_iterator(program_.get(), process));
  if (shared_->count > capacity_)
    return make_error(absl::StatusCode::kOutOfRange, "process {} has {} objects, not {}",
                      process.value, shared_->count, capacity_);
  return static_cast<size_t>(shared_->count);
}

const void* Views::records() const { return shared_->records; }

}  // namespace godwit::kernel::bpf
