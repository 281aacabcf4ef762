/* What the programs keep: configuration, counters, targets, rings; and how a record gets into a ring. */
#ifndef SOCKSCOPE_STATE_H
#define SOCKSCOPE_STATE_H

#include "record.h"

/* The copy plan of a syscall (copy_plan.py packs it). */
enum { HOW_FIXED = 1, HOW_LEN_ARG, HOW_LEN_PTR, HOW_RET, HOW_COUNT, HOW_PAYLOAD, HOW_IOV, HOW_MSG, HOW_MMSG,
       HOW_PATH, HOW_FDSETS };
enum { AT_ENTRY = 1, AT_SUCCESS, AT_ANY_END };
enum { KEEP = 0, KEEP_SHARED_MAP, KEEP_KNOWN_IOCTL, DROP };
#define OPS_MAX 6
struct op {
    u8 section, how, when, ptr, len, unit;
    u16 cap;
};
struct plan {
    u16 call;
    u8 op_count, filter;
    struct op ops[OPS_MAX];
};
_Static_assert(sizeof(struct plan) == 52, "copy_plan.PLAN_BYTES");

/* The same, boiled down to what the hot path asks (layout.py Kind, QUICK_*). */
enum { KIND_NONE = 0, KIND_CONTROL, KIND_PLAIN, KIND_PAYLOAD, KIND_READY, KIND_GENERAL, KIND_VECTOR };
enum { QUICK_OUTPUT = 1, QUICK_ADDRESS = 2, QUICK_ENTRY = 4 };
struct quick {
    u16 call;
    u8 kind, flags;
};

#define MAX_NR 512
struct config {
    u32 payload_bytes;
    u16 port, epoll_event_bytes;
    u16 nr_restart, nr_sigreturn, nr_execve, nr_execveat, nr_bind, nr_listen, reserved[2];
    struct quick quick[MAX_NR];
    struct plan plans[MAX_NR];
};
_Static_assert(sizeof(struct config) == 24 + 4 * MAX_NR + 52 * MAX_NR, "CONFIG_DTYPE");

enum { MODE_SEED = 0, MODE_SEED_SILENT, MODE_FINISH };
struct shared {
    u32 mode, pid_level;
    s64 followed;
    u64 seeded, adopted, dropped[3], not_followed, foreign, uring_lost, uring_fixed, reserved[3];
};
_Static_assert(sizeof(struct shared) == 112, "SHARED_DTYPE");

/* The only objects in their sections: userspace finds them at offset 0. */
const volatile struct config config = {0};
struct shared shared = {0};

#define COUNT(field) __sync_fetch_and_add(&shared.field, 1)

#define ENTRY_INLINE 144 /* TIMEOUT, CLONE_ARGS: sections copied at entry that fit beside the call */
struct call {
    s64 enter_ns; /* -1: not seen */
    u64 args[6];
    u32 nr;
    u8 on, far; /* far: its entry sections are in `entries` */
    u16 flags;
    u32 in_bytes, reserved;
    u8 in[ENTRY_INLINE];
};

/* A target thread. */
struct task {
    s32 tid, tgid; /* in our pid namespace */
    u32 live;      /* 0: being made, or let go */
    u8 born;       /* came by fork: an exit without entry is the fork's */
    u8 silent;     /* not recorded before its execve */
    u8 foreign;    /* has 32-bit calls, which are not recorded */
    u8 reserved;
    struct call cur, interrupted; /* `interrupted` waits to see whether it is restarted */
};

/* Entry sections that do not fit into struct call: fd sets, paths. */
#define ENTRY_FAR 4864
struct entry {
    u8 bytes[ENTRY_FAR];
};

struct {
    MAP_UINT(type, BPF_MAP_TYPE_TASK_STORAGE);
    MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
    MAP_TYPE(key, int);
    MAP_TYPE(value, struct task);
} tasks SEC(".maps");

struct {
    MAP_UINT(type, BPF_MAP_TYPE_TASK_STORAGE);
    MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
    MAP_TYPE(key, int);
    MAP_TYPE(value, struct entry);
} entries SEC(".maps");

/* tgid in the first pid namespace -> 1 (2: counted as foreign): processes with a target thread. */
struct {
    MAP_UINT(type, BPF_MAP_TYPE_HASH);
    MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
    MAP_UINT(max_entries, 65536);
    MAP_TYPE(key, u32);
    MAP_TYPE(value, u8);
} processes SEC(".maps");

struct {
    MAP_UINT(type, BPF_MAP_TYPE_HASH);
    MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
    MAP_UINT(max_entries, 16384);
    MAP_TYPE(key, u32);
    MAP_TYPE(value, u8);
} roots SEC(".maps");

struct {
    MAP_UINT(type, BPF_MAP_TYPE_HASH);
    MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
    MAP_UINT(max_entries, 16384);
    MAP_TYPE(key, u16);
    MAP_TYPE(value, u8);
} ports SEC(".maps");

/* Network namespaces (inode numbers) where targets were found: there the watched port is the target's own. */
struct {
    MAP_UINT(type, BPF_MAP_TYPE_HASH);
    MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
    MAP_UINT(max_entries, 1024);
    MAP_TYPE(key, u32);
    MAP_TYPE(value, u8);
} homes SEC(".maps");

struct {
    MAP_UINT(type, BPF_MAP_TYPE_RINGBUF);
    MAP_UINT(max_entries, 64 << 20);
} small SEC(".maps");
struct {
    MAP_UINT(type, BPF_MAP_TYPE_RINGBUF);
    MAP_UINT(max_entries, 16 << 20);
} medium SEC(".maps");
struct {
    MAP_UINT(type, BPF_MAP_TYPE_RINGBUF);
    MAP_UINT(max_entries, 16 << 20);
} large SEC(".maps");
enum { RING_SMALL, RING_MEDIUM, RING_LARGE };

/* The target that a thread is, or NULL. */
INLINE struct task *target_of(struct task_struct *task)
{
    /* Most threads of the machine have none at all, which is seen without a helper's help. */
    if (!task->bpf_storage)
        return NULL;
    struct task *t = bpf_task_storage_get(&tasks, task, NULL, 0);
    return t && t->live ? t : NULL;
}

/* The target that runs now, or NULL. */
INLINE struct task *current_target(void) { return target_of(bpf_get_current_task_btf()); }

/* A record of at most SMALL_BLOB blob bytes, from any context; NULL: the ring is full (counted). Every field of `e`
 * is the caller's to set. Ends with small_end. */
INLINE struct small_record *small_begin(void)
{
    struct small_record *r = bpf_ringbuf_reserve(&small, sizeof *r, 0);
    if (unlikely(!r))
        COUNT(dropped[RING_SMALL]);
    return r;
}

/* Never wakes the reader: it comes by itself. */
INLINE void small_end(struct small_record *r) { bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP); }

/* A section header. `to` need not be aligned: both architectures store unaligned words. */
INLINE void section_at(u8 *to, u32 kind, u32 error, u32 bytes)
{
    *(u64 *)to = kind | error << 8 | (u64)bytes << 32;
}

/* A task or kernel event: enter_ns == exit_ns, no blob yet. */
INLINE void fill_event(struct event *e, u64 now, s32 tgid, s32 tid, u16 call, u64 a, u64 b, u64 c)
{
    e->enter_ns = e->exit_ns = now;
    e->ret = 0;
    e->args[0] = a;
    e->args[1] = b;
    e->args[2] = c;
    e->args[3] = e->args[4] = e->args[5] = 0;
    e->blob_offset = 0;
    e->blob_bytes = 0;
    e->tgid = tgid;
    e->tid = tid;
    e->call = call;
    e->flags = 0;
}

#endif
