// Which sockets every process holds, by readlink of /proc/PID/fd/N: some 3 us each, all of it the kernel's.
// Threads take processes from one queue; who finds it empty helps with the folders still being read, for one
// process may hold most of the sockets. Source: proc_pid_fd(5), getdents64(2).
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_WORKERS 8
#define PORTION_BYTES 8192 // of names at a time: some 340
#define TARGET_BYTES 48    // "socket:[N]", N of 64 bits

struct row { // OWNER_DTYPE
    uint64_t inode;
    int32_t tgid, fd;
};

struct entry { // struct linux_dirent64
    uint64_t ino;
    int64_t off;
    uint16_t len;
    uint8_t type;
    char name[];
};

struct folder {
    int handle;
    int32_t tgid;
    int users;    // workers in it; 0: the place is free
    int finished; // no more names, or they are refused
};

struct worker {
    struct scan *scan;
    pthread_t thread;
    struct row *rows;
    size_t count, room;
};

struct scan {
    pthread_mutex_t lock; // folders, next, unreadable
    size_t waiting, next;
    int32_t *tgids;
    int32_t unreadable;
    atomic_int stopping, out_of_memory;
    int started;
    int workers;
    struct worker worker[MAX_WORKERS];
    struct folder folder[MAX_WORKERS]; // a worker is in one at most: there is always a free place
};

static int keep(struct worker *me, int32_t tgid, const char *name, uint64_t inode)
{
    if (me->count == me->room) {
        size_t room = me->room ? 2 * me->room : 1024;
        struct row *rows = realloc(me->rows, room * sizeof *rows);
        if (!rows) {
            me->scan->out_of_memory = me->scan->stopping = 1;
            return -1;
        }
        me->rows = rows, me->room = room;
    }
    me->rows[me->count++] = (struct row){inode, tgid, atoi(name)};
    return 0;
}

// The next process's folder, else one to help with; NULL: all is done or will be.
static struct folder *take(struct scan *scan)
{
    struct folder *found = NULL;
    int handle = -1;
    int32_t tgid = 0;
    pthread_mutex_lock(&scan->lock);
    while (handle < 0 && scan->next < scan->waiting) {
        char path[32];
        tgid = scan->tgids[scan->next++];
        pthread_mutex_unlock(&scan->lock);
        snprintf(path, sizeof path, "/proc/%d/fd", tgid);
        handle = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        int reason = errno;
        pthread_mutex_lock(&scan->lock);
        if (handle < 0 && (reason == EACCES || reason == EPERM))
            scan->unreadable++;
    }
    for (int i = 0; i < scan->workers && !found; i++) {
        struct folder *folder = &scan->folder[i];
        if (handle >= 0 && !folder->users)
            *(found = folder) = (struct folder){.handle = handle, .tgid = tgid};
        else if (handle < 0 && folder->users && !folder->finished)
            found = folder;
    }
    if (found)
        found->users++;
    pthread_mutex_unlock(&scan->lock);
    return found;
}

static void leave(struct scan *scan, struct folder *folder, int reason)
{
    pthread_mutex_lock(&scan->lock);
    if (!folder->finished && (reason == EACCES || reason == EPERM))
        scan->unreadable++;
    folder->finished = 1;
    if (--folder->users == 0)
        close(folder->handle);
    pthread_mutex_unlock(&scan->lock);
}

static void read_folder(struct worker *me, struct folder *folder)
{
    struct scan *scan = me->scan;
    _Alignas(struct entry) char names[PORTION_BYTES];
    long got = 0;
    // The kernel gives each caller the names behind the last one's (f_pos_lock).
    while (!scan->stopping && (got = syscall(SYS_getdents64, folder->handle, names, sizeof names)) > 0) {
        for (long at = 0; at < got && !scan->stopping;) {
            struct entry *entry = (struct entry *)(names + at);
            char target[TARGET_BYTES];
            at += entry->len;
            if (entry->name[0] == '.')
                continue;
            ssize_t length = readlinkat(folder->handle, entry->name, target, sizeof target - 1);
            // Gone meanwhile: not a descriptor any more.
            if (length < 10 || memcmp(target, "socket:[", 8))
                continue;
            target[length] = 0;
            if (keep(me, folder->tgid, entry->name, strtoull(target + 8, NULL, 10)))
                break;
        }
    }
    leave(scan, folder, got < 0 ? errno : 0);
}

static void *work(void *argument)
{
    struct worker *me = argument;
    struct folder *folder;
    while (!me->scan->stopping && (folder = take(me->scan)))
        read_folder(me, folder);
    return NULL;
}

// Begins a scan of these processes on `workers` threads; 0: here and now, before it returns. NULL: no memory.
struct scan *ss_scan_start(const int32_t *tgids, size_t count, int workers)
{
    struct scan *scan = calloc(1, sizeof *scan);
    if (!scan || !(scan->tgids = malloc((count + 1) * sizeof *tgids))) {
        free(scan);
        return NULL;
    }
    memcpy(scan->tgids, tgids, count * sizeof *tgids);
    scan->waiting = count;
    pthread_mutex_init(&scan->lock, NULL);
    scan->workers = workers < 1 ? 1 : workers > MAX_WORKERS ? MAX_WORKERS : workers;
    for (int i = 0; i < scan->workers; i++)
        scan->worker[i].scan = scan;
    // Signals are for the threads that wait for something.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (workers > 0 && scan->started < scan->workers &&
           !pthread_create(&scan->worker[scan->started].thread, NULL, work, &scan->worker[scan->started]))
        scan->started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!scan->started)
        work(&scan->worker[0]);
    return scan;
}

// Waits for the end. Rows found, or -1 where memory ran out.
int64_t ss_scan_wait(struct scan *scan, int32_t *unreadable)
{
    int64_t total = 0;
    for (int i = 0; i < scan->started; i++)
        pthread_join(scan->worker[i].thread, NULL);
    scan->started = 0;
    for (int i = 0; i < scan->workers; i++)
        total += (int64_t)scan->worker[i].count;
    *unreadable = scan->unreadable;
    return scan->out_of_memory ? -1 : total;
}

// After ss_scan_wait: copies the rows, in no order.
void ss_scan_rows(const struct scan *scan, struct row *out)
{
    for (int i = 0; i < scan->workers; i++) {
        if (scan->worker[i].count)
            memcpy(out, scan->worker[i].rows, scan->worker[i].count * sizeof *out);
        out += scan->worker[i].count;
    }
}

// Ends a scan, under way or not, and forgets it.
void ss_scan_free(struct scan *scan)
{
    int32_t unreadable;
    scan->stopping = 1;
    ss_scan_wait(scan, &unreadable);
    for (int i = 0; i < scan->workers; i++)
        free(scan->worker[i].rows);
    pthread_mutex_destroy(&scan->lock);
    free(scan->tgids);
    free(scan);
}
