/* The bpf engine's program: one record a syscall of the target's threads, made at its exit.
 *
 * Nothing is ever stopped. Source: kernel/trace/bpf_trace.c, include/trace/events/{syscalls,sched,signal}.h. */
#include "hot.h"
#include "life.h"
#include "net.h"
#include "uring.h"

char _license[] SEC("license") = "Dual MIT/GPL";

/* Whoever binds the port that is watched becomes a target with that very call, in the target's network namespace: in
 * another (a container's) the same number is another port.
 * Source: struct sockaddr_in, struct sockaddr_in6: port at 2, in network order. */
INLINE struct task *serves_port(u64 address)
{
    u16 head[2] = {0};
    u32 network = network_of(bpf_get_current_task_btf());
    if (!bpf_map_lookup_elem(&homes, &network))
        return NULL;
    if (bpf_probe_read_user(head, sizeof head, (void *)address) || (head[0] != AF_INET && head[0] != AF_INET6) ||
        __builtin_bswap16(head[1]) != config.port || !adopt_current())
        return NULL;
    return current_target();
}

SEC("tp_btf/sys_enter") int on_sys_enter(u64 *ctx)
{
    struct pt_regs *regs = (void *)ctx[0];
    u64 nr = ctx[1];
    if (nr >= MAX_NR || !config.quick[nr].kind)
        return 0;
    struct task_struct *task = bpf_get_current_task_btf();
    struct task *t = target_of(task);
    struct call *c;
    if (!t) {
        if (!config.port || nr != config.nr_bind || is_foreign(task))
            return 0;
        u64 args[6];
        arguments_of(regs, args);
        t = serves_port(args[1]);
        if (!t)
            return 0;
    }
    if (unlikely(is_foreign(task))) {
        if (!t->foreign)
            note_foreign(t);
        return 0;
    }
    c = &t->cur;
    u64 args[6];
    arguments_of(regs, args);
    if (unlikely(t->interrupted.on) &&
        (nr == config.nr_restart || (nr == t->interrupted.nr && same_arguments(args, t->interrupted.args)))) {
        resume_call(t);
        if (c->flags & NO_ENTRY && !c->in_bytes)
            copy_at_entry(t);
        return 0;
    }
    __builtin_memcpy(c->args, args, sizeof args);
    c->nr = nr;
    c->flags = 0;
    c->in_bytes = 0;
    c->far = 0;
    c->enter_ns = bpf_ktime_get_ns();
    c->on = 1;
    if (unlikely(config.quick[nr].flags & QUICK_ENTRY)) {
        if (t->silent && (nr == config.nr_execve || nr == config.nr_execveat))
            t->silent = 0;
        copy_at_entry(t);
    }
    return 0;
}

/* Already in the kernel when it came under trace: the registers still hold the arguments. Returns 0: not a call. */
INLINE int without_entry(struct task *t, struct task_struct *task, struct pt_regs *regs, u64 nr)
{
    struct call *c = &t->cur;
    if (t->born) { /* the end of the fork that made it */
        t->born = 0;
        return 0;
    }
    if (nr >= MAX_NR || is_foreign(task))
        return 0;
    arguments_of(regs, c->args);
    c->enter_ns = -1;
    c->nr = nr;
    c->flags = NO_ENTRY;
    c->in_bytes = 0;
    return 1;
}

/* What is not hot. */
GLOBAL int end_slowly(struct task *t, s64 ret, s64 exit_ns)
{
    struct work *w = work_of(WORK_SYS_EXIT);
    if (!t || !w)
        return 0;
    if (is_restart(ret)) {
        if (t->interrupted.on)
            record(w, t, &t->interrupted, -EINTR, exit_ns);
        swap_calls(t);
        t->interrupted.on = 1;
        t->cur.on = 0;
        return 0;
    }
    if (t->cur.nr == config.nr_sigreturn) {
        /* A handler ended. What the interrupted call gives is in the result register now. */
        t->cur.on = 0;
        if (t->interrupted.on && ret == -EINTR)
            record(w, t, &t->interrupted, -EINTR, exit_ns);
        return 0;
    }
    record(w, t, &t->cur, ret, exit_ns);
    return 0;
}

SEC("tp_btf/sys_exit") int on_sys_exit(u64 *ctx)
{
    struct pt_regs *regs = (void *)ctx[0];
    s64 ret = ctx[1];
    /* -1 after rt_sigreturn. */
    u64 nr = number_of(regs);
    if (nr < MAX_NR && !config.quick[nr].kind)
        return 0;
    struct task_struct *task = bpf_get_current_task_btf();
    struct task *t = target_of(task);
    if (!t)
        return 0;
    struct call *c = &t->cur;
    if (unlikely(!c->on) && !without_entry(t, task, regs, nr))
        return 0;
    /* Killed in it: the program never sees this result. on_exit tells of the call. */
    if (unlikely(ret == -EINTR) && c->nr != config.nr_sigreturn && task->signal->flags & SIGNAL_GROUP_EXIT) {
        c->on = 1;
        return 0;
    }
    s64 now = bpf_ktime_get_ns();
    nr = c->nr;
    if (nr >= MAX_NR)
        return 0;
    u32 kind = config.quick[nr].kind, call = config.quick[nr].call, quick = config.quick[nr].flags;
    if (unlikely(is_restart(ret) || t->silent))
        kind = KIND_GENERAL;
    c->on = 0;
    int done = 0;
    if (kind == KIND_PAYLOAD)
        done = hot_payload(t, c, call, quick, ret, now);
    else if (kind == KIND_READY)
        done = hot_ready(t, c, call, ret, now);
    else if (kind == KIND_VECTOR)
        done = hot_vector(t, c, call, quick, ret, now);
    else if (kind == KIND_PLAIN) {
        hot_plain(t, c, call, ret, now, c->flags);
        done = 1;
    }
    if (!done)
        end_slowly(t, ret, now);
    return 0;
}
