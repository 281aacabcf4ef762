/* What a request asks for, as a syscall: from where the kernel prepared it, or, where it refused to, from its entry. */
#ifndef SOCKSCOPE_URING_CALLS_H
#define SOCKSCOPE_URING_CALLS_H

#include "uring_request.h"

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

enum { NO_CALL, A_CALL, OUTSIDE };
/* What the operation is as a syscall. OUTSIDE: it is about files outside the descriptor table. */
INLINE int understand(struct request *r, struct io_kiocb *req, u32 fd)
{
    void *command = &req->cmd;
    u32 slot = 0;
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
        if (!EXISTS(c->addr_len))
            return 0;
        set_args(r, NR_bind, fd, 0, (u32)GET(c, addr_len), 0);
        save_address(r, address_copy(req), 0, (s32)r->args[2]);
        break;
    }
    case OP_LISTEN: {
        struct io_listen *c = command;
        if (!EXISTS(c->backlog))
            return 0;
        set_args(r, NR_listen, fd, (u32)GET(c, backlog), 0, 0);
        break;
    }
    case OP_SHUTDOWN:
        set_args(r, NR_shutdown, fd, (u32)GET((struct io_shutdown *)command, how), 0, 0);
        break;
    case OP_SOCKET: {
        struct io_socket *c = command;
        set_args(r, NR_socket, (u32)GET(c, domain), (u32)GET(c, type), (u32)GET(c, protocol), 0);
        slot = GET(c, file_slot);
        break;
    }
    case OP_URING_CMD: {
        struct io_uring_cmd *c = command;
        struct sqe q;
        if (!EXISTS(c->sqe) || GET(c, cmd_op) != SOCKET_URING_OP_SETSOCKOPT ||
            bpf_probe_read_kernel(&q, sizeof q, GET(c, sqe)))
            return 0;
        /* `addr` holds the level and the option's name. */
        set_args(r, NR_setsockopt, fd, (u32)q.addr, q.addr >> 32, q.addr3);
        r->args[4] = (u32)q.file_index;
        r->of_socket = 1;
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
    case OP_FIXED_FD_INSTALL: /* makes a descriptor of one that was never seen */
        slot = 1;
        break;
    default:
        return 0;
    }
    return slot ? OUTSIDE : A_CALL;
}

/* The same of an entry that became no request. */
INLINE int understand_entry(struct request *r, const struct sqe *q)
{
    u32 fd = (u32)q->fd;
    switch (q->opcode) {
    case OP_READ:
    case OP_READ_FIXED:
    case OP_READ_MULTISHOT:
        set_args(r, NR_read, fd, q->addr, q->len, 0);
        break;
    case OP_WRITE:
    case OP_WRITE_FIXED:
        set_args(r, NR_write, fd, q->addr, q->len, 0);
        break;
    case OP_READV:
        set_args(r, NR_readv, fd, q->addr, q->len, 0);
        break;
    case OP_WRITEV:
        set_args(r, NR_writev, fd, q->addr, q->len, 0);
        break;
    case OP_SEND:
    case OP_SEND_ZC:
        set_args(r, NR_sendto, fd, q->addr, q->len, q->op_flags);
        break;
    case OP_RECV:
        set_args(r, NR_recvfrom, fd, q->addr, q->len, q->op_flags);
        break;
    case OP_SENDMSG:
    case OP_SENDMSG_ZC:
        set_args(r, NR_sendmsg, fd, q->addr, q->op_flags, 0);
        break;
    case OP_RECVMSG:
        set_args(r, NR_recvmsg, fd, q->addr, q->op_flags, 0);
        break;
    case OP_ACCEPT:
        set_args(r, NR_accept4, fd, q->addr, q->off, q->op_flags);
        break;
    case OP_CONNECT:
        set_args(r, NR_connect, fd, q->addr, (u32)q->off, 0);
        break;
    case OP_BIND:
        set_args(r, NR_bind, fd, q->addr, (u32)q->off, 0);
        break;
    case OP_LISTEN:
        set_args(r, NR_listen, fd, q->len, 0, 0);
        break;
    case OP_SHUTDOWN:
        set_args(r, NR_shutdown, fd, q->len, 0, 0);
        break;
    case OP_SOCKET:
        set_args(r, NR_socket, fd, (u32)q->off, q->len, 0);
        break;
    case OP_CLOSE:
        set_args(r, NR_close, fd, 0, 0, 0);
        break;
    default:
        return 0;
    }
    return 1;
}

#define LOOK_AT_ONCE 512
#define LOOKS 8
_Static_assert(sizeof(((struct work *)0)->list) >= LOOK_AT_ONCE * 8, "room for the pointers");
/* Where in an array of pointers one is. -1: nowhere, or beyond LOOKS * LOOK_AT_ONCE. */
GLOBAL int position_of(struct work *w, u64 file, u64 array, u32 count)
{
    if (!w)
        return -1;
    u64 *found = (void *)w->list;
    for (u32 first = 0; first < LOOKS * LOOK_AT_ONCE; first += LOOK_AT_ONCE) {
        u32 left = first < count ? count - first : 0;
        u32 bytes = left < LOOK_AT_ONCE ? left * 8 : LOOK_AT_ONCE * 8;
        if (bytes > LOOK_AT_ONCE * 8 || bpf_probe_read_kernel(found, bytes, (void *)(array + first * 8)))
            return -1;
        for (u32 i = 0; i < LOOK_AT_ONCE; i++)
            if (found[i] == file)
                return i < left ? (int)(first + i) : -1;
        if (left <= LOOK_AT_ONCE)
            return -1;
    }
    return -1;
}

/* The (lowest) descriptor that names a file: its request forgets the one it was given. */
INLINE int descriptor_of(struct work *w, struct task_struct *me, u64 file)
{
    struct files_struct *files = GET((struct task_struct___files *)(void *)me, files);
    struct fdtable *table = files ? GET(files, fdt) : NULL;
    return table ? position_of(w, file, (u64)GET(table, fd), GET(table, max_fds)) : -1;
}

INLINE int is_of_socket(struct io_kiocb *req)
{
    struct file___inode *file = GET(req, cmd.file);
    struct inode *inode = file ? GET(file, f_inode) : NULL;
    return inode && (GET(inode, i_mode) & S_IFMT) == S_IFSOCK;
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

#endif
