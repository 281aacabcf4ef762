/* How threads come under trace that existed before, and how they leave: exec, exit, the end of the session. */
#ifndef SOCKSCOPE_LIFE_H
#define SOCKSCOPE_LIFE_H

#include "calls.h"
#include "path.h"

INLINE void put_kernel_string(struct work *w, u32 kind, const void *from, u32 cap)
{
    u8 *data = room(w, PATH_CAP);
    if (!data)
        return;
    long got = bpf_probe_read_kernel_str(data, cap, from);
    put_header(w, data, kind, got < 0 ? EFAULT : 0, got > 0 ? (got - 1) & (PATH_CAP - 1) : 0);
}

INLINE void begin_task(struct work *w, const struct task *t, u16 call, u64 a)
{
    w->used = 0;
    fill_event(&w->e, bpf_ktime_get_ns(), t->tgid, t->tid, call, a, 0, 0);
}

/* Its blob: PATH as /proc/PID/exe would tell it (else as execve was given it), COMM. */
SEC("tp_btf/sched_process_exec") int on_exec(u64 *ctx)
{
    struct task_struct *task = (void *)ctx[0];
    struct linux_binprm *program = (void *)ctx[2];
    struct task *t = current_target();
    struct work *w = work_of(WORK_EXEC);
    if (!t || !w)
        return 0;
    const char *path = program->filename;
    struct call *c = &t->cur;
    /* The path was not in memory when execve began; by now the kernel has it, and the caller's memory is gone. */
    if (c->on && c->flags & COPY_FAILED && (c->nr == config.nr_execve || c->nr == config.nr_execveat)) {
        w->used = 0;
        w->e.flags = 0;
        put_kernel_string(w, SEC_PATH, path, PATH_CAP);
        c->flags &= ~COPY_FAILED;
        keep_entry(w, t, c);
    }
    s32 former = t->tid;
    /* execve of a thread that was not the leader gives it the leader's number; the leader has exited. */
    t->tid = tid_of(task);
    t->tgid = tgid_of(task);
    begin_task(w, t, TASK_EXEC, (u32)former);
    u64 mount = 0, entry = 0;
    if (!READ(mount, program->file->f_path.mnt) || !READ(entry, program->file->f_path.dentry) ||
        !put_file_path(w, mount, entry))
        put_kernel_string(w, SEC_PATH, path, PATH_CAP);
    put_kernel_string(w, SEC_COMM, &task->comm, sizeof task->comm);
    output(w);
    return 0;
}

INLINE void end_call(struct work *w, struct task *t, struct call *c, struct task_struct *task, u32 copies)
{
    if (!c->on)
        return;
    begin_record(w, t, c, task);
    if (!t->silent)
        end_record(w, 0, -1, ENTERED_ONLY, copies);
}

SEC("tp_btf/sched_process_exit") int on_exit(u64 *ctx)
{
    struct task_struct *task = (void *)ctx[0];
    struct task *t = current_target();
    struct work *w = work_of(WORK_EXIT);
    u32 tgid = task->tgid;
    if (!t || !w)
        return 0;
    /* Before Linux 6.16 the memory is gone by now. */
    u32 copies = task->mm != NULL;
    end_call(w, t, &t->interrupted, task, copies);
    end_call(w, t, &t->cur, task, copies);
    emit_task(t->tgid, t->tid, TASK_EXIT, (u32)task->exit_code, 0, 0);
    retire(t);
    if (task->signal->live.counter == 0)
        bpf_map_delete_elem(&processes, &tgid);
    return 0;
}

INLINE int is_wanted(struct task_struct *task)
{
    if (task->flags & (PF_KTHREAD | PF_IO_WORKER | PF_USER_WORKER | PF_EXITING))
        return 0;
    u32 ours = tgid_of(task), tgid = task->tgid, parent = task->real_parent->tgid;
    return bpf_map_lookup_elem(&roots, &ours) || bpf_map_lookup_elem(&processes, &tgid) ||
           bpf_map_lookup_elem(&processes, &parent);
}

SEC("iter/task") int seed(struct bpf_iter__task *ctx)
{
    struct task_struct *task = ctx->task;
    if (!task)
        return 0;
    struct task *t = bpf_task_storage_get(&tasks, task, NULL, 0);
    if (shared.mode == MODE_FINISH) {
        struct work *w = work_of(WORK_SEED);
        if (!t || !w || !retire(t))
            return 0;
        end_call(w, t, &t->interrupted, task, 0);
        end_call(w, t, &t->cur, task, 0);
        emit_task(t->tgid, t->tid, TASK_DETACH, 0, 0, 0);
        return 0;
    }
    if ((t && t->live) || !is_wanted(task))
        return 0;
    t = new_target(task);
    if (!t)
        return 0;
    t->silent = shared.mode == MODE_SEED_SILENT;
    emit_task(t->tgid, t->tid, TASK_ATTACH, 0, 0, 0);
    COUNT(seeded);
    note_home(task);
    start(t);
    /* It may have exited meanwhile, before it was a target to on_exit. */
    if (task->flags & PF_EXITING)
        retire(t);
    return 0;
}

#endif
