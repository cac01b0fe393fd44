// The only code of ours that runs in another process: position independent, copied there.
//
// Entered with rbx = the frame. Uses no stack (the red zone, a stack overflow in progress or no
// stack at all do not matter), no SSE, AVX or x87 register, and leaves rsp, fs and gs alone until
// the last two instructions.
//
// It goes through to the end and back into the program by itself. A living tracer stops it at the
// end mark, before `tail`, and puts the registers and the mask back by ptrace.
#include <asm/unistd_64.h>

#include "tracee/stub_layout.h"

#define SIG_SETMASK 2
#define MAX_ERRNO 4095

        .text
        .globl  godwit_stub_begin, godwit_stub_single, godwit_stub_end
        .hidden godwit_stub_begin, godwit_stub_single, godwit_stub_end
        .p2align 4
godwit_stub_begin:
        // The tracer has already blocked all signals, unless it died before it could.
        movl    $__NR_rt_sigprocmask, %eax
        movl    $SIG_SETMASK, %edi
        leaq    STUB_FRAME_ALL_MASK(%rbx), %rsi
        xorl    %edx, %edx
        movl    $8, %r10d
        syscall

        movq    STUB_FRAME_TABLE(%rbx), %r12
        movq    STUB_FRAME_COUNT(%rbx), %r13
next:
        testq   %r13, %r13
        jz      mark
        movq    STUB_ENTRY_FLAGS(%r12), %rbp
        movq    STUB_ENTRY_ARGUMENTS(%r12), %rdi
        movq    STUB_ENTRY_ARGUMENTS+8(%r12), %rsi
        movq    STUB_ENTRY_ARGUMENTS+16(%r12), %rdx
        movq    STUB_ENTRY_ARGUMENTS+24(%r12), %r10
        movq    STUB_ENTRY_ARGUMENTS+32(%r12), %r8
        movq    STUB_ENTRY_ARGUMENTS+40(%r12), %r9
        testb   $(STUB_ENTRY_INDIRECT << 0), %bpl
        jz      1f
        movq    (%rdi), %rdi
1:      testb   $(STUB_ENTRY_INDIRECT << 1), %bpl
        jz      1f
        movq    (%rsi), %rsi
1:      testb   $(STUB_ENTRY_INDIRECT << 2), %bpl
        jz      1f
        movq    (%rdx), %rdx
1:      testb   $(STUB_ENTRY_INDIRECT << 3), %bpl
        jz      1f
        movq    (%r10), %r10
1:      testb   $(STUB_ENTRY_INDIRECT << 4), %bpl
        jz      1f
        movq    (%r8), %r8
1:      testb   $(STUB_ENTRY_INDIRECT << 5), %bpl
        jz      1f
        movq    (%r9), %r9
1:      movq    STUB_ENTRY_NR(%r12), %rax
        syscall
        movq    %rax, STUB_ENTRY_RESULT(%r12)
        testb   $STUB_ENTRY_MUST_SUCCEED, %bpl
        jz      1f
        cmpq    $-MAX_ERRNO, %rax
        jae     mark
1:      addq    $STUB_ENTRY_SIZE, %r12
        decq    %r13
        jmp     next

mark:
        // Queue the mark's signal for ourselves while it is blocked, then unblock it alone.
        movq    STUB_FRAME_MARK_NR(%rbx), %rax
        movq    STUB_FRAME_MARK_A0(%rbx), %rdi
        movq    STUB_FRAME_MARK_A1(%rbx), %rsi
        movq    STUB_FRAME_MARK_A2(%rbx), %rdx
        leaq    STUB_FRAME_SIGINFO(%rbx), %r10
        syscall
        movl    $__NR_rt_sigprocmask, %eax
        movl    $SIG_SETMASK, %edi
        leaq    STUB_FRAME_MARK_MASK(%rbx), %rsi
        xorl    %edx, %edx
        movl    $8, %r10d
        syscall
        movq    $1, STUB_FRAME_LEFT(%rbx)

        // Writes nothing: the frame of a single call may lie in the read-only vDSO.
tail:
        movl    $__NR_rt_sigprocmask, %eax
        movl    $SIG_SETMASK, %edi
        leaq    STUB_FRAME_SAVED_MASK(%rbx), %rsi
        xorl    %edx, %edx
        movl    $8, %r10d
        syscall
        movq    STUB_FRAME_R15(%rbx), %r15
        movq    STUB_FRAME_R14(%rbx), %r14
        movq    STUB_FRAME_R13(%rbx), %r13
        movq    STUB_FRAME_R12(%rbx), %r12
        movq    STUB_FRAME_RBP(%rbx), %rbp
        movq    STUB_FRAME_R11(%rbx), %r11
        movq    STUB_FRAME_R10(%rbx), %r10
        movq    STUB_FRAME_R9(%rbx), %r9
        movq    STUB_FRAME_R8(%rbx), %r8
        movq    STUB_FRAME_RAX(%rbx), %rax
        movq    STUB_FRAME_RCX(%rbx), %rcx
        movq    STUB_FRAME_RDX(%rbx), %rdx
        movq    STUB_FRAME_RSI(%rbx), %rsi
        movq    STUB_FRAME_RDI(%rbx), %rdi
        // A signal between these two would build its frame in the gap below ours.
        leaq    STUB_FRAME_RBX(%rbx), %rsp
        popq    %rbx
        iretq

        // One call made by ptrace (RemoteSyscalls): entered here with everything set, rbx = a
        // frame. Whoever is left alone behind it goes home by the tail.
godwit_stub_single:
        syscall
        jmp     tail
godwit_stub_end:

        .section .note.GNU-stack, "", @progbits
