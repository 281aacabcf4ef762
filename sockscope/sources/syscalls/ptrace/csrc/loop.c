/* The wait loop of one tracer process, and what Python calls. */
#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/time.h>
#include <sys/wait.h>

enum { SEIZE = 0x4206, INTERRUPT = 0x4207 };
enum { OPTIONS = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE |
                 PTRACE_O_TRACEEXEC | PTRACE_O_TRACEEXIT,
       OPTION_SECCOMP = 1 << 7, OPTION_EXITKILL = 1 << 20 };
/* A stop writes at most a few records; the largest sections together stay below this. */
enum { ROOM_RECORDS = 16, ROOM_BLOB = 512 * 1024 };
enum { RUN_TICK = 0, RUN_FULL, RUN_STOP, RUN_END };

struct state S = {.guard_fd = -1};

static int has_room(void)
{
    return S.record_max - S.record_count >= ROOM_RECORDS && S.blob_max - S.blob_count >= ROOM_BLOB;
}

static void on_alarm(int sig) { (void)sig; S.ticked = 1; }
static void on_term(int sig) { (void)sig; S.stop = 1; }

void ss_init(const void *plans, uint32_t bytes, uint32_t payload, int guard_fd, uint32_t nr_restart,
             uint32_t nr_sigreturn, uint32_t nr_execve, int tick_ms)
{
    memcpy(S.plans, plans, bytes < sizeof S.plans ? bytes : sizeof S.plans);
    S.payload = payload;
    S.guard_fd = guard_fd;
    S.nr_restart = nr_restart;
    S.nr_sigreturn = nr_sigreturn;
    S.nr_execve = nr_execve;
    /* No SA_RESTART: the tick ends a wait. It repeats, so one that falls before the wait is made good by the next. */
    struct sigaction a = {.sa_handler = on_alarm};
    sigaction(SIGALRM, &a, NULL);
    a.sa_handler = on_term;
    sigaction(SIGTERM, &a, NULL);
    sigaction(SIGHUP, &a, NULL);
    a.sa_handler = SIG_DFL;
    a.sa_flags = SA_NOCLDSTOP; /* stops are waited for, they need not be signalled too */
    sigaction(SIGCHLD, &a, NULL);
    struct itimerval every = {{0, tick_ms * 1000}, {0, tick_ms * 1000}};
    setitimer(ITIMER_REAL, &every, NULL);
}

void ss_set_buffer(void *records, uint32_t record_max, void *blob, uint32_t blob_max, int dropping)
{
    S.records = records;
    S.record_max = record_max;
    S.blob = blob;
    S.blob_max = blob_max;
    S.record_count = S.blob_count = 0;
    S.dropping = dropping;
}

void ss_used(uint64_t out[7])
{
    out[0] = S.record_count;
    out[1] = S.blob_count;
    out[2] = S.event_count;
    out[3] = S.dropped;
    out[4] = S.foreign;
    out[5] = S.unread;
    out[6] = (uint64_t)S.task_count;
}

/* Come under trace. 0 or -errno. Its first stop is asked for by ss_interrupt. */
int ss_seize(int32_t tid, int32_t tgid, int32_t mask, int launched)
{
    long options = OPTIONS | (launched ? OPTION_SECCOMP | OPTION_EXITKILL : 0);
    if (ptrace(SEIZE, tid, NULL, (void *)options))
        return -errno;
    struct task *t = task_add(tid);
    t->tgid = tgid;
    t->mask = mask;
    t->known = 1;
    t->attaching = !launched;
    guard_tell(GUARD_NEW, tid, mask);
    emit_task(t, TASK_ATTACH, now_ns(), 0, 0, 0);
    if (launched) {
        S.root = tid;
        S.seccomp = 1;
        t->silent = 1;
    }
    return 0;
}

int ss_interrupt(int32_t tid) { return ptrace(INTERRUPT, tid, NULL, NULL) ? -errno : 0; }

int ss_run(void)
{
    for (;;) {
        int status;
        if (S.stop) {
            S.stop = 0;
            return RUN_STOP;
        }
        if (S.ticked) {
            S.ticked = 0;
            adopt_stale(now_ns());
            return RUN_TICK;
        }
        if (!S.dropping && !has_room())
            return RUN_FULL;
        if (!S.task_count)
            return RUN_END;
        pid_t tid = wait4(-1, &status, __WALL, NULL);
        if (tid > 0)
            on_wait(tid, status, now_ns());
        else if (errno == ECHILD)
            return RUN_END;
    }
}

/* Write what is still in the kernel, and the detaching, of every task. 1: no room, call again. The detaching itself
 * is the end of this process: the kernel lets every tracee go on from wherever it is, without the EINTR that
 * PTRACE_INTERRUPT would cost an idle server (kernel/ptrace.c, exit_ptrace). No stop is left unresumed here. */
int ss_finish(void)
{
    int64_t now = now_ns();
    for (; S.finish_at < S.task_count; S.finish_at++) {
        struct task *t = S.all[S.finish_at];
        if (!S.dropping && !has_room())
            return 1;
        if (!t->known || t->exited)
            continue;
        end_calls(t);
        emit_task(t, TASK_DETACH, now, 0, 0, 0);
    }
    return 0;
}

/* tid and tgid of every task, pairs; their count. */
int32_t ss_tasks(int32_t *pairs, int32_t max)
{
    int32_t n = 0;
    for (; n < S.task_count && n < max; n++) {
        pairs[2 * n] = S.all[n]->tid;
        pairs[2 * n + 1] = S.all[n]->tgid;
    }
    return n;
}

/* The launched command's wait status; -1: runs. */
int ss_root_status(void) { return S.root_ended ? S.root_status : -1; }
