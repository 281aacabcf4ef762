/* A syscall from its entry to its record. */
#ifndef SOCKSCOPE_CALLS_H
#define SOCKSCOPE_CALLS_H

#include "copy.h"
#include "registers.h"
#include "tasks.h"

enum { EINTR = 4, ERESTARTSYS = 512, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK = 516 };

INLINE int is_restart(s64 ret)
{
    return ret == -ERESTARTSYS || ret == -ERESTARTNOINTR || ret == -ERESTARTNOHAND || ret == -ERESTART_RESTARTBLOCK;
}

/* ---- Copies made at the entry ---- */

/* Keep w's sections beside the call. */
INLINE void keep_entry(struct work *w, struct task *t, struct call *c)
{
    u32 bytes = w->used;
    c->flags |= w->e.flags;
    c->in_bytes = 0;
    c->far = bytes > ENTRY_INLINE;
    if (bytes > ENTRY_FAR)
        return;
    if (bytes <= ENTRY_INLINE) {
        if (!bpf_probe_read_kernel(c->in, bytes, w->blob))
            c->in_bytes = bytes;
        return;
    }
    struct entry *e =
        bpf_task_storage_get(&entries, bpf_get_current_task_btf(), NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
    if (!e)
        return;
    /* There is one such place a thread: who interrupts takes it. */
    if (t->interrupted.on && t->interrupted.far) {
        t->interrupted.in_bytes = 0;
        t->interrupted.flags |= COPY_FAILED;
    }
    if (!bpf_probe_read_kernel(e->bytes, bytes, w->blob))
        c->in_bytes = bytes;
}

GLOBAL int copy_at_entry(struct task *t)
{
    struct work *w = work_of(WORK_SYS_ENTER);
    if (!t || !w)
        return 0;
    struct call *c = &t->cur;
    u32 nr = c->nr;
    if (nr >= MAX_NR)
        return 0;
    const volatile struct plan *p = &config.plans[nr];
    w->nr = nr;
    w->used = 0;
    w->e.flags = 0;
    __builtin_memcpy(w->e.args, c->args, sizeof c->args);
    for (u32 i = 0; i < OPS_MAX; i++)
        if (i < p->op_count && p->ops[i].when == AT_ENTRY)
            run_op(w, i);
    keep_entry(w, t, c);
    return 0;
}

/* ---- The record of a call, by its plan ---- */

/* `task` is whose call it is. */
INLINE void begin_record(struct work *w, struct task *t, struct call *c, struct task_struct *task)
{
    u32 bytes = c->in_bytes;
    w->used = 0;
    w->nr = c->nr;
    w->e.enter_ns = c->enter_ns;
    __builtin_memcpy(w->e.args, c->args, sizeof c->args);
    w->e.tgid = t->tgid;
    w->e.tid = t->tid;
    w->e.flags = c->flags;
    c->on = 0;
    c->in_bytes = 0;
    if (!bytes)
        return;
    if (!c->far && bytes <= ENTRY_INLINE) {
        if (!bpf_probe_read_kernel(w->blob, bytes, c->in))
            w->used = bytes;
        return;
    }
    struct entry *e = bpf_task_storage_get(&entries, task, NULL, 0);
    if (e && bytes <= ENTRY_FAR && !bpf_probe_read_kernel(w->blob, bytes, e->bytes))
        w->used = bytes;
}

/* Not every mmap and ioctl is worth a record. */
INLINE int filtered(u32 filter, const u64 *args)
{
    if (filter == KEEP_SHARED_MAP)
        return !(args[3] & 1) || (s32)args[4] < 0;
    if (filter == KEEP_KNOWN_IOCTL) {
        u32 r = (u32)args[1];
        /* FIONBIO, FIOASYNC, FIONREAD, TIOCOUTQ, FIOCLEX, FIONCLEX: what concerns sockets and descriptors. */
        return r != 0x5421 && r != 0x5452 && r != 0x541B && r != 0x5411 && r != 0x5451 && r != 0x5450;
    }
    return filter == DROP;
}

/* The rest: `copies` is 0 where the caller's memory cannot be read. */
GLOBAL int end_record(struct work *w, s64 ret, s64 exit_ns, u32 flags, u32 copies)
{
    if (!w || w->nr >= MAX_NR)
        return 0;
    const volatile struct plan *p = &config.plans[w->nr];
    if (!p->call || filtered(p->filter, w->e.args))
        return 0;
    w->e.call = p->call;
    w->e.ret = ret;
    w->e.exit_ns = exit_ns;
    w->e.flags |= flags;
    /* What was not in memory at the entry is now, where the call has read it and left it alone. */
    if (w->e.flags & COPY_FAILED && ret < 0 && copies && (p->call == CALL_EXECVE || p->call == CALL_EXECVEAT)) {
        w->used = 0;
        w->e.flags &= ~COPY_FAILED;
        run_op(w, 0);
    }
    for (u32 i = 0; i < OPS_MAX; i++) {
        if (!copies || i >= p->op_count)
            break;
        u32 when = p->ops[i].when;
        if (when == AT_ANY_END || (when == AT_SUCCESS && ret >= 0 && !(flags & ENTERED_ONLY)))
            run_op(w, i);
    }
    return output(w);
}

INLINE void record(struct work *w, struct task *t, struct call *c, s64 ret, s64 exit_ns)
{
    if (t->silent) {
        c->on = 0;
        return;
    }
    begin_record(w, t, c, bpf_get_current_task_btf());
    end_record(w, ret, exit_ns, 0, 1);
}

/* ---- Entry ---- */

INLINE void swap_calls(struct task *t)
{
    struct call c = t->cur;
    t->cur = t->interrupted;
    t->interrupted = c;
}

/* The kernel restarts an interrupted call: for the program it is one. */
GLOBAL int resume_call(struct task *t)
{
    if (!t)
        return 0;
    swap_calls(t);
    t->interrupted.on = 0;
    return 0;
}

INLINE int same_arguments(const u64 *a, const u64 *b)
{
    return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]) | (a[5] ^ b[5]));
}

/* 32-bit calls have numbers of their own: not recorded, and counted once a process. */
GLOBAL int note_foreign(struct task *t)
{
    if (!t)
        return 0;
    u32 tgid = bpf_get_current_task_btf()->tgid;
    t->foreign = 1;
    t->cur.on = 0;
    u8 *noted = bpf_map_lookup_elem(&processes, &tgid);
    if (noted && *noted == 2)
        return 0;
    if (noted)
        *noted = 2;
    COUNT(foreign);
    return 0;
}

#endif
