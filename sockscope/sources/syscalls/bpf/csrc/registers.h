/* A syscall's number and arguments in the caller's registers: all that differs by architecture. */
#ifndef SOCKSCOPE_REGISTERS_H
#define SOCKSCOPE_REGISTERS_H

#include "kernel.h"

#if defined(__TARGET_ARCH_x86)

INLINE s64 number_of(struct pt_regs *regs) { return (s64)regs->orig_ax; }

INLINE void arguments_of(struct pt_regs *regs, u64 *args)
{
    args[0] = regs->di;
    args[1] = regs->si;
    args[2] = regs->dx;
    args[3] = regs->r10;
    args[4] = regs->r8;
    args[5] = regs->r9;
}

/* arch/x86/include/asm/thread_info.h: TS_COMPAT, set for the time of a 32-bit call. */
INLINE int is_foreign(struct task_struct *task) { return task->thread_info.status & 2; }

#else

INLINE s64 number_of(struct pt_regs *regs) { return regs->syscallno; }

/* x0 holds the result once the call is over. */
INLINE void arguments_of(struct pt_regs *regs, u64 *args)
{
    args[0] = regs->orig_x0;
    args[1] = regs->regs[1];
    args[2] = regs->regs[2];
    args[3] = regs->regs[3];
    args[4] = regs->regs[4];
    args[5] = regs->regs[5];
}

/* arch/arm64/include/asm/thread_info.h: TIF_32BIT. */
INLINE int is_foreign(struct task_struct *task) { return task->thread_info.flags >> 22 & 1; }

#endif
#endif
