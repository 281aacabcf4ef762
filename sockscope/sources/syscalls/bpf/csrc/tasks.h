/* Targets come and go: which threads are followed, and the task events that tell of it. */
#ifndef SOCKSCOPE_TASKS_H
#define SOCKSCOPE_TASKS_H

#include "state.h"

enum { SIGKILL = 9, SIGCHLD = 17, SIGSTOP = 19, SIGTSTP = 20, SIGTTIN = 21, SIGTTOU = 22 };
enum { SIGNAL_GROUP_EXIT = 4 }; /* include/linux/sched/signal.h */
enum { CLONE_VM = 0x100, CLONE_VFORK = 0x4000, CLONE_THREAD = 0x10000,
       CLONE_OF_PTHREADS = 0x100 | 0x200 | 0x400 | 0x800 | CLONE_THREAD };

/* The number of a thread or process in the pid namespace of that depth above it; 0: it has none there.
 * Source: kernel/pid.c pid_nr_ns. */
INLINE s32 number_at(struct pid *pid, u32 level)
{
    s32 nr = 0;
    if (pid && pid->level >= level)
        /* struct upid is an int and a pointer. */
        bpf_probe_read_kernel(&nr, sizeof nr, (u8 *)&pid->numbers[0].nr + level * 16);
    return nr;
}

INLINE s32 tid_of(struct task_struct *task)
{
    return shared.pid_level ? number_at(task->thread_pid, shared.pid_level) : task->pid;
}

INLINE s32 tgid_of(struct task_struct *task)
{
    return shared.pid_level ? number_at(task->signal->pids[PIDTYPE_TGID], shared.pid_level) : task->tgid;
}

INLINE void emit_task(s32 tgid, s32 tid, u16 call, u64 a, u64 b, u64 c)
{
    struct small_record *r = small_begin();
    if (!r)
        return;
    fill_event(&r->e, bpf_ktime_get_ns(), tgid, tid, call, a, b, c);
    small_end(r);
}

INLINE void note_process(u32 tgid)
{
    u8 one = 1;
    bpf_map_update_elem(&processes, &tgid, &one, BPF_NOEXIST);
}

/* Storage of a new target; it records nothing until `live` is set. NULL: was one already, or no memory (counted). */
INLINE struct task *new_target(struct task_struct *task)
{
    struct task *t = bpf_task_storage_get(&tasks, task, NULL, 0);
    if (!t)
        t = bpf_task_storage_get(&tasks, task, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
    else if (t->live)
        return NULL;
    if (!t) {
        COUNT(not_followed);
        return NULL;
    }
    t->tid = tid_of(task);
    t->tgid = tgid_of(task);
    t->cur.on = t->interrupted.on = 0;
    note_process(task->tgid);
    return t;
}

/* A target no more: the first to say so counts it. */
INLINE int retire(struct task *t)
{
    if (!__sync_lock_test_and_set(&t->live, 0))
        return 0;
    __sync_fetch_and_add(&shared.followed, -1);
    return 1;
}

INLINE void start(struct task *t)
{
    __sync_fetch_and_add(&shared.followed, 1);
    t->live = 1;
}

/* The network namespace of a task; 0 where it has left it (it exits). */
INLINE u32 network_of(struct task_struct *task)
{
    struct nsproxy *all = task->nsproxy;
    return all ? all->net_ns->ns.inum : 0;
}

INLINE void note_home(struct task_struct *task)
{
    u32 network = network_of(task);
    u8 one = 1;
    bpf_map_update_elem(&homes, &network, &one, BPF_ANY);
}

/* The running thread becomes a target of its own doing (it serves the port). From process context only.
 * Returns 1: it is new. */
INLINE int adopt_current(void)
{
    struct task_struct *task = bpf_get_current_task_btf();
    if (task->flags & (PF_KTHREAD | PF_IO_WORKER | PF_USER_WORKER | PF_EXITING))
        return 0;
    struct task *t = new_target(task);
    if (!t)
        return 0;
    emit_task(t->tgid, t->tid, TASK_ATTACH, 1, 0, 0);
    COUNT(adopted);
    start(t);
    return 1;
}

/* What the running call of the parent asks for; 0: fork, or not known. */
INLINE u64 clone_flags(struct task *t, s32 child_tgid)
{
    struct call *c = &t->cur;
    u64 flags = 0;
    u16 call = c->on && c->nr < MAX_NR ? config.quick[c->nr].call : 0;
    if (call == CALL_CLONE && c->args[0])
        return c->args[0] & ~0xffULL; /* the low byte is the exit signal */
    /* The kernel has just read it, so it is in memory. */
    if (call == CALL_CLONE3 && !bpf_probe_read_user(&flags, sizeof flags, (void *)c->args[0]))
        return flags;
    if (call == CALL_VFORK)
        return CLONE_VFORK | CLONE_VM;
    return child_tgid == t->tgid ? CLONE_OF_PTHREADS : 0;
}

SEC("tp_btf/sched_process_fork") int on_fork(u64 *ctx)
{
    struct task_struct *parent = (void *)ctx[0], *child = (void *)ctx[1];
    struct task *t = bpf_task_storage_get(&tasks, parent, NULL, 0);
    if (!t || !t->live)
        return 0;
    struct task *made = new_target(child);
    if (!made)
        return 0;
    made->born = 1;
    emit_task(t->tgid, t->tid, TASK_NEW, (u32)made->tid, (u32)made->tgid, clone_flags(t, made->tgid));
    start(made);
    return 0;
}

/* include/uapi/asm-generic/siginfo.h; the first of the fields that depend on the signal is si_pid where a process
 * sent it. */
struct signal_info {
    s32 signo, error, code, pad, pid;
};

INLINE void emit_signal(struct task *t, struct task_struct *task, s32 sig, const void *info)
{
    struct signal_info i = {0};
    /* Not a pointer: SEND_SIG_NOINFO (0, which the verifier would not believe) or SEND_SIG_PRIV (1). */
    if (bpf_probe_read_kernel(&i, sizeof i, info)) {
        if ((u64)info == 1)
            i.code = 0x80; /* SI_KERNEL */
        else /* SI_USER of who runs, numbered as the receiver sees it */
            i.pid = number_at(bpf_get_current_task_btf()->signal->pids[PIDTYPE_TGID], task->thread_pid->level);
    }
    /* si_pid means something only where a process sent it; a fault has an address there, a timer its id. */
    int sent = i.code == 0 || i.code == -1 || i.code == -6 || sig == SIGCHLD;
    emit_task(t->tgid, t->tid, TASK_SIGNAL, sig, (u64)(s64)i.code, sent ? (u32)i.pid : 0);
}

SEC("tp_btf/signal_deliver") int on_signal_deliver(u64 *ctx)
{
    s32 sig = (s32)ctx[0];
    struct k_sigaction *action = (void *)ctx[2];
    struct task *t = current_target();
    void *handler = NULL;
    if (!t || sig == SIGKILL)
        return 0;
    emit_signal(t, bpf_get_current_task_btf(), sig, (void *)ctx[1]);
    if (sig < SIGSTOP || sig > SIGTTOU)
        return 0;
    if (!bpf_probe_read_kernel(&handler, sizeof handler, &action->sa.sa_handler) && !handler)
        emit_task(t->tgid, t->tid, TASK_STOP, sig, 0, 0);
    return 0;
}

/* Two kinds of signals are never delivered, though the program was sent them: what it ignores, and what kills it by
 * default (the kernel sends its threads SIGKILL instead). Source: kernel/signal.c prepare_signal, complete_signal. */
SEC("tp_btf/signal_generate") int on_signal_generate(u64 *ctx)
{
    enum { TRACE_SIGNAL_DELIVERED, TRACE_SIGNAL_IGNORED };
    s32 sig = (s32)ctx[0], result = (s32)ctx[4];
    struct task_struct *task = (void *)ctx[2];
    if (result > TRACE_SIGNAL_IGNORED || sig == SIGKILL)
        return 0;
    struct task *t = bpf_task_storage_get(&tasks, task, NULL, 0);
    if (!t || !t->live)
        return 0;
    int ends = task->signal->flags & SIGNAL_GROUP_EXIT;
    /* A process that ends already takes no more of them. */
    if (result == TRACE_SIGNAL_IGNORED ? !ends : ends && task->signal->group_exit_code == sig)
        emit_signal(t, task, sig, (void *)ctx[1]);
    return 0;
}

/* Which pid namespace is ours: that of who reads this iterator. */
SEC("iter/task") int who(struct bpf_iter__task *ctx)
{
    if (ctx->meta->seq_num == 0)
        shared.pid_level = bpf_get_current_task_btf()->thread_pid->level;
    return 0;
}

#endif
