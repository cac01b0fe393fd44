// What the stub reads beside its table, as C++ sees it. Not for other folders.
#ifndef GODWIT_TRACEE_STUB_FRAME_H_
#define GODWIT_TRACEE_STUB_FRAME_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "tracee/stub_layout.h"
#include "tracee/task.h"

namespace godwit::tracee::internal {

inline constexpr uint64_t kPage = 4096;
// The area's first page: the stub.
inline constexpr uint64_t kCodeSize = kPage;
// Below each frame. A signal frame with the largest XSAVE area (AMX) and the red zone is below
// 12 KiB.
inline constexpr uint64_t kGap = 4 * kPage;

inline uint64_t slice_size(uint64_t image_size) {
  return (kGap + image_size + kPage - 1) & ~(kPage - 1);
}

struct StubFrame {
  uint64_t table, count;
  uint64_t all_mask, mark_mask, saved_mask;
  uint64_t mark_nr, mark_arguments[3];
  uint64_t left;
  uint64_t r15, r14, r13, r12, rbp, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi;
  uint64_t rbx, rip, cs, rflags, rsp, ss;
  std::array<std::byte, 128> siginfo;
};
static_assert(sizeof(StubFrame) == STUB_FRAME_SIZE);
static_assert(offsetof(StubFrame, mark_mask) == STUB_FRAME_MARK_MASK);
static_assert(offsetof(StubFrame, saved_mask) == STUB_FRAME_SAVED_MASK);
static_assert(offsetof(StubFrame, mark_nr) == STUB_FRAME_MARK_NR);
static_assert(offsetof(StubFrame, left) == STUB_FRAME_LEFT);
static_assert(offsetof(StubFrame, r15) == STUB_FRAME_R15);
static_assert(offsetof(StubFrame, r11) == STUB_FRAME_R11);
static_assert(offsetof(StubFrame, rax) == STUB_FRAME_RAX);
static_assert(offsetof(StubFrame, rdi) == STUB_FRAME_RDI);
static_assert(offsetof(StubFrame, rbx) == STUB_FRAME_RBX);
static_assert(offsetof(StubFrame, ss) == STUB_FRAME_SS);
static_assert(offsetof(StubFrame, siginfo) == STUB_FRAME_SIGINFO);

// The registers that the tail puts back by a plain jump: see registers_rewound().
inline void save_registers(const Registers& r, StubFrame& f) {
  f.r15 = r.r15, f.r14 = r.r14, f.r13 = r.r13, f.r12 = r.r12;
  f.rbp = r.rbp, f.r11 = r.r11, f.r10 = r.r10, f.r9 = r.r9, f.r8 = r.r8;
  f.rax = r.rax, f.rcx = r.rcx, f.rdx = r.rdx, f.rsi = r.rsi, f.rdi = r.rdi;
  f.rbx = r.rbx, f.rip = r.rip, f.cs = r.cs, f.rflags = r.eflags, f.rsp = r.rsp, f.ss = r.ss;
}

}  // namespace godwit::tracee::internal

#endif  // GODWIT_TRACEE_STUB_FRAME_H_
