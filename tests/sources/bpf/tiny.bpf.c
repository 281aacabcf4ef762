// A little of everything that an object can have: constants, counters, maps, iterators, and a program that is wrong.
typedef unsigned int u32;
typedef unsigned long u64;
typedef int s32;

#define SEC(name) __attribute__((section(name), used))
#define KERNEL __attribute__((preserve_access_index))

struct seq_file;
struct bpf_iter_meta {
    struct seq_file *seq;
} KERNEL;
struct task_struct {
    s32 pid, tgid;
} KERNEL;
struct bpf_iter__task {
    struct bpf_iter_meta *meta;
    struct task_struct *task;
} KERNEL;

static long (*const bpf_seq_write)(struct seq_file *seq, const void *data, u32 size) = (void *)127;
static u64 (*const bpf_get_current_pid_tgid)(void) = (void *)14;

const volatile u32 wanted = 0;
const volatile u32 copies = 1;
u64 seen;

struct {
    int (*type)[1]; // BPF_MAP_TYPE_HASH
    int (*max_entries)[8];
    u32 *key;
    u64 *value;
} counts SEC(".maps");

struct {
    int (*type)[6]; // BPF_MAP_TYPE_PERCPU_ARRAY
    int (*max_entries)[1];
    u32 *key;
    u32 *value;
} each_cpu SEC(".maps");

SEC("iter/task")
int tasks(struct bpf_iter__task *context)
{
    struct task_struct *task = context->task;
    if (!task || (wanted && wanted != task->tgid))
        return 0;
    u32 row[2] = {task->tgid, task->pid};
    seen++;
    for (u32 i = 0; i < copies && i < 3000; i++)
        bpf_seq_write(context->meta->seq, row, sizeof row);
    return 0;
}

SEC("tp_btf/sys_enter")
int enters(u64 *context)
{
    if (bpf_get_current_pid_tgid() >> 32 == wanted)
        __sync_fetch_and_add(&seen, 1);
    return 0;
}

SEC("iter/task")
int unsafe(struct bpf_iter__task *context)
{
    return *(volatile int *)((char *)context->task + 1000000);
}

SEC("tp_btf/no_such_tracepoint")
int nowhere(u64 *context)
{
    return context[0] != 0;
}

char LICENSE[] SEC("license") = "GPL";
