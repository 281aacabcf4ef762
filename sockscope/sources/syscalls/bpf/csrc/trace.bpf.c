#include "state.h"
#include "net.h"
#include "uring.h"

char _license[] SEC("license") = "Dual MIT/GPL";

SEC("tp_btf/sys_enter") int on_sys_enter(u64 *ctx)
{
    struct pt_regs *regs = (void *)ctx[0];
    struct task *t = current_target();
    if (t && config.quick[1].kind)
        t->cur.enter_ns = (s64)regs->di;
    return 0;
}
