/* The tasks under trace, by tid, and what the guardian is told of them. */
#include "engine.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Linux's PID_MAX_LIMIT: one pointer a tid; pages never touched cost nothing. */
#define TID_LIMIT (4 * 1024 * 1024 + 1)

struct task *task_get(int32_t tid)
{
    return tid > 0 && tid < TID_LIMIT && S.by_tid ? S.by_tid[tid] : NULL;
}

struct task *task_add(int32_t tid)
{
    struct task *t = task_get(tid);
    if (t)
        return t;
    if (!S.by_tid) {
        void *p = mmap(NULL, TID_LIMIT * sizeof(struct task *), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
            abort();
        S.by_tid = p;
    }
    if (S.task_count == S.task_max) {
        S.task_max = S.task_max ? 2 * S.task_max : 256;
        S.all = realloc(S.all, S.task_max * sizeof *S.all);
        if (!S.all)
            abort();
    }
    t = calloc(1, sizeof *t);
    if (!t)
        abort();
    t->tid = t->tgid = tid;
    t->mask = -1;
    t->slot = S.task_count;
    S.all[S.task_count++] = t;
    S.by_tid[tid] = t;
    return t;
}

void task_drop(struct task *t)
{
    struct task *last = S.all[--S.task_count];
    last->slot = t->slot;
    S.all[t->slot] = last;
    S.by_tid[t->tid] = NULL;
    if (t->tid == t->tgid)
        memory_forget(t->tgid);
    free(t->cur.in);
    free(t->interrupted.in);
    free(t);
}

/* The pipe is non-blocking: a guardian that does not read must not stop the target. */
void guard_tell(int32_t op, int32_t tid, int32_t mask)
{
    int32_t message[36] = {op, tid, mask};
    if (S.guard_fd >= 0)
        (void)!write(S.guard_fd, message, sizeof message);
}
