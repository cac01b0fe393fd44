// Offsets shared by stub_x86_64.S and stub_area.cpp, which asserts them. Included by both.
#ifndef GODWIT_TRACEE_STUB_LAYOUT_H_
#define GODWIT_TRACEE_STUB_LAYOUT_H_

// The frame: what one task's run needs beside its table.
#define STUB_FRAME_TABLE 0        // address of the first entry
#define STUB_FRAME_COUNT 8        // number of entries
#define STUB_FRAME_ALL_MASK 16    // every signal
#define STUB_FRAME_MARK_MASK 24   // every signal but the end mark's
#define STUB_FRAME_SAVED_MASK 32  // the program's
#define STUB_FRAME_MARK_NR 40     // the call that makes the end mark, and its first three arguments
#define STUB_FRAME_MARK_A0 48
#define STUB_FRAME_MARK_A1 56
#define STUB_FRAME_MARK_A2 64
#define STUB_FRAME_LEFT 72  // 1: the mark did not stop us
#define STUB_FRAME_R15 80
#define STUB_FRAME_R14 88
#define STUB_FRAME_R13 96
#define STUB_FRAME_R12 104
#define STUB_FRAME_RBP 112
#define STUB_FRAME_R11 120
#define STUB_FRAME_R10 128
#define STUB_FRAME_R9 136
#define STUB_FRAME_R8 144
#define STUB_FRAME_RAX 152
#define STUB_FRAME_RCX 160
#define STUB_FRAME_RDX 168
#define STUB_FRAME_RSI 176
#define STUB_FRAME_RDI 184
#define STUB_FRAME_RBX 192  // from here on popped and then taken by iretq
#define STUB_FRAME_RIP 200
#define STUB_FRAME_CS 208
#define STUB_FRAME_RFLAGS 216
#define STUB_FRAME_RSP 224
#define STUB_FRAME_SS 232
#define STUB_FRAME_SIGINFO 240  // 128 bytes, for the end mark
#define STUB_FRAME_SIZE 368

// One call of the table.
#define STUB_ENTRY_NR 0
#define STUB_ENTRY_ARGUMENTS 8  // six
#define STUB_ENTRY_RESULT 56
#define STUB_ENTRY_FLAGS 64
#define STUB_ENTRY_SIZE 72

#define STUB_ENTRY_MUST_SUCCEED 1
#define STUB_ENTRY_INDIRECT 2  // << k: argument k is the address of the value

#endif  // GODWIT_TRACEE_STUB_LAYOUT_H_
