/* Requests in flight, and their records. */
#ifndef SOCKSCOPE_URING_REQUEST_H
#define SOCKSCOPE_URING_REQUEST_H

#include "copy.h"
#include "uring_kernel.h"

/* A request in flight. */
struct request {
    s64 enter_ns;
    u64 args[6];
    u64 ring, user_data, mm, next; /* next: what is linked to it, where that will not be told of by its completion */
    s32 tgid, tid;
    u16 nr;
    u8 opcode, multishot, selects;
    u8 told, chained; /* chained: to be told of when what it is linked to has completed */
    u8 section, saved_bytes; /* what `saved` holds; 0: nothing */
    u8 of_socket;            /* another file's request of that number means something else */
    u8 saved[SOCKADDR_CAP];
};
struct many {
    u64 ring, user_data;
};

/* By the request's address, which is used again after its completion. */
struct {
    MAP_UINT(type, BPF_MAP_TYPE_HASH);
    MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
    MAP_UINT(max_entries, 65536);
    MAP_TYPE(key, u64);
    MAP_TYPE(value, struct request);
} uring_requests SEC(".maps");

/* Multishot requests → their key above. */
struct {
    MAP_UINT(type, BPF_MAP_TYPE_HASH);
    MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
    MAP_UINT(max_entries, 65536);
    MAP_TYPE(key, struct many);
    MAP_TYPE(value, u64);
} uring_multishots SEC(".maps");

/* Requests from before their thread was followed, from when the kernel looks at them again until they complete: their
 * keys. */
struct {
    MAP_UINT(type, BPF_MAP_TYPE_LRU_HASH);
    MAP_UINT(max_entries, 4096);
    MAP_TYPE(key, struct many);
    MAP_TYPE(value, u64);
} uring_woken SEC(".maps");

/* Too large for the stack; one a program: nothing interrupts it but another. */
enum { NEW_SUBMIT, NEW_FAILED, NEW_COMPLETE, NEW_COUNT };
enum { WORK_SUBMIT, WORK_FAILED, WORK_COMPLETE, WORK_PENDING, WORK_URING_COUNT };
struct {
    MAP_UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    MAP_UINT(max_entries, NEW_COUNT);
    MAP_TYPE(key, u32);
    MAP_TYPE(value, struct request);
} uring_new SEC(".maps");
struct {
    MAP_UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    MAP_UINT(max_entries, WORK_URING_COUNT);
    MAP_TYPE(key, u32);
    MAP_TYPE(value, struct work);
} uring_works SEC(".maps");

INLINE void begin(struct request *r, struct task *t, struct task_struct *me)
{
    r->enter_ns = (s64)bpf_ktime_get_ns();
    r->tgid = t->tgid;
    r->tid = t->tid;
    r->mm = (u64)me->mm;
    r->multishot = r->selects = r->told = r->chained = r->of_socket = r->section = r->saved_bytes = 0;
    r->nr = NR_NONE;
    r->next = 0;
    for (int i = 0; i < 6; i++)
        r->args[i] = 0;
}

INLINE void set_args(struct request *r, u16 nr, u64 a, u64 b, u64 c, u64 d)
{
    r->nr = nr;
    r->args[0] = a;
    r->args[1] = b;
    r->args[2] = c;
    r->args[3] = d;
}

enum { TOLD = 1, TOLD_OF_ALL }; /* its failure is told of, too */
#define COPIES (1u << 16) /* in `flags`: the request's memory is at hand */

/* The record of a request. */
static __attribute__((noinline)) int tell_request(struct work *w, const struct request *r, s64 exit_ns, s64 ret,
                                                  u32 flags)
{
    u32 nr = r->nr, bytes = r->saved_bytes, copies = flags & COPIES;
    if (nr >= MAX_NR)
        return 0;
    w->used = 0;
    w->nr = nr;
    w->e.enter_ns = r->enter_ns;
    w->e.exit_ns = exit_ns;
    w->e.ret = ret;
    for (int i = 0; i < 6; i++)
        w->e.args[i] = r->args[i];
    w->e.tgid = r->tgid;
    w->e.tid = r->tid;
    w->e.call = config.plans[nr].call;
    w->e.flags = URING | (u16)flags | (r->enter_ns < 0 ? NO_ENTRY : 0);
    if (bytes && bytes <= SOCKADDR_CAP) {
        __builtin_memcpy(w->blob + sizeof(struct section), r->saved, SOCKADDR_CAP);
        section_at(w->blob, r->section, 0, bytes);
        w->used = sizeof(struct section) + bytes;
    }
    for (u32 i = 0; copies && i < OPS_MAX && i < config.plans[nr].op_count; i++) {
        u8 when = config.plans[nr].ops[i].when;
        /* `saved` is its address or event; another copy could be of something newer. */
        if (r->section && config.plans[nr].ops[i].section != SEC_PAYLOAD)
            continue;
        if (when == AT_ANY_END || (when == AT_SUCCESS && ret >= 0 && !(flags & ENTERED_ONLY)))
            run_op(w, i);
    }
    if (!copies && ret > 0)
        w->e.flags |= TRUNCATED;
    output(w);
    return 0;
}

/* Of a request whose success is not told: begun now. A close or shutdown has succeeded until its failure is heard of. */
INLINE void tell_unheard(struct work *w, struct request *r, s64 now)
{
    int known = r->nr == NR_close || r->nr == NR_shutdown;
    r->enter_ns = now;
    r->told = 1;
    r->chained = 0;
    tell_request(w, r, known ? now : -1, 0, known ? 0 : ENTERED_ONLY);
}

#endif
