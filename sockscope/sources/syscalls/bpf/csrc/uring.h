/* io_uring: what goes through a ring, told as the syscalls it stands for.
 *
 * A request is remembered when it is submitted and told when it completes. The kernel prepares it before
 * io_uring_submit_req, so the arguments lie in its command area, a struct for each operation. A completion names its
 * request, but for the further completions of a multishot request: those carry the program's user_data only. */
#ifndef SOCKSCOPE_URING_H
#define SOCKSCOPE_URING_H

#include "copy.h"
#include "net.h"

#define MATCHES(type) __builtin_preserve_type_info(*(type *)0, 2) /* BPF_TYPE_MATCHES */
#define GET(object, field)                                                                \
    ({                                                                                    \
        __typeof__((object)->field) got_ = 0;                                             \
        bpf_probe_read_kernel((void *)&got_, sizeof got_, (const void *)&(object)->field); \
        got_;                                                                             \
    })

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct io_ring_ctx;
/* include/linux/io_uring_types.h. flags: 32 bits before 6.9; the ones wanted are among the low ones. */
struct io_cmd_data {
    void *file;
};
struct io_cqe {
    u64 user_data;
    s32 fd;
};
struct io_kiocb {
    struct io_cmd_data cmd; /* since 6.0; what came before is not understood */
    u8 opcode;
    u32 flags;
    struct io_cqe cqe;
    struct io_ring_ctx *ctx;
    void *async_data;
};
struct io_uring_cqe {
    u64 user_data;
    s32 res;
    u32 flags;
};
struct signal_struct___ending {
    u32 flags;
};

/* io_uring/rw.c, net.c, openclose.c, splice.c, epoll.c */
struct io_rw {
    u64 addr;
    u32 len;
};
struct io_sr_msg {
    void *buf;
    s32 len;
    u32 msg_flags;
    u16 flags;
    void *addr; /* sendto's; until 6.12, then only a copy in io_async_msghdr */
    s32 addr_len;
};
struct __kernel_sockaddr_storage {
    u16 ss_family;
};
struct iov_iter {
    u8 iter_type;
    void *ubuf;
};
struct msghdr {
    struct iov_iter msg_iter;
};
struct io_async_msghdr {
    struct msghdr msg;
    struct __kernel_sockaddr_storage addr; /* the kernel's copy of an address */
};
struct io_accept {
    void *addr;
    s32 *addr_len;
    s32 flags, iou_flags;
    u32 file_slot;
};
struct io_connect {
    void *addr;
    s32 addr_len;
};
struct io_bind {
    s32 addr_len;
};
struct io_listen {
    s32 backlog;
};
struct io_shutdown {
    s32 how;
};
struct io_socket {
    s32 domain, type, protocol;
    u32 file_slot;
};
struct io_close {
    s32 fd;
    u32 file_slot;
};
struct open_how {
    u64 flags, mode;
};
struct filename {
    char *uptr;
};
struct io_open {
    s32 dfd;
    u32 file_slot;
    struct filename *filename;
    struct open_how how;
};
struct io_splice {
    u64 len;
    s32 splice_fd_in;
    u32 flags;
};
struct epoll_event {
    u32 events;
    u64 data;
};
struct io_epoll {
    s32 epfd, op, fd;
    struct epoll_event event;
};
struct io_epoll_wait {
    s32 maxevents;
    struct epoll_event *events;
};

#pragma clang attribute pop

/* Until some 6.1x the completion's values came as arguments: (ctx, req, user_data, res, flags, …). */
typedef void (*btf_trace_io_uring_complete___cqe)(void *, struct io_ring_ctx *, void *, struct io_uring_cqe *);

/* include/uapi/linux/io_uring.h */
enum { OP_READV = 1, OP_WRITEV, OP_READ_FIXED = 4, OP_WRITE_FIXED, OP_SENDMSG = 9, OP_RECVMSG, OP_ACCEPT = 13,
       OP_CONNECT = 16, OP_OPENAT = 18, OP_CLOSE = 19, OP_READ = 22, OP_WRITE, OP_SEND = 26, OP_RECV, OP_OPENAT2,
       OP_EPOLL_CTL, OP_SPLICE, OP_TEE = 33, OP_SHUTDOWN = 34, OP_SOCKET = 45, OP_SEND_ZC = 47, OP_SENDMSG_ZC,
       OP_READ_MULTISHOT, OP_BIND = 56, OP_LISTEN, OP_EPOLL_WAIT = 59 };
enum { SQE_FIXED_FILE = 1, SQE_BUFFER_SELECT = 1 << 5, SQE_CQE_SKIP = 1 << 6 }; /* also the request's flags */
enum { ACCEPT_MULTISHOT = 1, RECV_MULTISHOT = 2, CQE_MORE = 2 };
#define SPLICE_FD_IN_FIXED (1u << 31)
#define SIGNAL_GROUP_EXIT 4 /* include/linux/sched/signal.h */
#define ECANCELED 125

/* The syscalls' numbers lead to their copy plans. Source: arch/x86/entry/syscalls/syscall_64.tbl,
 * include/uapi/asm-generic/unistd.h. */
#if defined(__TARGET_ARCH_x86)
enum { NR_read = 0, NR_write = 1, NR_close = 3, NR_readv = 19, NR_writev = 20, NR_socket = 41, NR_connect = 42,
       NR_sendto = 44, NR_recvfrom = 45, NR_sendmsg = 46, NR_recvmsg = 47, NR_shutdown = 48, NR_bind = 49,
       NR_listen = 50, NR_epoll_ctl = 233, NR_openat = 257, NR_splice = 275, NR_tee = 276, NR_epoll_pwait = 281,
       NR_accept4 = 288, NR_NONE = MAX_NR };
#else
enum { NR_openat = 56, NR_close = 57, NR_read = 63, NR_write = 64, NR_readv = 65, NR_writev = 66, NR_splice = 76,
       NR_tee = 77, NR_epoll_ctl = 21, NR_epoll_pwait = 22, NR_socket = 198, NR_bind = 200, NR_listen = 201,
       NR_connect = 203, NR_sendto = 206, NR_recvfrom = 207, NR_shutdown = 210, NR_sendmsg = 211, NR_recvmsg = 212,
       NR_accept4 = 242, NR_NONE = MAX_NR };
#endif

/* A request in flight. */
struct request {
    s64 enter_ns;
    u64 args[6];
    u64 ring, user_data, mm;
    s32 tgid, tid;
    u16 nr;
    u8 opcode, multishot, selects;
    u8 section; /* what `saved` holds; 0: nothing */
    u16 saved_bytes;
    u8 saved[SOCKADDR_CAP];
};
struct many {
    u64 ring, user_data;
};

/* By the request's address, which is used again after its completion. */
struct {
    MAP_UINT(type, BPF_MAP_TYPE_HASH);
    MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
    MAP_UINT(max_entries, 65536);
    MAP_TYPE(key, u64);
    MAP_TYPE(value, struct request);
} uring_requests SEC(".maps");

/* Multishot requests → their key above. */
struct {
    MAP_UINT(type, BPF_MAP_TYPE_HASH);
    MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
    MAP_UINT(max_entries, 65536);
    MAP_TYPE(key, struct many);
    MAP_TYPE(value, u64);
} uring_multishots SEC(".maps");

/* Too large for the stack; one a program. */
enum { NEW_SUBMIT, NEW_FAILED, NEW_COUNT };
struct {
    MAP_UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    MAP_UINT(max_entries, NEW_COUNT);
    MAP_TYPE(key, u32);
    MAP_TYPE(value, struct request);
} uring_new SEC(".maps");
struct {
    MAP_UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    MAP_UINT(max_entries, 3);
    MAP_TYPE(key, u32);
    MAP_TYPE(value, struct work);
} uring_works SEC(".maps");
enum { WORK_SUBMIT, WORK_FAILED, WORK_COMPLETE };

/* Whose request it is: the thread's that runs, or, where the kernel's own thread empties the queue (SQPOLL), its
 * process's first. */
INLINE struct task *submitter(struct task_struct *me)
{
    struct task *t = current_target();
    if (t || !(me->flags & PF_IO_WORKER))
        return t;
    struct task_struct *leader = me->group_leader;
    t = leader ? bpf_task_storage_get(&tasks, leader, NULL, 0) : NULL;
    return t && t->live ? t : NULL;
}

INLINE void begin(struct request *r, struct task *t, struct task_struct *me)
{
    r->enter_ns = (s64)bpf_ktime_get_ns();
    r->tgid = t->tgid;
    r->tid = t->tid;
    r->mm = (u64)me->mm;
    r->multishot = r->selects = r->section = 0;
    r->saved_bytes = 0;
    r->nr = NR_NONE;
    for (int i = 0; i < 6; i++)
        r->args[i] = 0;
}

/* The program may use the memory of an address again once it is submitted. */
INLINE void save_address(struct request *r, const void *copy, u64 user, s32 bytes)
{
    u32 take = (u32)bytes < SOCKADDR_CAP ? (u32)bytes : SOCKADDR_CAP;
    if (bytes <= 0)
        return;
    OPAQUE(take);
    if (take > SOCKADDR_CAP)
        return;
    if (copy ? bpf_probe_read_kernel(r->saved, take, copy) : bpf_probe_read_user(r->saved, take, (void *)user))
        return;
    r->section = SEC_SOCKADDR;
    r->saved_bytes = take;
}

/* The kernel's copy of bind's address: by itself, or (6.11 and some after) in an io_async_msghdr, which begins with a
 * pointer; no family of internet or unix addresses is a multiple of 8 as that is. */
INLINE const void *address_copy(struct io_kiocb *req)
{
    struct io_async_msghdr *m = GET(req, async_data);
    u16 family = 0;
    if (!m || bpf_probe_read_kernel(&family, sizeof family, m))
        return NULL;
    if (family % 8)
        return m;
    return EXISTS(m->addr) ? &m->addr : NULL;
}

INLINE void set_args(struct request *r, u16 nr, u64 a, u64 b, u64 c, u64 d)
{
    r->nr = nr;
    r->args[0] = a;
    r->args[1] = b;
    r->args[2] = c;
    r->args[3] = d;
}

/* What the operation is as a syscall. 0: it stands for none, or is about files outside the descriptor table. */
INLINE int understand(struct request *r, struct io_kiocb *req)
{
    void *command = &req->cmd;
    u32 fd = (u32)GET(req, cqe.fd), slot = 0;
    switch (r->opcode) {
    case OP_READ:
    case OP_READ_FIXED:
    case OP_READ_MULTISHOT:
    case OP_WRITE:
    case OP_WRITE_FIXED:
    case OP_READV:
    case OP_WRITEV: {
        struct io_rw *c = command;
        u16 nr = r->opcode == OP_READV                                     ? NR_readv
                 : r->opcode == OP_WRITEV                                  ? NR_writev
                 : r->opcode == OP_WRITE || r->opcode == OP_WRITE_FIXED ? NR_write
                                                                           : NR_read;
        set_args(r, nr, fd, GET(c, addr), GET(c, len), 0);
        r->multishot = r->opcode == OP_READ_MULTISHOT;
        break;
    }
    case OP_SEND:
    case OP_SEND_ZC:
    case OP_RECV: {
        struct io_sr_msg *c = command;
        set_args(r, r->opcode == OP_RECV ? NR_recvfrom : NR_sendto, fd, (u64)GET(c, buf), (u32)GET(c, len),
                 GET(c, msg_flags));
        r->multishot = r->opcode == OP_RECV && GET(c, flags) & RECV_MULTISHOT;
        if (r->opcode != OP_RECV && EXISTS(c->addr_len) && GET(c, addr))
            save_address(r, NULL, (u64)GET(c, addr), GET(c, addr_len));
        break;
    }
    case OP_SENDMSG:
    case OP_SENDMSG_ZC:
    case OP_RECVMSG: {
        struct io_sr_msg *c = command;
        set_args(r, r->opcode == OP_RECVMSG ? NR_recvmsg : NR_sendmsg, fd, (u64)GET(c, buf), GET(c, msg_flags), 0);
        r->multishot = r->opcode == OP_RECVMSG && GET(c, flags) & RECV_MULTISHOT;
        break;
    }
    case OP_ACCEPT: {
        struct io_accept *c = command;
        set_args(r, NR_accept4, fd, (u64)GET(c, addr), (u64)GET(c, addr_len), (u32)GET(c, flags));
        r->multishot = EXISTS(c->iou_flags) ? GET(c, iou_flags) & ACCEPT_MULTISHOT : 1;
        slot = GET(c, file_slot);
        break;
    }
    case OP_CONNECT: {
        struct io_connect *c = command;
        set_args(r, NR_connect, fd, (u64)GET(c, addr), (u32)GET(c, addr_len), 0);
        save_address(r, NULL, r->args[1], (s32)r->args[2]);
        break;
    }
    case OP_BIND: {
        struct io_bind *c = command;
        set_args(r, NR_bind, fd, 0, (u32)GET(c, addr_len), 0);
        save_address(r, address_copy(req), 0, (s32)r->args[2]);
        break;
    }
    case OP_LISTEN:
        set_args(r, NR_listen, fd, (u32)GET((struct io_listen *)command, backlog), 0, 0);
        break;
    case OP_SHUTDOWN:
        set_args(r, NR_shutdown, fd, (u32)GET((struct io_shutdown *)command, how), 0, 0);
        break;
    case OP_SOCKET: {
        struct io_socket *c = command;
        set_args(r, NR_socket, (u32)GET(c, domain), (u32)GET(c, type), (u32)GET(c, protocol), 0);
        slot = GET(c, file_slot);
        break;
    }
    case OP_CLOSE: {
        struct io_close *c = command;
        set_args(r, NR_close, (u32)GET(c, fd), 0, 0, 0);
        slot = GET(c, file_slot);
        break;
    }
    case OP_OPENAT:
    case OP_OPENAT2: {
        struct io_open *c = command;
        struct filename *name = GET(c, filename);
        set_args(r, NR_openat, (u32)GET(c, dfd), (u64)GET(name, uptr), GET(c, how.flags), GET(c, how.mode));
        slot = GET(c, file_slot);
        break;
    }
    case OP_SPLICE:
    case OP_TEE: {
        struct io_splice *c = command;
        u32 flags = GET(c, flags), from = (u32)GET(c, splice_fd_in);
        slot = flags & SPLICE_FD_IN_FIXED;
        if (r->opcode == OP_TEE) {
            set_args(r, NR_tee, from, fd, GET(c, len), flags);
            break;
        }
        set_args(r, NR_splice, from, 0, fd, 0);
        r->args[4] = GET(c, len);
        r->args[5] = flags;
        break;
    }
    case OP_EPOLL_CTL: {
        struct io_epoll *c = command;
        u32 bytes = config.epoll_event_bytes;
        set_args(r, NR_epoll_ctl, (u32)GET(c, epfd), (u32)GET(c, op), (u32)GET(c, fd), 0);
        if (bytes != 16)
            bytes = 12;
        if (bpf_probe_read_kernel(r->saved, bytes, &c->event))
            break;
        r->section = bytes == 16 ? SEC_EPOLL_EVENTS_ALIGNED : SEC_EPOLL_EVENTS;
        r->saved_bytes = bytes;
        break;
    }
    case OP_EPOLL_WAIT: {
        struct io_epoll_wait *c = command;
        if (!EXISTS(c->maxevents))
            return 0;
        set_args(r, NR_epoll_pwait, fd, (u64)GET(c, events), (u32)GET(c, maxevents), 0);
        break;
    }
    default:
        return 0;
    }
    if (!slot)
        return 1;
    COUNT(uring_fixed);
    return 0;
}

/* The record of a request; `copies`: its memory is at hand. */
INLINE void tell_request(struct work *w, const struct request *r, s64 exit_ns, s64 ret, u32 flags, int copies)
{
    u32 nr = r->nr, bytes = r->saved_bytes;
    if (nr >= MAX_NR)
        return;
    w->used = 0;
    w->nr = nr;
    w->e.enter_ns = r->enter_ns;
    w->e.exit_ns = exit_ns;
    w->e.ret = ret;
    for (int i = 0; i < 6; i++)
        w->e.args[i] = r->args[i];
    w->e.tgid = r->tgid;
    w->e.tid = r->tid;
    w->e.call = config.plans[nr].call;
    w->e.flags = URING | flags;
    if (bytes && bytes <= SOCKADDR_CAP) {
        __builtin_memcpy(w->blob + sizeof(struct section), r->saved, SOCKADDR_CAP);
        section_at(w->blob, r->section, 0, bytes);
        w->used = sizeof(struct section) + bytes;
    }
    for (u32 i = 0; copies && i < OPS_MAX && i < config.plans[nr].op_count; i++) {
        u8 when = config.plans[nr].ops[i].when;
        /* `saved` is its address or event; another copy could be of something newer. */
        if (r->section && config.plans[nr].ops[i].section != SEC_PAYLOAD)
            continue;
        if (when == AT_ANY_END || (when == AT_SUCCESS && ret >= 0 && !(flags & ENTERED_ONLY)))
            run_op(w, i);
    }
    if (!copies && ret > 0)
        w->e.flags |= TRUNCATED;
    output(w);
}

INLINE int submitted(struct io_kiocb *req)
{
    u32 new_at = NEW_SUBMIT, work_at = WORK_SUBMIT;
    u64 key = (u64)req;
    struct task_struct *me = bpf_get_current_task_btf();
    struct task *t = submitter(me);
    struct request *r = bpf_map_lookup_elem(&uring_new, &new_at);
    /* Before 6.0 the tracepoint's arguments were others. */
    if (!t || !r || !EXISTS(req->cmd))
        return 0;
    begin(r, t, me);
    u32 flags = GET(req, flags);
    r->opcode = GET(req, opcode);
    int told = understand(r, req);
    if (told && flags & SQE_FIXED_FILE) {
        COUNT(uring_fixed);
        told = 0;
    }
    if (!told) {
        bpf_map_delete_elem(&uring_requests, &key); /* what an earlier one may have left */
        return 0;
    }
    r->ring = (u64)GET(req, ctx);
    r->user_data = GET(req, cqe.user_data);
    r->selects = !!(flags & SQE_BUFFER_SELECT);
    /* Success will not be told: then a close or shutdown has succeeded until its failure is heard of. */
    if (flags & SQE_CQE_SKIP) {
        struct work *w = bpf_map_lookup_elem(&uring_works, &work_at);
        int known = r->nr == NR_close || r->nr == NR_shutdown;
        if (w)
            tell_request(w, r, known ? r->enter_ns : -1, 0, known ? 0 : ENTERED_ONLY, 0);
    }
    if (bpf_map_update_elem(&uring_requests, &key, r, BPF_ANY)) {
        COUNT(uring_lost);
        return 0;
    }
    struct many many = {r->ring, r->user_data};
    if (r->multishot && bpf_map_update_elem(&uring_multishots, &many, &key, BPF_ANY))
        COUNT(uring_lost);
    return 0;
}

SEC("tp_btf/io_uring_submit_req") int on_uring_submit(u64 *ctx) { return submitted((void *)ctx[0]); }

/* Its name before 6.4. */
SEC("tp_btf/io_uring_submit_sqe") int on_uring_submit_sqe(u64 *ctx) { return submitted((void *)ctx[0]); }

/* struct io_uring_sqe, include/uapi/linux/io_uring.h */
struct sqe {
    u8 opcode, flags;
    u16 ioprio;
    s32 fd;
    u64 off, addr;
    u32 len, op_flags;
    u64 user_data;
    u16 group, personality;
    s32 file_index;
    u64 reserved[2];
};
_Static_assert(sizeof(struct sqe) == 64, "io_uring_sqe");

/* (sqe, req, error): it did not get as far as a request. Its completion follows and finds nothing. */
SEC("tp_btf/io_uring_req_failed") int on_uring_failed(u64 *ctx)
{
    u32 new_at = NEW_FAILED, work_at = WORK_FAILED;
    u64 key = ctx[1];
    struct task_struct *me = bpf_get_current_task_btf();
    struct task *t = submitter(me);
    struct request *r = bpf_map_lookup_elem(&uring_new, &new_at);
    struct work *w = bpf_map_lookup_elem(&uring_works, &work_at);
    struct sqe q;
    if (!t || !r || !w || !EXISTS(((struct io_kiocb *)0)->cmd) ||
        bpf_probe_read_kernel(&q, sizeof q, (const void *)ctx[0]))
        return 0;
    begin(r, t, me);
    bpf_map_delete_elem(&uring_requests, &key);
    u32 fd = (u32)q.fd;
    switch (q.opcode) {
    case OP_READ:
    case OP_READ_FIXED:
    case OP_READ_MULTISHOT:
        set_args(r, NR_read, fd, q.addr, q.len, 0);
        break;
    case OP_WRITE:
    case OP_WRITE_FIXED:
        set_args(r, NR_write, fd, q.addr, q.len, 0);
        break;
    case OP_READV:
        set_args(r, NR_readv, fd, q.addr, q.len, 0);
        break;
    case OP_WRITEV:
        set_args(r, NR_writev, fd, q.addr, q.len, 0);
        break;
    case OP_SEND:
    case OP_SEND_ZC:
        set_args(r, NR_sendto, fd, q.addr, q.len, q.op_flags);
        break;
    case OP_RECV:
        set_args(r, NR_recvfrom, fd, q.addr, q.len, q.op_flags);
        break;
    case OP_SENDMSG:
    case OP_SENDMSG_ZC:
        set_args(r, NR_sendmsg, fd, q.addr, q.op_flags, 0);
        break;
    case OP_RECVMSG:
        set_args(r, NR_recvmsg, fd, q.addr, q.op_flags, 0);
        break;
    case OP_ACCEPT:
        set_args(r, NR_accept4, fd, q.addr, q.off, q.op_flags);
        break;
    case OP_CONNECT:
        set_args(r, NR_connect, fd, q.addr, (u32)q.off, 0);
        break;
    case OP_BIND:
        set_args(r, NR_bind, fd, q.addr, (u32)q.off, 0);
        break;
    case OP_LISTEN:
        set_args(r, NR_listen, fd, q.len, 0, 0);
        break;
    case OP_SHUTDOWN:
        set_args(r, NR_shutdown, fd, q.len, 0, 0);
        break;
    case OP_SOCKET:
        set_args(r, NR_socket, fd, (u32)q.off, q.len, 0);
        break;
    case OP_CLOSE:
        set_args(r, NR_close, fd, 0, 0, 0);
        break;
    default:
        return 0;
    }
    if (q.flags & SQE_FIXED_FILE)
        COUNT(uring_fixed);
    else
        tell_request(w, r, r->enter_ns, (s32)ctx[2], 0, 0);
    return 0;
}

/* The address of the buffer that the kernel chose among the provided ones. 0: it no longer knows. */
INLINE u64 chosen_buffer(u16 nr, struct io_kiocb *req)
{
    if (nr == NR_read)
        return GET((struct io_rw *)&req->cmd, addr);
    if (nr != NR_recvfrom)
        return 0;
    u64 buffer = (u64)GET((struct io_sr_msg *)&req->cmd, buf);
    struct io_async_msghdr *m = GET(req, async_data);
    /* Newer kernels leave it in the iterator only (ITER_UBUF is 0 since 6.7, when they began to use it here). */
    if (!buffer && m && EXISTS(m->msg.msg_iter.ubuf) && !GET(m, msg.msg_iter.iter_type))
        buffer = (u64)GET(m, msg.msg_iter.ubuf);
    return buffer;
}

SEC("tp_btf/io_uring_complete") int on_uring_complete(u64 *ctx)
{
    u64 ring = ctx[0], key = ctx[1], user_data;
    s64 res, now = (s64)bpf_ktime_get_ns();
    u32 flags, work_at = WORK_COMPLETE;
    if (MATCHES(btf_trace_io_uring_complete___cqe)) {
        struct io_uring_cqe *cqe = (void *)ctx[2];
        user_data = GET(cqe, user_data);
        res = GET(cqe, res);
        flags = GET(cqe, flags);
    } else {
        user_data = ctx[2];
        res = (s32)ctx[3];
        flags = (u32)ctx[4];
    }
    struct many many = {ring, user_data};
    if (!key) {
        u64 *found = bpf_map_lookup_elem(&uring_multishots, &many);
        if (!found)
            return 0;
        key = *found;
    }
    struct request *r = bpf_map_lookup_elem(&uring_requests, &key);
    /* A request whose completion is not told leaves its entry behind. */
    if (!r || r->ring != ring || r->user_data != user_data)
        return 0;
    struct task_struct *me = bpf_get_current_task_btf();
    struct work *w = bpf_map_lookup_elem(&uring_works, &work_at);
    /* A kernel thread clears away what a closed ring left: nobody is told. */
    if (w && !(me->flags & PF_KTHREAD)) {
        int copies = (u64)me->mm == r->mm;
        if (r->selects && r->nr != NR_recvmsg) {
            r->args[1] = res > 0 ? chosen_buffer(r->nr, (void *)key) : 0;
            copies = copies && r->args[1];
        } else if (r->selects) /* a header of io_uring's own stands before the message */
            copies = 0;
        /* What an ending process had under way is cancelled: it never hears of that. */
        struct signal_struct___ending *signal = (void *)me->signal;
        if (res == -ECANCELED && GET(signal, flags) & SIGNAL_GROUP_EXIT)
            tell_request(w, r, -1, 0, ENTERED_ONLY, copies);
        else
            tell_request(w, r, now, res, 0, copies);
    }
    if (flags & CQE_MORE && r->multishot) {
        /* As if called again at once. */
        r->enter_ns = now;
        return 0;
    }
    if (r->multishot)
        bpf_map_delete_elem(&uring_multishots, &many);
    bpf_map_delete_elem(&uring_requests, &key);
    return 0;
}

#endif
