/* The records of the calls that servers make all the time, written straight into the ring. What does not fit here goes
 * the way of the plans (calls.h), which gives the same record. */
#ifndef SOCKSCOPE_HOT_H
#define SOCKSCOPE_HOT_H

#include "calls.h"

#define PAYLOAD_AT sizeof(struct section)
#define IOV_PAYLOAD_AT (3 * sizeof(struct section)) /* behind IOV_TOTAL and its 8 bytes */
#define IOV_QUICK 4

INLINE struct small_record *hot_begin(const struct task *t, const struct call *c, u32 call, s64 ret, s64 exit_ns)
{
    struct small_record *r = small_begin();
    if (!r)
        return NULL;
    r->e.enter_ns = c->enter_ns;
    r->e.exit_ns = exit_ns;
    r->e.ret = ret;
    __builtin_memcpy(r->e.args, c->args, sizeof c->args);
    r->e.blob_offset = 0;
    r->e.tgid = t->tgid;
    r->e.tid = t->tid;
    r->e.call = call;
    return r;
}

INLINE void hot_plain(const struct task *t, const struct call *c, u32 call, s64 ret, s64 exit_ns, u32 flags)
{
    struct small_record *r = hot_begin(t, c, call, ret, exit_ns);
    if (!r)
        return;
    r->e.blob_bytes = 0;
    r->e.flags = flags;
    small_end(r);
}

/* One section of `bytes`. */
INLINE void hot_section(const struct task *t, const struct call *c, u32 call, s64 ret, s64 exit_ns, u32 flags, u32 kind,
                        u64 from, u64 bytes)
{
    struct small_record *r = hot_begin(t, c, call, ret, exit_ns);
    if (!r)
        return;
    u32 error = 0;
    if (bpf_probe_read_user(r->blob + PAYLOAD_AT, bytes, (void *)from)) {
        error = EFAULT;
        bytes = 0;
        flags |= COPY_FAILED;
    }
    section_at(r->blob, kind, error, bytes);
    r->e.blob_bytes = PAYLOAD_AT + bytes;
    r->e.flags = flags;
    small_end(r);
}

/* Returns 0: not for here. */
INLINE int hot_payload(const struct task *t, const struct call *c, u32 call, u32 quick, s64 ret, s64 exit_ns)
{
    u32 flags = c->flags;
    if (quick & QUICK_ADDRESS && c->args[4])
        return 0;
    if (ret < 0 && quick & QUICK_OUTPUT) {
        hot_plain(t, c, call, ret, exit_ns, flags);
        return 1;
    }
    u64 moved = ret >= 0 ? (u64)ret : c->args[2], take = moved;
    if (take > config.payload_bytes) {
        take = config.payload_bytes;
        flags |= TRUNCATED;
    }
    if (!c->args[1])
        take = 0;
    if (!take)
        hot_plain(t, c, call, ret, exit_ns, flags);
    else if (take <= SMALL_BLOB - PAYLOAD_AT)
        hot_section(t, c, call, ret, exit_ns, flags, SEC_PAYLOAD, c->args[1], take);
    else
        return 0;
    return 1;
}

/* epoll_wait's events. */
INLINE int hot_ready(const struct task *t, const struct call *c, u32 call, s64 ret, s64 exit_ns)
{
    u32 size = config.epoll_event_bytes;
    u64 bytes = ret > 0 ? (u64)ret * size : 0;
    if (!bytes)
        hot_plain(t, c, call, ret, exit_ns, c->flags);
    else if (bytes <= SMALL_BLOB - PAYLOAD_AT)
        hot_section(t, c, call, ret, exit_ns, c->flags, size == 12 ? SEC_EPOLL_EVENTS : SEC_EPOLL_EVENTS_ALIGNED,
                    c->args[1], bytes);
    else
        return 0;
    return 1;
}

INLINE int hot_vector(const struct task *t, const struct call *c, u32 call, u32 quick, s64 ret, s64 exit_ns)
{
    struct iov v[IOV_QUICK] = {0};
    u32 flags = c->flags, count = c->args[2], error = 0;
    if ((ret < 0 && quick & QUICK_OUTPUT) || !count || !c->args[1]) {
        hot_plain(t, c, call, ret, exit_ns, flags);
        return 1;
    }
    if (count > IOV_QUICK || bpf_probe_read_user(v, count * sizeof *v, (void *)c->args[1]))
        return 0;
    u64 total = v[0].len + v[1].len + v[2].len + v[3].len, from = v[0].base, take = v[0].len;
    for (u32 i = 1; i < IOV_QUICK; i++)
        if (!take) {
            from = v[i].base;
            take = v[i].len;
        }
    u64 moved = ret >= 0 ? (u64)ret : total;
    if (take > config.payload_bytes)
        take = config.payload_bytes;
    if (take > moved)
        take = moved;
    if (take < moved)
        flags |= TRUNCATED;
    if (take > SMALL_BLOB - IOV_PAYLOAD_AT)
        return 0;
    struct small_record *r = hot_begin(t, c, call, ret, exit_ns);
    if (!r)
        return 1;
    section_at(r->blob, SEC_IOV_TOTAL, 0, sizeof total);
    *(u64 *)(r->blob + sizeof(struct section)) = total;
    u32 used = 2 * sizeof(struct section);
    if (take && from) {
        if (bpf_probe_read_user(r->blob + IOV_PAYLOAD_AT, take, (void *)from)) {
            error = EFAULT;
            take = 0;
            flags |= COPY_FAILED;
        }
        section_at(r->blob + used, SEC_PAYLOAD, error, take);
        used = IOV_PAYLOAD_AT + take;
    }
    r->e.blob_bytes = used;
    r->e.flags = flags;
    small_end(r);
    return 1;
}

#endif
