/* The registers of a stopped tracee and the clock: all that differs by architecture. */
#include "engine.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <time.h>
#include <unistd.h>

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
    if (ptrace(PTRACE_GETREGSET, tid, (void *)(long)NT_PRSTATUS, &v))
        return -errno;
    if (v.iov_len != sizeof u)
        return -ENOEXEC;
    r->ret = (int64_t)u.regs[0];
    /* x0 already holds the result; only /proc/PID/syscall tells the first argument (orig_x0). */
    char text[256];
    snprintf(text, sizeof text, "/proc/%d/syscall", tid);
    int fd = open(text, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd >= 0 ? read(fd, text, sizeof text - 1) : 0;
    if (fd >= 0)
        close(fd);
    text[got > 0 ? got : 0] = 0;
    long nr;
    unsigned long a[6];
    if (sscanf(text, "%ld %lx %lx %lx %lx %lx %lx", &nr, &a[0], &a[1], &a[2], &a[3], &a[4], &a[5]) != 7)
        nr = -1;
    r->nr = nr;
    if (nr < 0)
        return 0;
#else
#error "sockscope traces x86_64 and aarch64"
#endif
    for (int i = 0; i < 6; i++)
        r->args[i] = a[i];
    return 0;
}
