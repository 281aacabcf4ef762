/* What is copied from a caller's memory, by the copy plans. The C of ptrace/csrc/copy.c is the same, but for what is
 * said here: a copy that fails holds nothing (never a part), pages that are not in memory count as failed, vectors and
 * message arrays are read up to LIST_MAX elements, fd sets up to FDSET_BITS. */
#ifndef SOCKSCOPE_COPY_H
#define SOCKSCOPE_COPY_H

#include "state.h"

#define READ_MAX 8192 /* the largest single copy: POLLFD_CAP, EPOLL_CAP, PAYLOAD_MAX */
#define LIST_MAX 256
#define SOCKADDR_CAP 128
#define CONTROL_CAP 4096
#define PATH_CAP 4096
#define FDSET_BITS 4096
#define MMSG_BYTES 64
#define EFAULT 14

struct iov {
    u64 base, len;
};
struct msg {
    u64 name;
    u32 namelen, pad;
    u64 iov, iovlen, control, controllen;
    u32 flags, pad2;
};

/* A record in the making. A copy begins within LARGE_BLOB and may reach beyond it: then it is taken back. */
struct work {
    u32 used, nr;
    struct event e;
    u8 blob[LARGE_BLOB + READ_MAX + 16];
    u64 total; /* of list's lengths */
    struct iov list[LIST_MAX];
};

/* One a program and CPU: the kernel refuses to run a program within itself, and counts that. */
enum { WORK_SYS_EXIT, WORK_SYS_ENTER, WORK_EXIT, WORK_EXEC, WORK_SEED, WORK_COUNT };
struct {
    MAP_UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    MAP_UINT(max_entries, WORK_COUNT);
    MAP_TYPE(key, u32);
    MAP_TYPE(value, struct work);
} works SEC(".maps");

INLINE struct work *work_of(u32 program) { return bpf_map_lookup_elem(&works, &program); }

/* Room for a section of `bytes` at most READ_MAX; where its data goes, or NULL: flagged. */
INLINE u8 *room(struct work *w, u32 bytes)
{
    u32 used = w->used;
    if (used > LARGE_BLOB - sizeof(struct section) || bytes > READ_MAX ||
        used + sizeof(struct section) + bytes > LARGE_BLOB) {
        w->e.flags |= TRUNCATED;
        return NULL;
    }
    return w->blob + used + sizeof(struct section);
}

INLINE void put_header(struct work *w, u8 *data, u32 kind, u32 error, u32 bytes)
{
    section_at(data - sizeof(struct section), kind, error, bytes);
    w->used += sizeof(struct section) + bytes;
    if (error)
        w->e.flags |= COPY_FAILED;
}

INLINE void put_failed(struct work *w, u32 kind)
{
    u8 *data = room(w, 0);
    if (data)
        put_header(w, data, kind, EFAULT, 0);
}

/* The kernel allows 8 nested functions, so what is small and deep is inlined. */
INLINE void fetch_here(struct work *w, u32 kind, u64 from, u32 bytes)
{
    u8 *data = room(w, bytes);
    if (!data)
        return;
    long error = bpf_probe_read_user(data, bytes, (void *)from);
    put_header(w, data, kind, error ? EFAULT : 0, error ? 0 : bytes);
}

GLOBAL int fetch(struct work *w, u32 kind, u64 from, u32 bytes)
{
    if (w && bytes <= READ_MAX)
        fetch_here(w, kind, from, bytes);
    return 0;
}

GLOBAL int fetch_payload(struct work *w, u64 from, u64 bytes, u64 moved)
{
    u64 take = bytes < moved ? bytes : moved;
    if (!w)
        return 0;
    if (take > config.payload_bytes)
        take = config.payload_bytes;
    if (take < moved)
        w->e.flags |= TRUNCATED;
    if (take && take <= READ_MAX && from)
        fetch_here(w, SEC_PAYLOAD, from, take);
    return 0;
}

/* Each loop in a function of its own, so that the verifier does not follow one from every end of the other. */
GLOBAL int sum_list(struct work *w, u64 count)
{
    u64 total = 0;
    if (!w)
        return 0;
    for (u32 i = 0; i < LIST_MAX && i < count; i++)
        total += w->list[i].len;
    w->total = total;
    return 0;
}

/* The first that holds any; LIST_MAX: none. */
GLOBAL int first_of_list(struct work *w, u64 count)
{
    if (w)
        for (u32 i = 0; i < LIST_MAX && i < count; i++)
            if (w->list[i].len)
                return i;
    return LIST_MAX;
}

/* IOV_TOTAL and the first bytes of the first iovec that holds any. `ret` < 0: what was offered. */
GLOBAL int fetch_iov(struct work *w, u64 iov, u64 count, s64 ret)
{
    u64 total = 0;
    if (!w || !count || !iov)
        return 0;
    if (count > LIST_MAX) {
        count = LIST_MAX;
        w->e.flags |= TRUNCATED;
    }
    if (bpf_probe_read_user(w->list, count * sizeof *w->list, (void *)iov)) {
        put_failed(w, SEC_IOV_TOTAL);
        return 0;
    }
    sum_list(w, count);
    total = w->total;
    u32 first = first_of_list(w, count);
    u8 *data = room(w, sizeof total);
    if (data) {
        *(u64 *)data = total;
        put_header(w, data, SEC_IOV_TOTAL, 0, sizeof total);
    }
    if (first < LIST_MAX)
        fetch_payload(w, w->list[first].base, w->list[first].len, ret >= 0 ? (u64)ret : total);
    return 0;
}

/* `output`: of a call that receives; of a failed one nothing is there. */
GLOBAL int fetch_msg(struct work *w, u64 at, s64 ret, u32 output)
{
    struct msg m;
    if (!w)
        return 0;
    if (bpf_probe_read_user(&m, sizeof m, (void *)at)) {
        put_failed(w, SEC_IOV_TOTAL);
        return 0;
    }
    if (output && ret < 0)
        return 0;
    if (m.name && m.namelen)
        fetch(w, SEC_SOCKADDR, m.name, m.namelen < SOCKADDR_CAP ? m.namelen : SOCKADDR_CAP);
    fetch_iov(w, m.iov, m.iovlen, ret);
    if (m.control && m.controllen) {
        if (m.controllen > CONTROL_CAP) {
            w->e.flags |= TRUNCATED;
            m.controllen = CONTROL_CAP;
        }
        fetch(w, SEC_CONTROL, m.control, m.controllen);
    }
    if (output) {
        u8 *data = room(w, 4);
        if (data) {
            *(u32 *)data = m.flags;
            put_header(w, data, SEC_MSG_FLAGS, 0, 4);
        }
    }
    return 0;
}

/* The lengths; returns the first one's, or negative: no more to be read. Source: sendmmsg(2), recvmmsg(2): struct
 * mmsghdr is a msghdr and a u4 msg_len. */
GLOBAL int fetch_lens(struct work *w, u64 at, u32 count)
{
    if (!w)
        return -1;
    if (count > LIST_MAX) {
        count = LIST_MAX;
        w->e.flags |= TRUNCATED;
    }
    u8 *lens = room(w, LIST_MAX * 4);
    if (!lens)
        return -1;
    for (u32 i = 0; i < LIST_MAX && i < count; i++)
        if (bpf_probe_read_user(lens + 4 * i, 4, (void *)(at + i * MMSG_BYTES + sizeof(struct msg)))) {
            put_header(w, lens, SEC_MMSG_LENS, EFAULT, 0);
            return -1;
        }
    put_header(w, lens, SEC_MMSG_LENS, 0, count * 4);
    return *(s32 *)lens;
}

GLOBAL int fetch_path(struct work *w, u64 at)
{
    if (!w)
        return 0;
    u8 *data = room(w, PATH_CAP);
    if (!data)
        return 0;
    long got = bpf_probe_read_user_str(data, PATH_CAP, (void *)at);
    put_header(w, data, SEC_PATH, got < 0 ? EFAULT : 0, got > 0 ? (got - 1) & (PATH_CAP - 1) : 0);
    return 0;
}

GLOBAL int fetch_fdsets(struct work *w, u32 kind)
{
    if (!w || (s64)w->e.args[0] <= 0)
        return 0;
    u64 bits = w->e.args[0];
    if (bits > FDSET_BITS) {
        bits = FDSET_BITS;
        w->e.flags |= TRUNCATED;
    }
    u32 bytes = (bits + 63) / 64 * 8;
    u8 *data = room(w, 3 * FDSET_BITS / 8);
    if (!data || bytes > FDSET_BITS / 8)
        return 0;
    for (u32 i = 0; i < 3; i++) {
        u64 from = w->e.args[1 + i];
        /* A NULL set is zeros: a read that fails leaves them. */
        if (bpf_probe_read_user(data + i * bytes, bytes, (void *)from) && from) {
            put_header(w, data, kind, EFAULT, 0);
            return 0;
        }
    }
    put_header(w, data, kind, 0, 3 * bytes);
    return 0;
}

/* One copy of the plan of w->nr. */
GLOBAL int run_op(struct work *w, u32 index)
{
    if (!w)
        return 0;
    u32 nr = w->nr;
    if (nr >= MAX_NR || index >= OPS_MAX)
        return 0;
    const volatile struct op *o = &config.plans[nr].ops[index];
    u32 ptr_at = o->ptr, len_at = o->len, unit = o->unit, cap = o->cap, kind = o->section;
    if (ptr_at >= 6 || len_at >= 6)
        return 0;
    u64 ptr = w->e.args[ptr_at], len = w->e.args[len_at], bytes = 0;
    s64 ret = w->e.flags & ENTERED_ONLY ? -1 : w->e.ret;
    u32 word = 0;
    if (o->how == HOW_FDSETS)
        return fetch_fdsets(w, kind);
    if (!ptr)
        return 0;
    switch (o->how) {
    case HOW_FIXED:
        bytes = unit;
        break;
    case HOW_LEN_ARG:
        bytes = (u32)len;
        break;
    case HOW_LEN_PTR:
        if (!len || bpf_probe_read_user(&word, sizeof word, (void *)len))
            return 0;
        bytes = word;
        break;
    case HOW_RET:
        bytes = ret > 0 ? (u64)ret * unit : 0;
        break;
    case HOW_COUNT:
        bytes = (u64)(u32)len * unit;
        break;
    case HOW_PAYLOAD:
        return fetch_payload(w, ptr, ~0ULL, ret >= 0 ? (u64)ret : len);
    case HOW_IOV:
        return fetch_iov(w, ptr, (u32)len, ret);
    case HOW_MSG:
        return fetch_msg(w, ptr, ret, unit);
    case HOW_MMSG:
        if (ret > 0)
            ret = fetch_lens(w, ptr, ret);
        else if (unit)
            return 0;
        else
            ret = -1;
        return ret < 0 && unit ? 0 : fetch_msg(w, ptr, ret, unit);
    case HOW_PATH:
        return fetch_path(w, ptr);
    }
    if (bytes > cap) {
        bytes = unit > 1 ? cap / unit * unit : cap;
        w->e.flags |= TRUNCATED;
    }
    if (bytes)
        fetch(w, kind, ptr, bytes);
    return 0;
}

/* Into the smallest ring that holds it. */
GLOBAL int output(struct work *w)
{
    if (!w)
        return 0;
    w->e.blob_bytes = w->used;
    w->e.blob_offset = 0;
    if (w->used <= SMALL_BLOB) {
        if (bpf_ringbuf_output(&small, &w->e, sizeof(struct small_record), BPF_RB_NO_WAKEUP))
            COUNT(dropped[RING_SMALL]);
    } else if (w->used <= MEDIUM_BLOB) {
        if (bpf_ringbuf_output(&medium, &w->e, sizeof(struct medium_record), BPF_RB_NO_WAKEUP))
            COUNT(dropped[RING_MEDIUM]);
    } else if (bpf_ringbuf_output(&large, &w->e, sizeof(struct large_record), BPF_RB_NO_WAKEUP))
        COUNT(dropped[RING_LARGE]);
    return 0;
}

#endif
