/* What each stop of a tracee means, and how it goes on.
 *
 * Source: ptrace(2), kernel/ptrace.c. Entry and exit are told by PTRACE_GET_SYSCALL_INFO, never by counting. */
#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

/* glibc 2.17's headers lack some; the numbers are the kernel's (include/uapi/linux/ptrace.h). */
enum { GET_SYSCALL_INFO = 0x420e, LISTEN = 0x4208 };
enum { EV_FORK = 1, EV_VFORK, EV_CLONE, EV_EXEC, EV_EXIT = 6, EV_SECCOMP, EV_STOP = 128 };
enum { OP_ENTRY = 1, OP_EXIT, OP_SECCOMP };
enum { CALL_CLONE = 80, CALL_CLONE3, CALL_FORK, CALL_VFORK };
enum { ERESTARTSYS = 512, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK = 516 };
enum { CLONE_VM_ = 0x100, CLONE_VFORK_ = 0x4000, CLONE_THREAD_ = 0x10000,
       CLONE_OF_PTHREADS = 0x100 | 0x200 | 0x400 | 0x800 | CLONE_THREAD_ };
#if defined(__x86_64__)
#define NATIVE_ARCH 0xC000003Eu /* AUDIT_ARCH_X86_64 */
#else
#define NATIVE_ARCH 0xC00000B7u /* AUDIT_ARCH_AARCH64 */
#endif
#define HELD_MAX_NS 500000000LL
enum { HELD_STOPPED = 1, HELD_DEAD };

struct syscall_info {
    uint8_t op, pad[3];
    uint32_t arch;
    uint64_t ip, sp;
    union {
        struct {
            uint64_t nr, args[6];
        } entry;
        struct {
            int64_t ret;
            uint8_t is_error;
        } exit;
        uint64_t room[10];
    };
};

static int is_restart(int64_t ret)
{
    return ret == -ERESTARTSYS || ret == -ERESTARTNOINTR || ret == -ERESTARTNOHAND || ret == -ERESTART_RESTARTBLOCK;
}

static void resume(const struct task *t, int sig)
{
    /* With the seccomp filter only a call of interest needs its exit stop. ESRCH: killed meanwhile. */
    ptrace(S.seccomp && !t->cur.on ? PTRACE_CONT : PTRACE_SYSCALL, t->tid, NULL, (void *)(long)sig);
}

/* A 32-bit program cannot be followed: it is let go and counted. The guardian still owes it its mask.
 * With the seccomp filter it runs on untraced but attached: a 64-bit program that it executes would see ENOSYS. */
static void let_go(struct task *t, int64_t now)
{
    S.foreign++;
    if (S.seccomp) {
        resume(t, 0);
        return;
    }
    emit_task(t, TASK_DETACH, now, 0, 0, 0);
    ptrace(PTRACE_DETACH, t->tid, NULL, NULL);
    task_drop(t);
}

static void swap_calls(struct task *t)
{
    struct call c = t->cur;
    t->cur = t->interrupted;
    t->interrupted = c;
}

static void on_entry(struct task *t, uint64_t nr, const uint64_t *args, int64_t now)
{
    if (t->interrupted.on && (nr == S.nr_restart || (nr == t->interrupted.nr &&
                                                     !memcmp(args, t->interrupted.args, sizeof t->interrupted.args)))) {
        /* The kernel restarts it: for the program it is one call. */
        swap_calls(t);
        t->interrupted.on = 0;
        if (t->cur.flags & NO_ENTRY && !t->cur.in_bytes && t->cur.nr < MAX_NR)
            copy_at_entry(t, &t->cur);
        return;
    }
    t->cur.on = 1;
    t->cur.nr = nr;
    t->cur.flags = 0;
    t->cur.enter_ns = now;
    t->cur.in_bytes = 0;
    memcpy(t->cur.args, args, sizeof t->cur.args);
    if (nr < MAX_NR && S.plans[nr].call) {
        if (nr == S.nr_execve)
            t->silent = 0;
        copy_at_entry(t, &t->cur);
    }
}

static void on_exit_stop(struct task *t, int64_t ret, int64_t now)
{
    if (!t->cur.on) {
        /* The end of the fork that made it, or of a call that began before the attach. */
        struct regs r;
        if (!t->born && !read_regs(t->tid, &r) && r.nr >= 0) {
            t->cur.nr = (uint64_t)r.nr;
            memcpy(t->cur.args, r.args, sizeof r.args);
            t->cur.enter_ns = -1;
            t->cur.flags = NO_ENTRY;
            t->cur.on = 1;
        }
        t->born = 0;
        if (!t->cur.on)
            return;
    }
    t->born = 0;
    if (is_restart(ret)) {
        if (t->interrupted.on)
            emit_call(t, &t->interrupted, -EINTR, now, 0);
        swap_calls(t);
        t->cur.on = 0;
        return;
    }
    if (t->cur.nr == S.nr_sigreturn) {
        /* A handler ended. What the interrupted call gives is in the result register now. */
        if (t->interrupted.on && ret == -EINTR)
            emit_call(t, &t->interrupted, -EINTR, now, 0);
        t->cur.on = 0;
        return;
    }
    emit_call(t, &t->cur, ret, now, 0);
}

/* The first stop after PTRACE_SEIZE: what was the thread doing? False: let go. */
static int first_stop(struct task *t, int event, int64_t now)
{
    struct regs r;
    int error = read_regs(t->tid, &r);
    t->attaching = 0;
    if (error == -ENOEXEC) {
        let_go(t, now);
        return 0;
    }
    if (error || r.nr < 0 || event == EV_EXIT)
        return 1;
    struct call c = {.on = 1, .flags = NO_ENTRY, .nr = (uint64_t)r.nr, .enter_ns = -1};
    memcpy(c.args, r.args, sizeof c.args);
    if (event && event != EV_STOP)
        t->cur = c; /* in the middle of a fork or exec: its exit stop comes */
    else if (is_restart(r.ret))
        t->interrupted = c;
    else if (c.nr != S.nr_sigreturn && c.nr != S.nr_restart)
        emit_call(t, &c, r.ret, now, r.ret == -EINTR && event == EV_STOP ? TRACER_EINTR : 0);
    return 1;
}

static void on_syscall_stop(struct task *t, int64_t now)
{
    struct syscall_info i;
    if (ptrace(GET_SYSCALL_INFO, t->tid, (void *)sizeof i, &i) <= 0) {
        /* ESRCH: killed meanwhile. EIO: a kernel before 5.3. Whatever it is, the tracee must go on. */
        S.unread += errno != ESRCH;
        resume(t, 0);
        return;
    }
    if (i.op == OP_EXIT)
        on_exit_stop(t, i.exit.ret, now);
    if (i.arch != NATIVE_ARCH) {
        let_go(t, now);
        return;
    }
    if (i.op == OP_ENTRY || i.op == OP_SECCOMP)
        on_entry(t, i.entry.nr, i.entry.args, now);
    resume(t, 0);
}

static uint64_t event_message(int32_t tid)
{
    unsigned long message = 0;
    ptrace(PTRACE_GETEVENTMSG, tid, NULL, &message);
    return message;
}

static long status_number(int32_t tid, const char *key)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/status", tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    text[got > 0 ? got : 0] = 0;
    const char *at = strstr(text, key);
    return at ? strtol(at + strlen(key), NULL, 10) : -1;
}

static uint64_t clone_flags(const struct task *t, int event, int32_t child)
{
    const struct call *c = &t->cur;
    uint16_t call = c->on && c->nr < MAX_NR ? S.plans[c->nr].call : 0;
    uint64_t flags;
    if (call == CALL_CLONE && c->args[0])
        return c->args[0] & ~0xffULL; /* the low byte is the exit signal */
    if (call == CALL_CLONE3) {
        if (c->in_bytes >= 16) {
            memcpy(&flags, c->in + 8, sizeof flags); /* behind the section header */
            return flags;
        }
        if (remote_read(t->tid, &flags, c->args[0], sizeof flags) == sizeof flags)
            return flags;
    }
    if (event == EV_VFORK)
        return CLONE_VFORK_ | CLONE_VM_;
    return event == EV_CLONE && status_number(child, "\nTgid:") == t->tgid ? CLONE_OF_PTHREADS : 0;
}

static void introduce(struct task *parent, struct task *child, uint64_t flags, int64_t now)
{
    child->tgid = flags & CLONE_THREAD_ ? parent->tgid : child->tid;
    child->mask = parent->mask;
    child->known = child->born = 1;
    guard_tell(GUARD_NEW, child->tid, child->mask);
    emit_task(parent, TASK_NEW, now, (uint32_t)child->tid, (uint32_t)child->tgid, flags);
    if (child->held) {
        child->held = 0;
        on_wait(child->tid, child->held_status, now);
    }
}

/* Source: ptrace(2), "execve(2) under ptrace": the tid becomes the tgid, the former one is the message. */
static void on_exec(struct task *t, int64_t now)
{
    int32_t tid = t->tid, former = (int32_t)event_message(tid);
    struct task *caller = former != tid ? task_get(former) : NULL;
    if (caller) {
        if (!t->exited)
            emit_task(t, TASK_EXIT, now, 0, 0, 0);
        task_drop(t);
        guard_tell(GUARD_GONE, former, -1);
        S.by_tid[former] = NULL;
        S.by_tid[tid] = caller;
        caller->tid = tid;
        guard_tell(GUARD_NEW, tid, caller->mask);
        t = caller;
    }
    memory_forget(t->tgid);
    t->exited = t->group_stopped = 0;
    struct event *e = emit_task(t, TASK_EXEC, now, (uint32_t)former, 0, 0);
    if (e) {
        char path[64], text[4096];
        snprintf(path, sizeof path, "/proc/%d/exe", tid);
        ssize_t got = readlink(path, text, sizeof text);
        add_section(e, SEC_PATH, got < 0 ? errno & 255 : 0, text, got < 0 ? 0 : (uint32_t)got);
        snprintf(path, sizeof path, "/proc/%d/comm", tid);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        got = fd >= 0 ? read(fd, text, sizeof text) : 0;
        if (fd >= 0)
            close(fd);
        add_section(e, SEC_COMM, 0, text, got > 0 ? (uint32_t)got - 1 : 0);
    }
    resume(t, 0);
}

void end_calls(struct task *t)
{
    if (t->interrupted.on)
        emit_call(t, &t->interrupted, 0, -1, ENTERED_ONLY);
    if (t->cur.on)
        emit_call(t, &t->cur, 0, -1, ENTERED_ONLY);
}

static void on_exit_event(struct task *t, uint64_t status, int64_t now)
{
    if (t->exited)
        return;
    end_calls(t);
    emit_task(t, TASK_EXIT, now, status, 0, 0);
    t->exited = 1;
}

static void on_signal(struct task *t, int sig, int64_t now)
{
    siginfo_t info;
    memset(&info, 0, sizeof info);
    ptrace(PTRACE_GETSIGINFO, t->tid, NULL, &info);
    /* si_pid means something only where a process sent it; a fault has an address there, a timer its id. */
    int sent = info.si_code == SI_USER || info.si_code == SI_TKILL || info.si_code == SI_QUEUE || sig == SIGCHLD;
    emit_task(t, TASK_SIGNAL, now, (uint64_t)sig, (uint64_t)(int64_t)info.si_code, sent ? (uint32_t)info.si_pid : 0);
    resume(t, sig);
}

static void on_event_stop(struct task *t, int sig, int64_t now)
{
    if (sig == SIGSTOP || sig == SIGTSTP || sig == SIGTTIN || sig == SIGTTOU) {
        if (!t->group_stopped)
            emit_task(t, TASK_STOP, now, (uint64_t)sig, 0, 0);
        t->group_stopped = 1;
        ptrace(LISTEN, t->tid, NULL, NULL); /* stays stopped; SIGCONT is reported */
        return;
    }
    t->group_stopped = 0;
    resume(t, 0);
}

static void hold(int32_t tid, int status, int64_t now)
{
    struct task *t = task_add(tid);
    t->held = WIFSTOPPED(status) ? HELD_STOPPED : HELD_DEAD;
    t->held_status = status;
    t->held_ns = now;
}

void on_wait(int32_t tid, int status, int64_t now)
{
    struct task *t = task_get(tid);
    if (tid == S.root && !WIFSTOPPED(status)) {
        S.root_ended = 1;
        S.root_status = status;
    }
    if (!t || !t->known) {
        hold(tid, status, now); /* until its parent's event tells of it */
        return;
    }
    if (!WIFSTOPPED(status)) {
        on_exit_event(t, (uint64_t)status, now);
        guard_tell(GUARD_GONE, tid, -1);
        task_drop(t);
        return;
    }
    int event = status >> 16, sig = WSTOPSIG(status);
    if (t->attaching && !first_stop(t, event, now))
        return;
    switch (event) {
    case EV_FORK:
    case EV_VFORK:
    case EV_CLONE: {
        int32_t child = (int32_t)event_message(tid);
        if (child > 0)
            introduce(t, task_add(child), clone_flags(t, event, child), now);
        resume(t, 0);
        return;
    }
    case EV_EXEC:
        on_exec(t, now);
        return;
    case EV_EXIT:
        on_exit_event(t, event_message(tid), now);
        resume(t, 0);
        return;
    case EV_SECCOMP:
        on_syscall_stop(t, now);
        return;
    case EV_STOP:
        on_event_stop(t, sig, now);
        return;
    }
    if (sig == (SIGTRAP | 0x80))
        on_syscall_stop(t, now);
    else
        on_signal(t, sig, now);
}

/* A held child whose parent was killed before its event: nobody else will tell of it. */
void adopt_stale(int64_t now)
{
    for (int32_t i = 0; i < S.task_count; i++) {
        struct task *t = S.all[i];
        if (!t->held || now - t->held_ns < HELD_MAX_NS)
            continue;
        if (t->held == HELD_DEAD) {
            task_drop(t);
            i--;
            continue;
        }
        long tgid = status_number(t->tid, "\nTgid:"), ppid = status_number(t->tid, "\nPPid:");
        struct task parent = {.tid = (int32_t)(tgid == t->tid ? ppid : tgid), .mask = t->mask};
        parent.tgid = parent.tid;
        introduce(&parent, t, tgid == t->tid ? 0 : CLONE_OF_PTHREADS, now);
    }
}
