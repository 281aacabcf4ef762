/* io_uring as the kernel has it: its structs, as far as they are read, and its numbers. */
#ifndef SOCKSCOPE_URING_KERNEL_H
#define SOCKSCOPE_URING_KERNEL_H

#include "net.h"

#define MATCHES(type) __builtin_preserve_type_info(*(type *)0, 2) /* BPF_TYPE_MATCHES */
/* Before 6.0 requests were laid out, and the tracepoints' arguments were, in other ways: those kernels run programs that
 * do nothing. */
#define UNDERSTOOD EXISTS(((struct io_kiocb *)0)->cmd)
#define GET(object, field)                                                                \
    ({                                                                                    \
        __typeof__((object)->field) got_ = 0;                                             \
        bpf_probe_read_kernel((void *)&got_, sizeof got_, (const void *)&(object)->field); \
        got_;                                                                             \
    })

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
    u64 addr3, reserved;
};
_Static_assert(sizeof(struct sqe) == 64, "io_uring_sqe");

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* include/linux/io_uring_types.h. flags: 32 bits before 6.9; the ones wanted are among the low ones. */
struct inode {
    u16 i_mode;
};
struct file___inode {
    struct inode *f_inode;
};
struct io_cmd_data {
    struct file___inode *file;
};
struct io_cqe {
    u64 user_data;
    s32 fd;
};
struct fdtable {
    u32 max_fds;
    struct file___inode **fd;
};
struct files_struct {
    struct fdtable *fdt;
};
struct task_struct___files {
    struct files_struct *files;
};
struct io_uring_task {
    struct task_struct *task;
};
struct io_kiocb {
    struct io_cmd_data cmd; /* since 6.0; what came before is not understood */
    u8 opcode;
    u32 flags;
    struct io_cqe cqe;
    struct io_ring_ctx *ctx;
    struct io_uring_task *tctx; /* since 6.14; before, */
    struct task_struct *task;
    void *async_data;
};
struct io_submit_link {
    struct io_kiocb *head, *last;
};
struct io_submit_state {
    struct io_submit_link link;
};
struct io_ring_ctx {
    struct io_submit_state submit_state;
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
struct io_uring_cmd {
    const struct sqe___entry *sqe; /* since 6.6 */
    u32 cmd_op;
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
       OP_EPOLL_CTL, OP_SPLICE, OP_TEE = 33, OP_SHUTDOWN = 34, OP_SOCKET = 45, OP_URING_CMD, OP_SEND_ZC = 47, OP_SENDMSG_ZC,
       OP_READ_MULTISHOT, OP_FIXED_FD_INSTALL = 54, OP_BIND = 56, OP_LISTEN, OP_EPOLL_WAIT = 59 };
enum { SQE_FIXED_FILE = 1, SQE_HARDLINK = 1 << 3, SQE_BUFFER_SELECT = 1 << 5, SQE_CQE_SKIP = 1 << 6 };
enum { REQ_FAIL = 1 << 8 }; /* of a request's flags; the ones above are among them */
enum { ACCEPT_MULTISHOT = 1, RECV_MULTISHOT = 2, CQE_MORE = 2 };
enum { SOCKET_URING_OP_SETSOCKOPT = 3 };
#define SPLICE_FD_IN_FIXED (1u << 31)
#define SIGNAL_GROUP_EXIT 4 /* include/linux/sched/signal.h */
#define ECANCELED 125
#define S_IFMT 0170000
#define S_IFSOCK 0140000

/* The syscalls' numbers lead to their copy plans. Source: arch/x86/entry/syscalls/syscall_64.tbl,
 * include/uapi/asm-generic/unistd.h. */
#if defined(__TARGET_ARCH_x86)
enum { NR_read = 0, NR_write = 1, NR_close = 3, NR_readv = 19, NR_writev = 20, NR_socket = 41, NR_connect = 42,
       NR_sendto = 44, NR_recvfrom = 45, NR_sendmsg = 46, NR_recvmsg = 47, NR_shutdown = 48, NR_bind = 49,
       NR_listen = 50, NR_setsockopt = 54, NR_epoll_ctl = 233, NR_openat = 257, NR_splice = 275, NR_tee = 276, NR_epoll_pwait = 281,
       NR_accept4 = 288, NR_NONE = MAX_NR };
#else
enum { NR_openat = 56, NR_close = 57, NR_read = 63, NR_write = 64, NR_readv = 65, NR_writev = 66, NR_splice = 76,
       NR_tee = 77, NR_epoll_ctl = 21, NR_epoll_pwait = 22, NR_socket = 198, NR_bind = 200, NR_listen = 201,
       NR_connect = 203, NR_sendto = 206, NR_recvfrom = 207, NR_setsockopt = 208, NR_shutdown = 210, NR_sendmsg = 211, NR_recvmsg = 212,
       NR_accept4 = 242, NR_NONE = MAX_NR };
#endif

#endif
