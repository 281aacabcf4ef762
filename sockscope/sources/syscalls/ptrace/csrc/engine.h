/* What the files of the loop share: the record, the copy plan, a task, and the tables of one tracer process.
 *
 * One tracer process is one thread; nothing here is shared with another thread. */
#ifndef SOCKSCOPE_ENGINE_H
#define SOCKSCOPE_ENGINE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* model/events.py EVENT_DTYPE, byte for byte. */
struct event {
    int64_t enter_ns, exit_ns, ret;
    uint64_t args[6];
    uint64_t blob_offset;
    uint32_t blob_bytes;
    int32_t tgid, tid;
    uint16_t call, flags;
};
_Static_assert(sizeof(struct event) == 96 && offsetof(struct event, args) == 24 &&
                   offsetof(struct event, blob_offset) == 72 && offsetof(struct event, flags) == 94,
               "EVENT_DTYPE");

/* EventFlag, Section and Call values used here (model/events.py, model/calls.py: part of the recording format). */
enum { ENTERED_ONLY = 1, NO_ENTRY = 2, TRUNCATED = 4, TRACER_EINTR = 8, COPY_FAILED = 16 };
enum { SEC_SOCKADDR = 1, SEC_PAYLOAD, SEC_CONTROL, SEC_MSG_FLAGS, SEC_IOV_TOTAL, SEC_PATH = 12, SEC_MMSG_LENS = 14,
       SEC_COMM = 17 };
enum { TASK_NEW = 200, TASK_EXEC, TASK_EXIT, TASK_SIGNAL, TASK_STOP, TASK_ATTACH, TASK_DETACH };

/* The copy plan of one syscall: abi.py writes it, copy.c reads it. */
enum how { HOW_FIXED = 1, HOW_LEN_ARG, HOW_LEN_PTR, HOW_RET, HOW_COUNT, HOW_PAYLOAD, HOW_IOV, HOW_MSG, HOW_MMSG,
           HOW_PATH, HOW_FDSETS };
enum when { AT_ENTRY = 1, AT_SUCCESS, AT_ANY_END };
enum filter { KEEP = 0, KEEP_SHARED_MAP, KEEP_KNOWN_IOCTL, DROP };
struct op {
    uint8_t section, how, when, ptr, len, unit;
    uint16_t cap;
};
struct plan {
    uint16_t call;
    uint8_t op_count, filter;
    struct op ops[6];
};
_Static_assert(sizeof(struct plan) == 52, "abi.PLAN_BYTES");

struct call {
    int on;
    uint16_t flags;
    uint64_t nr, args[6];
    int64_t enter_ns;
    uint8_t *in; /* sections copied at entry */
    uint32_t in_bytes;
};

struct task {
    int32_t tid, tgid, slot;
    int32_t mask; /* which saved affinity mask is its own */
    int known;    /* its task_new or task_attach is out */
    int held;     /* it stopped (status in held_status) before its parent told of it */
    int held_status;
    int64_t held_ns;
    int attaching; /* seized, its first stop not yet seen */
    int born;      /* came by fork: an exit stop without entry is the fork's */
    int group_stopped, exited, silent;
    struct call cur, interrupted; /* `interrupted` waits to see whether it is restarted */
};

#define MAX_NR 512
struct state {
    struct plan plans[MAX_NR];
    uint32_t payload;
    int seccomp, guard_fd;
    uint32_t nr_restart, nr_sigreturn, nr_execve;
    struct event *records;
    uint8_t *blob;
    uint32_t record_max, record_count, blob_max, blob_count;
    int dropping;
    uint64_t dropped, foreign, unread, event_count;
    struct task **by_tid;
    struct task **all;
    int32_t task_count, task_max, finish_at;
    int32_t root;
    int root_status, root_ended;
    volatile int ticked, stop;
};
extern struct state S;

/* tasks.c */
struct task *task_get(int32_t tid);
struct task *task_add(int32_t tid);
void task_drop(struct task *t);
void guard_tell(int32_t op, int32_t tid, int32_t mask);
enum { GUARD_NEW = 1, GUARD_GONE = 2 };

/* memory.c */
ssize_t remote_read(int32_t tid, void *to, uint64_t from, size_t bytes);
void memory_forget(int32_t tgid);

/* copy.c */
void copy_at_entry(const struct task *t, struct call *c);
struct event *emit_call(struct task *t, struct call *c, int64_t ret, int64_t exit_ns, uint16_t flags);
struct event *emit_task(const struct task *t, uint16_t call, int64_t now, uint64_t a, uint64_t b, uint64_t c);
void add_section(struct event *e, uint8_t kind, uint8_t error, const void *data, uint32_t bytes);

/* stops.c */
void on_wait(int32_t tid, int status, int64_t now);
void adopt_stale(int64_t now);
void end_calls(struct task *t);

/* regs.c */
int64_t now_ns(void);
struct regs {
    int64_t nr; /* -1: not in a syscall */
    uint64_t args[6];
    int64_t ret;
};
int read_regs(int32_t tid, struct regs *r);

#endif
