// BPF instructions by the names of the kernel's manual
// (Documentation/bpf/standardization/instruction-set.rst), for programs written out in place.
#ifndef GODWIT_KERNEL_BPF_INSTRUCTIONS_H_
#define GODWIT_KERNEL_BPF_INSTRUCTIONS_H_

#include <linux/bpf.h>

#include <cstdint>
#include <vector>

namespace godwit::kernel::bpf {

inline bpf_insn insn(int code, int dst, int src, int offset, int32_t imm) {
  bpf_insn i{};
  i.code = static_cast<uint8_t>(code);
  i.dst_reg = static_cast<uint8_t>(dst & 0xf);
  i.src_reg = static_cast<uint8_t>(src & 0xf);
  i.off = static_cast<int16_t>(offset);
  i.imm = imm;
  return i;
}
inline bpf_insn load(int size, int dst, int src, int at) {
  return insn(BPF_LDX | BPF_MEM | size, dst, src, at, 0);
}
inline bpf_insn store(int size, int dst, int src, int at) {
  return insn(BPF_STX | BPF_MEM | size, dst, src, at, 0);
}
inline bpf_insn load16(int dst, int src, int at) {
  return insn(BPF_LDX | BPF_MEM | BPF_H, dst, src, at, 0);
}
inline bpf_insn load32(int dst, int src, int at) {
  return insn(BPF_LDX | BPF_MEM | BPF_W, dst, src, at, 0);
}
inline bpf_insn load64(int dst, int src, int at) {
  return insn(BPF_LDX | BPF_MEM | BPF_DW, dst, src, at, 0);
}
inline bpf_insn store32(int dst, int src, int at) {
  return insn(BPF_STX | BPF_MEM | BPF_W, dst, src, at, 0);
}
inline bpf_insn atomic_add32(int dst, int src, int at) {
  return insn(BPF_STX | BPF_ATOMIC | BPF_W, dst, src, at, BPF_ADD);
}
inline bpf_insn atomic_add64(int dst, int src, int at) {
  return insn(BPF_STX | BPF_ATOMIC | BPF_DW, dst, src, at, BPF_ADD);
}
inline bpf_insn set(int dst, int32_t imm) {
  return insn(BPF_ALU64 | BPF_MOV | BPF_K, dst, 0, 0, imm);
}
inline bpf_insn move(int dst, int src) { return insn(BPF_ALU64 | BPF_MOV | BPF_X, dst, src, 0, 0); }
// From network byte order.
inline bpf_insn to_host16(int dst) { return insn(BPF_ALU | BPF_END | BPF_TO_BE, dst, 0, 0, 16); }
inline bpf_insn jump(int by) { return insn(BPF_JMP | BPF_JA, 0, 0, by, 0); }
inline bpf_insn jump_if(int condition, int dst, uint32_t imm, int by) {
  return insn(BPF_JMP | condition | BPF_K, dst, 0, by, static_cast<int32_t>(imm));
}
inline bpf_insn jump_if_register(int condition, int dst, int src, int by) {
  return insn(BPF_JMP | condition | BPF_X, dst, src, by, 0);
}
inline bpf_insn call(int function) { return insn(BPF_JMP | BPF_CALL, 0, 0, 0, function); }
inline bpf_insn leave() { return insn(BPF_JMP | BPF_EXIT, 0, 0, 0, 0); }

// Two instruction slots each: the address of the value of a map with one; a number of 64 bits.
inline void load_value(std::vector<bpf_insn>& program, int dst, int map) {
  program.push_back(insn(BPF_LD | BPF_DW | BPF_IMM, dst, BPF_PSEUDO_MAP_VALUE, 0, map));
  program.push_back(insn(0, 0, 0, 0, 0));
}
inline void load_map(std::vector<bpf_insn>& program, int dst, int map) {
  program.push_back(insn(BPF_LD | BPF_DW | BPF_IMM, dst, BPF_PSEUDO_MAP_FD, 0, map));
  program.push_back(insn(0, 0, 0, 0, 0));
}
inline void load_number(std::vector<bpf_insn>& program, int dst, uint64_t number) {
  program.push_back(
      insn(BPF_LD | BPF_DW | BPF_IMM, dst, 0, 0, static_cast<int32_t>(number & 0xffffffff)));
  program.push_back(insn(0, 0, 0, 0, static_cast<int32_t>(number >> 32)));
}

}  // namespace godwit::kernel::bpf

#endif  // GODWIT_KERNEL_BPF_INSTRUCTIONS_H_
