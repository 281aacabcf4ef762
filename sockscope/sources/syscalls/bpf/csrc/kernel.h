/* The kernel as far as the programs touch it: types, helpers, and the fields of its structs.
 *
 * Self-declared, so that no kernel header is needed to build; libbpf moves each field access to where the running
 * kernel has it (CO-RE). Source: include/uapi/linux/bpf.h (helper numbers are ABI), include/linux/sched.h. */
#ifndef SOCKSCOPE_KERNEL_H
#define SOCKSCOPE_KERNEL_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed int s32;
typedef signed long long s64;
_Static_assert(sizeof(u64) == 8 && sizeof(void *) == 8, "bpfel");

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
/* A function that the verifier looks at once, however often it is called. Its pointers may be NULL to the verifier. */
#define GLOBAL __attribute__((noinline))
#define NULL ((void *)0)
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
/* The compiler may not reason about x beyond this point: keeps a bounds check beside its use. */
#define OPAQUE(x) asm volatile("" : "+r"(x))

#define HELPER(number, result, name, ...) \
    static result (*const name)(__VA_ARGS__) __attribute__((unused)) = (result(*const)(__VA_ARGS__))number

struct task_struct;
HELPER(1, void *, bpf_map_lookup_elem, void *map, const void *key);
HELPER(2, long, bpf_map_update_elem, void *map, const void *key, const void *value, u64 flags);
HELPER(3, long, bpf_map_delete_elem, void *map, const void *key);
HELPER(5, u64, bpf_ktime_get_ns, void);
HELPER(46, u64, bpf_get_socket_cookie, void *sock);
HELPER(112, long, bpf_probe_read_user, void *to, u32 bytes, const void *from);
HELPER(113, long, bpf_probe_read_kernel, void *to, u32 bytes, const void *from);
HELPER(114, long, bpf_probe_read_user_str, void *to, u32 bytes, const void *from);
HELPER(115, long, bpf_probe_read_kernel_str, void *to, u32 bytes, const void *from);
HELPER(127, long, bpf_seq_write, void *seq, const void *data, u32 bytes);
HELPER(130, long, bpf_ringbuf_output, void *ring, void *data, u64 bytes, u64 flags);
HELPER(131, void *, bpf_ringbuf_reserve, void *ring, u64 bytes, u64 flags);
HELPER(132, void, bpf_ringbuf_submit, void *data, u64 flags);
HELPER(156, void *, bpf_task_storage_get, void *map, struct task_struct *task, void *value, u64 flags);
HELPER(158, struct task_struct *, bpf_get_current_task_btf, void);
enum { BPF_ANY = 0, BPF_NOEXIST = 1, BPF_LOCAL_STORAGE_GET_F_CREATE = 1, BPF_RB_NO_WAKEUP = 1 };
enum {
    BPF_MAP_TYPE_HASH = 1,
    BPF_MAP_TYPE_ARRAY = 2,
    BPF_MAP_TYPE_PERCPU_ARRAY = 6,
    BPF_MAP_TYPE_LRU_HASH = 9,
    BPF_MAP_TYPE_RINGBUF = 27,
    BPF_MAP_TYPE_TASK_STORAGE = 29,
    BPF_F_NO_PREALLOC = 1,
};

/* libbpf reads a map's definition from the types of such a struct's members. */
#define MAP_UINT(name, value) int(*name)[value]
#define MAP_TYPE(name, value) value *name

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct pt_regs {
#if defined(__TARGET_ARCH_x86)
    unsigned long di, si, dx, r10, r8, r9, ax, orig_ax;
#elif defined(__TARGET_ARCH_arm64)
    unsigned long regs[31], orig_x0;
    s32 syscallno;
#else
#error "sockscope traces x86_64 and aarch64"
#endif
};

struct thread_info {
    unsigned long flags;
#if defined(__TARGET_ARCH_x86)
    u32 status;
#endif
};
struct upid {
    s32 nr;
};
struct pid {
    u32 level;
    struct upid numbers[1];
};
typedef struct {
    s32 counter;
} atomic_t;
struct signal_struct {
    atomic_t live;
    s32 group_exit_code;
    u32 flags;
    struct pid *pids[4];
};
struct ns_common {
    u32 inum;
};
struct net {
    struct ns_common ns;
};
struct nsproxy {
    struct net *net_ns;
};
struct task_struct {
    struct thread_info thread_info;
    u32 flags;
    s32 exit_code;
    s32 pid, tgid;
    struct task_struct *real_parent, *group_leader;
    struct pid *thread_pid;
    struct signal_struct *signal;
    struct nsproxy *nsproxy;
    void *mm;
    void *bpf_storage;
    char comm[16];
};
struct qstr {
    u32 len;
    const u8 *name;
};
struct dentry {
    struct dentry *d_parent;
    struct qstr d_name;
};
struct vfsmount {
    struct dentry *mnt_root;
};
struct mount {
    struct mount *mnt_parent;
    struct dentry *mnt_mountpoint;
    struct vfsmount mnt;
};
struct path {
    struct vfsmount *mnt;
    struct dentry *dentry;
};
struct file {
    struct path f_path;
};
struct linux_binprm {
    struct file *file;
    const char *filename;
};
struct sigaction {
    void *sa_handler;
};
struct k_sigaction {
    struct sigaction sa;
};
struct seq_file;
struct bpf_iter_meta {
    struct seq_file *seq;
    u64 session_id, seq_num;
};
struct bpf_iter__task {
    struct bpf_iter_meta *meta;
    struct task_struct *task;
};

#pragma clang attribute pop

/* include/linux/sched.h */
enum { PF_EXITING = 0x4, PF_IO_WORKER = 0x10, PF_USER_WORKER = 0x4000, PF_KTHREAD = 0x200000 };
enum { PIDTYPE_TGID = 1 };

#endif
