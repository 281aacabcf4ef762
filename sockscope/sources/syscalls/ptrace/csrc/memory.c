/* Reading the tracee's memory.
 *
 * A kept-open /proc/PID/mem costs less a read than process_vm_readv, which looks up the task and checks access every
 * time; opening it costs more, so only processes that are read often get one. */
#define _GNU_SOURCE
#include "engine.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SLOTS = 256, OPEN_AFTER = 16 };

/* By tgid modulo SLOTS; fd + 1, so that zero means none. */
static struct {
    int32_t tgid;
    uint32_t reads;
    int fd_1;
} memories[SLOTS];

/* After exec and at its end: the file would go on naming the old memory. */
void memory_forget(int32_t tgid)
{
    int i = tgid % SLOTS;
    if (memories[i].tgid != tgid)
        return;
    if (memories[i].fd_1)
        close(memories[i].fd_1 - 1);
    memories[i].tgid = memories[i].fd_1 = 0;
}

static int memory_of(int32_t tgid)
{
    int i = tgid % SLOTS;
    if (memories[i].tgid != tgid) {
        memory_forget(memories[i].tgid);
        memories[i].tgid = tgid;
        memories[i].reads = 0;
    }
    if (!memories[i].fd_1 && ++memories[i].reads == OPEN_AFTER) {
        char path[32];
        snprintf(path, sizeof path, "/proc/%d/mem", tgid);
        memories[i].fd_1 = open(path, O_RDONLY | O_CLOEXEC) + 1;
    }
    return memories[i].fd_1 - 1;
}

ssize_t remote_read(int32_t tid, void *to, uint64_t from, size_t bytes)
{
    const struct task *t = task_get(tid);
    int fd = t ? memory_of(t->tgid) : -1;
    ssize_t got = fd >= 0 ? pread(fd, to, bytes, (off_t)from) : -1;
    if (got > 0)
        return got;
    /* Also for the errno: /proc/PID/mem says EIO, or nothing of a memory that is gone. */
    struct iovec local = {to, bytes}, remote = {(void *)(uintptr_t)from, bytes};
    return process_vm_readv(tid, &local, 1, &remote, 1, 0);
}
