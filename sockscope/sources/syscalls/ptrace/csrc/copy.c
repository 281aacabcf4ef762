/* Records and what is copied from the tracee's memory beside them. */
#include "engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct header {
    uint8_t kind, error;
    uint16_t reserved;
    uint32_t bytes;
};
struct remote_iov {
    uint64_t base, len;
};
struct remote_msg {
    uint64_t name;
    uint32_t namelen, pad;
    uint64_t iov, iovlen, control, controllen;
    uint32_t flags, pad2;
};
#define MMSG_BYTES 64
#define IOV_MAX_READ 1024 /* UIO_MAXIOV */
#define MMSG_MAX_READ 1024
#define CONTROL_CAP 4096
#define SOCKADDR_CAP 128
#define FDSET_MAX_BITS 65536

/* Where sections go: the shared blob at the end of a call, a buffer of the call's own at its entry. */
struct sink {
    uint8_t *to;
    uint32_t used, max;
    uint16_t flags;
};

static int reads_failed_errno(void) { return errno > 0 && errno < 256 ? errno : EFAULT; }

static void put(struct sink *s, uint8_t kind, uint8_t error, const void *data, uint32_t bytes)
{
    struct header h = {kind, error, 0, bytes};
    if (s->max - s->used < sizeof h + bytes) {
        s->flags |= TRUNCATED;
        return;
    }
    memcpy(s->to + s->used, &h, sizeof h);
    if (bytes)
        memcpy(s->to + s->used + sizeof h, data, bytes);
    s->used += sizeof h + bytes;
    if (error)
        s->flags |= COPY_FAILED;
}

/* Read straight into the sink: no second copy. */
static void fetch(struct sink *s, int32_t tid, uint8_t kind, uint64_t from, uint64_t bytes)
{
    if (s->max - s->used < sizeof(struct header) + bytes) {
        s->flags |= TRUNCATED;
        return;
    }
    struct header h = {kind, 0, 0, (uint32_t)bytes};
    if (bytes) {
        ssize_t got = remote_read(tid, s->to + s->used + sizeof h, from, bytes);
        if (got != (ssize_t)bytes) {
            h.error = got < 0 ? reads_failed_errno() : EFAULT;
            h.bytes = got < 0 ? 0 : (uint32_t)got;
            s->flags |= COPY_FAILED;
        }
    }
    memcpy(s->to + s->used, &h, sizeof h);
    s->used += sizeof h + h.bytes;
}

static void fetch_payload(struct sink *s, int32_t tid, uint64_t from, uint64_t bytes, uint64_t moved)
{
    uint64_t take = bytes < S.payload ? bytes : S.payload;
    if (take > moved)
        take = moved;
    if (take < moved)
        s->flags |= TRUNCATED;
    if (take && from)
        fetch(s, tid, SEC_PAYLOAD, from, take);
}

/* IOV_TOTAL and the first bytes of the first iovec that holds any. `ret` < 0: what was offered. */
static void fetch_iov(struct sink *s, int32_t tid, uint64_t iov, uint64_t count, int64_t ret)
{
    static struct remote_iov v[IOV_MAX_READ];
    uint64_t total = 0;
    if (count > IOV_MAX_READ)
        count = IOV_MAX_READ;
    if (!count || !iov)
        return;
    ssize_t got = remote_read(tid, v, iov, count * sizeof *v);
    if (got != (ssize_t)(count * sizeof *v)) {
        put(s, SEC_IOV_TOTAL, got < 0 ? reads_failed_errno() : EFAULT, NULL, 0);
        return;
    }
    const struct remote_iov *first = NULL;
    for (uint64_t i = 0; i < count; i++) {
        total += v[i].len;
        if (!first && v[i].len)
            first = &v[i];
    }
    put(s, SEC_IOV_TOTAL, 0, &total, sizeof total);
    if (first)
        fetch_payload(s, tid, first->base, first->len, ret >= 0 ? (uint64_t)ret : total);
}

static void fetch_msg(struct sink *s, int32_t tid, const struct remote_msg *m, int64_t ret, int receives)
{
    if (m->name && m->namelen && (!receives || ret >= 0))
        fetch(s, tid, SEC_SOCKADDR, m->name, m->namelen < SOCKADDR_CAP ? m->namelen : SOCKADDR_CAP);
    if (!receives || ret >= 0)
        fetch_iov(s, tid, m->iov, m->iovlen, ret);
    if (m->control && m->controllen && (!receives || ret >= 0)) {
        if (m->controllen > CONTROL_CAP)
            s->flags |= TRUNCATED;
        fetch(s, tid, SEC_CONTROL, m->control, m->controllen < CONTROL_CAP ? m->controllen : CONTROL_CAP);
    }
    if (receives && ret >= 0)
        put(s, SEC_MSG_FLAGS, 0, &m->flags, sizeof m->flags);
}

static void fetch_msg_at(struct sink *s, int32_t tid, uint64_t at, int64_t ret, int receives)
{
    struct remote_msg m;
    ssize_t got = remote_read(tid, &m, at, sizeof m);
    if (got != sizeof m)
        put(s, SEC_IOV_TOTAL, got < 0 ? reads_failed_errno() : EFAULT, NULL, 0);
    else
        fetch_msg(s, tid, &m, ret, receives);
}

/* Source: sendmmsg(2), recvmmsg(2): struct mmsghdr is a msghdr and a u4 msg_len. */
static void fetch_mmsg(struct sink *s, int32_t tid, const uint64_t *args, int64_t ret, int receives)
{
    static uint8_t headers[MMSG_MAX_READ * MMSG_BYTES];
    static uint32_t lens[MMSG_MAX_READ];
    uint64_t count = ret > 0 ? (uint64_t)ret : 0;
    if (!count) {
        if (!receives)
            fetch_msg_at(s, tid, args[1], ret, receives);
        return;
    }
    if (count > MMSG_MAX_READ)
        count = MMSG_MAX_READ;
    if (remote_read(tid, headers, args[1], count * MMSG_BYTES) != (ssize_t)(count * MMSG_BYTES)) {
        put(s, SEC_MMSG_LENS, EFAULT, NULL, 0);
        return;
    }
    for (uint64_t i = 0; i < count; i++)
        memcpy(&lens[i], headers + i * MMSG_BYTES + sizeof(struct remote_msg), 4);
    put(s, SEC_MMSG_LENS, 0, lens, (uint32_t)count * 4);
    struct remote_msg m;
    memcpy(&m, headers, sizeof m);
    fetch_msg(s, tid, &m, lens[0], receives);
}

/* A string may end just before an unmapped page, so it is read page by page. */
static void fetch_path(struct sink *s, int32_t tid, uint64_t at)
{
    char path[4096];
    size_t used = 0;
    while (used < sizeof path) {
        size_t step = 256 - (at + used) % 256;
        if (step > sizeof path - used)
            step = sizeof path - used;
        ssize_t got = remote_read(tid, path + used, at + used, step);
        if (got <= 0) {
            put(s, SEC_PATH, got < 0 ? reads_failed_errno() : EFAULT, path, (uint32_t)used);
            return;
        }
        void *nul = memchr(path + used, 0, (size_t)got);
        if (nul) {
            used = (size_t)((char *)nul - path);
            break;
        }
        used += (size_t)got;
    }
    put(s, SEC_PATH, 0, path, (uint32_t)used);
}

static void fetch_fdsets(struct sink *s, int32_t tid, uint8_t kind, const uint64_t *args)
{
    static uint8_t sets[3 * FDSET_MAX_BITS / 8];
    uint64_t bits = args[0] < FDSET_MAX_BITS ? args[0] : FDSET_MAX_BITS;
    if ((int64_t)args[0] <= 0)
        return;
    size_t bytes = (bits + 63) / 64 * 8;
    memset(sets, 0, 3 * bytes);
    for (int i = 0; i < 3; i++)
        if (args[1 + i] && remote_read(tid, sets + i * bytes, args[1 + i], bytes) != (ssize_t)bytes) {
            put(s, kind, EFAULT, NULL, 0);
            return;
        }
    put(s, kind, 0, sets, (uint32_t)(3 * bytes));
}

static void run_op(struct sink *s, int32_t tid, const struct op *o, const uint64_t *args, int64_t ret)
{
    uint64_t ptr = args[o->ptr], bytes = 0;
    if (!ptr && o->how != HOW_FDSETS)
        return;
    switch (o->how) {
    case HOW_FIXED:
        bytes = o->unit;
        break;
    case HOW_LEN_ARG:
        bytes = (uint32_t)args[o->len];
        break;
    case HOW_LEN_PTR: {
        uint32_t len;
        if (!args[o->len] || remote_read(tid, &len, args[o->len], sizeof len) != sizeof len)
            return;
        bytes = len;
        break;
    }
    case HOW_RET:
        bytes = ret > 0 ? (uint64_t)ret * o->unit : 0;
        break;
    case HOW_COUNT:
        bytes = (uint64_t)(uint32_t)args[o->len] * o->unit;
        break;
    case HOW_PAYLOAD:
        fetch_payload(s, tid, ptr, UINT64_MAX, ret >= 0 ? (uint64_t)ret : args[o->len]);
        return;
    case HOW_IOV:
        fetch_iov(s, tid, ptr, (uint32_t)args[o->len], ret);
        return;
    case HOW_MSG:
        fetch_msg_at(s, tid, ptr, ret, o->unit);
        return;
    case HOW_MMSG:
        fetch_mmsg(s, tid, args, ret, o->unit);
        return;
    case HOW_PATH:
        fetch_path(s, tid, ptr);
        return;
    case HOW_FDSETS:
        fetch_fdsets(s, tid, o->section, args);
        return;
    }
    if (bytes > o->cap) {
        bytes = o->unit > 1 ? o->cap / o->unit * o->unit : o->cap;
        s->flags |= TRUNCATED;
    }
    if (bytes)
        fetch(s, tid, o->section, ptr, bytes);
}

void copy_at_entry(const struct task *t, struct call *c)
{
    static uint8_t buffer[64 * 1024];
    const struct plan *p = &S.plans[c->nr];
    struct sink s = {buffer, 0, sizeof buffer, 0};
    for (int i = 0; i < p->op_count; i++)
        if (p->ops[i].when == AT_ENTRY)
            run_op(&s, t->tid, &p->ops[i], c->args, 0);
    c->flags |= s.flags;
    c->in_bytes = 0;
    if (!s.used)
        return;
    uint8_t *in = realloc(c->in, s.used);
    if (!in)
        return;
    c->in = in;
    memcpy(in, buffer, s.used);
    c->in_bytes = s.used;
}

static struct event *next_event(const struct task *t, uint16_t call)
{
    if (S.dropping || S.record_count >= S.record_max) {
        S.dropped++;
        return NULL;
    }
    struct event *e = &S.records[S.record_count++];
    memset(e, 0, sizeof *e);
    e->blob_offset = S.blob_count;
    e->tgid = t->tgid;
    e->tid = t->tid;
    e->call = call;
    S.event_count++;
    return e;
}

struct event *emit_call(struct task *t, struct call *c, int64_t ret, int64_t exit_ns, uint16_t flags)
{
    const struct plan *p = c->nr < MAX_NR ? &S.plans[c->nr] : NULL;
    c->on = 0;
    if (!p || !p->call || p->filter == DROP || t->silent)
        return NULL;
    if (p->filter == KEEP_SHARED_MAP && (!(c->args[3] & 1) || (int32_t)c->args[4] < 0))
        return NULL;
    if (p->filter == KEEP_KNOWN_IOCTL) {
        uint32_t r = (uint32_t)c->args[1];
        /* FIONBIO, FIOASYNC, FIONREAD, TIOCOUTQ, FIOCLEX, FIONCLEX: what concerns sockets and descriptors. */
        if (r != 0x5421 && r != 0x5452 && r != 0x541B && r != 0x5411 && r != 0x5451 && r != 0x5450)
            return NULL;
    }
    struct event *e = next_event(t, p->call);
    if (!e)
        return NULL;
    e->enter_ns = c->enter_ns;
    e->exit_ns = exit_ns;
    e->ret = ret;
    memcpy(e->args, c->args, sizeof e->args);
    struct sink s = {S.blob + S.blob_count, 0, S.blob_max - S.blob_count, 0};
    if (c->in_bytes && s.max >= c->in_bytes) {
        memcpy(s.to, c->in, c->in_bytes);
        s.used = c->in_bytes;
    }
    c->in_bytes = 0;
    for (int i = 0; i < p->op_count; i++) {
        const struct op *o = &p->ops[i];
        if (o->when == AT_ANY_END || (o->when == AT_SUCCESS && ret >= 0 && !(flags & ENTERED_ONLY)))
            run_op(&s, t->tid, o, c->args, flags & ENTERED_ONLY ? -1 : ret);
    }
    e->flags = flags | c->flags | s.flags;
    e->blob_bytes = s.used;
    S.blob_count += s.used;
    return e;
}

struct event *emit_task(const struct task *t, uint16_t call, int64_t now, uint64_t a, uint64_t b, uint64_t c)
{
    struct event *e = next_event(t, call);
    if (!e)
        return NULL;
    e->enter_ns = e->exit_ns = now;
    e->args[0] = a;
    e->args[1] = b;
    e->args[2] = c;
    return e;
}

/* Only for the newest record. */
void add_section(struct event *e, uint8_t kind, uint8_t error, const void *data, uint32_t bytes)
{
    struct sink s = {S.blob + S.blob_count, 0, S.blob_max - S.blob_count, 0};
    put(&s, kind, error, data, bytes);
    e->blob_bytes += s.used;
    S.blob_count += s.used;
}
