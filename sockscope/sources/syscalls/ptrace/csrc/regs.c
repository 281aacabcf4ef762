/* The registers of a stopped tracee and the clock: all that differs by architecture. */
#include "engine.h"

#include <elf.h>
#include <errno.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <time.h>

int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int read_regs(int32_t tid, struct regs *r)
{
#if defined(__x86_64__)
    struct user_regs_struct u;
    struct iovec v = {&u, sizeof u};
    if (ptrace(PTRACE_GETREGSET, tid, (void *)(long)NT_PRSTATUS, &v))
        return -errno;
    /* A 32-bit register file is shorter. */
    if (v.iov_len != sizeof u)
        return -ENOEXEC;
    r->nr = (int64_t)u.orig_rax;
    r->ret = (int64_t)u.rax;
    uint64_t a[6] = {u.rdi, u.rsi, u.rdx, u.r10, u.r8, u.r9};
#elif defined(__aarch64__)
    struct user_regs_struct u;
    struct iovec v = {&u, sizeof u};
    int nr = -1;
    struct iovec w = {&nr, sizeof nr};
    if (ptrace(PTRACE_GETREGSET, tid, (void *)(long)NT_PRSTATUS, &v))
        return -errno;
    if (v.iov_len != sizeof u)
        return -ENOEXEC;
    if (ptrace(PTRACE_GETREGSET, tid, (void *)(long)0x404 /* NT_ARM_SYSTEM_CALL */, &w))
        nr = -1;
    r->nr = nr;
    r->ret = (int64_t)u.regs[0];
    /* x0 already holds the result. */
    uint64_t a[6] = {0, u.regs[1], u.regs[2], u.regs[3], u.regs[4], u.regs[5]};
#else
#error "sockscope traces x86_64 and aarch64"
#endif
    for (int i = 0; i < 6; i++)
        r->args[i] = a[i];
    return 0;
}
