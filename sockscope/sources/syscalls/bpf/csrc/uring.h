/* io_uring: what goes through a ring, told as the syscalls it stands for.
 *
 * A request is remembered when it is submitted and told when it completes. The kernel prepares it before
 * io_uring_submit_req, so the arguments lie in its command area, a struct for each operation. A completion names its
 * request, but for the further completions of a multishot request: those carry the program's user_data only. */
#ifndef SOCKSCOPE_URING_H
#define SOCKSCOPE_URING_H

#include "uring_calls.h"

#define CHAIN_MAX 4

/* What a request that is being submitted waits for. */
INLINE struct request *linked_to(struct io_ring_ctx *ring)
{
    u64 before = (u64)GET(ring, submit_state.link.last);
    return GET(ring, submit_state.link.head) ? bpf_map_lookup_elem(&uring_requests, &before) : NULL;
}

/* A request has completed: what it was linked to begins, unless the chain is broken (then that completes as well). */
INLINE void tell_linked(struct work *w, const struct request *r, u64 key, s64 now)
{
    u32 flags = GET((struct io_kiocb *)key, flags);
    u64 next = r->next;
    if (flags & REQ_FAIL && !(flags & SQE_HARDLINK))
        return;
    for (int i = 0; i < CHAIN_MAX && next; i++) {
        struct request *n = bpf_map_lookup_elem(&uring_requests, &next);
        if (!n || !n->chained || n->ring != r->ring)
            return;
        tell_unheard(w, n, now);
        next = n->next;
    }
}

INLINE int submitted(struct io_kiocb *req)
{
    u32 new_at = NEW_SUBMIT, work_at = WORK_SUBMIT;
    u64 key = (u64)req;
    struct task_struct *me = bpf_get_current_task_btf();
    struct task *t = current_principal();
    struct request *r = bpf_map_lookup_elem(&uring_new, &new_at);
    if (!UNDERSTOOD || !t || !r)
        return 0;
    begin(r, t, me);
    u32 flags = GET(req, flags);
    r->opcode = GET(req, opcode);
    int is = understand(r, req, (u32)GET(req, cqe.fd));
    if (is == OUTSIDE || (is == A_CALL && flags & SQE_FIXED_FILE)) {
        COUNT(uring_fixed);
        is = NO_CALL;
    }
    if (is == NO_CALL) {
        bpf_map_delete_elem(&uring_requests, &key); /* what an earlier one may have left */
        return 0;
    }
    r->ring = (u64)GET(req, ctx);
    r->user_data = GET(req, cqe.user_data);
    r->selects = !!(flags & SQE_BUFFER_SELECT);
    if (flags & SQE_CQE_SKIP) {
        struct work *w = bpf_map_lookup_elem(&uring_works, &work_at);
        struct request *before = linked_to((struct io_ring_ctx *)r->ring);
        if (before && !before->told) {
            before->next = key;
            r->chained = 1;
        } else if (w)
            tell_unheard(w, r, r->enter_ns);
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

/* (sqe, req, error): it did not get as far as a request. Its completion follows. */
SEC("tp_btf/io_uring_req_failed") int on_uring_failed(u64 *ctx)
{
    u32 new_at = NEW_FAILED, work_at = WORK_FAILED;
    u64 key = ctx[1];
    struct task_struct *me = bpf_get_current_task_btf();
    struct task *t = current_principal();
    struct request *r = bpf_map_lookup_elem(&uring_new, &new_at);
    struct work *w = bpf_map_lookup_elem(&uring_works, &work_at);
    struct sqe q;
    if (!UNDERSTOOD || !t || !r || !w ||
        bpf_probe_read_kernel(&q, sizeof q, (const void *)ctx[0]))
        return 0;
    begin(r, t, me);
    if (!understand_entry(r, &q))
        return 0;
    r->ring = (u64)GET((struct io_kiocb *)key, ctx);
    r->user_data = q.user_data;
    r->told = TOLD_OF_ALL;
    bpf_map_update_elem(&uring_requests, &key, r, BPF_ANY);
    if (q.flags & SQE_FIXED_FILE)
        COUNT(uring_fixed);
    else
        tell_request(w, r, r->enter_ns, (s32)ctx[2], 0);
    return 0;
}

/* (req, …): what it waited for has happened; it will be tried again, and may complete. */
SEC("tp_btf/io_uring_task_add") int on_uring_wake(u64 *ctx)
{
    struct io_kiocb *req = (void *)ctx[0];
    if (!UNDERSTOOD)
        return 0;
    struct task_struct *owner = NULL;
    if (EXISTS(req->tctx) && EXISTS(((struct io_uring_task *)0)->task)) {
        struct io_uring_task *context = GET(req, tctx);
        owner = context ? GET(context, task) : NULL;
    } else if (EXISTS(req->task))
        owner = GET(req, task);
    u32 tgid = owner ? (u32)GET(owner, tgid) : 0;
    if (!bpf_map_lookup_elem(&processes, &tgid))
        return 0;
    struct many many = {(u64)GET(req, ctx), GET(req, cqe.user_data)};
    u64 key = (u64)req;
    struct request *known = bpf_map_lookup_elem(&uring_requests, &key);
    if (!known || known->ring != many.ring || known->user_data != many.user_data)
        bpf_map_update_elem(&uring_woken, &many, &key, BPF_ANY);
    return 0;
}

/* A request from before its thread was followed, remembered from now on. `key`: 0 where a completion names none. */
INLINE struct request *earlier_request(struct work *w, const struct many *many, u64 *key)
{
    u32 new_at = NEW_COMPLETE;
    u64 *woken = bpf_map_lookup_elem(&uring_woken, many);
    struct request *r = bpf_map_lookup_elem(&uring_new, &new_at);
    struct task *t = current_principal();
    struct task_struct *me = bpf_get_current_task_btf();
    if (!woken || !r || !t || (*key && *key != *woken))
        return NULL;
    u64 found = *woken;
    bpf_map_delete_elem(&uring_woken, many);
    struct io_kiocb *req = (void *)found;
    u32 flags = GET(req, flags);
    u64 file = (u64)GET(req, cmd.file);
    if (GET(req, cqe.user_data) != many->user_data || flags & SQE_FIXED_FILE)
        return NULL;
    begin(r, t, me);
    r->enter_ns = -1;
    r->opcode = GET(req, opcode);
    r->ring = many->ring;
    r->user_data = many->user_data;
    r->selects = !!(flags & SQE_BUFFER_SELECT);
    s32 fd = file ? descriptor_of(w, me, file) : 0;
    if (fd < 0 || understand(r, req, fd) != A_CALL || bpf_map_update_elem(&uring_requests, &found, r, BPF_ANY))
        return NULL;
    if (r->multishot)
        bpf_map_update_elem(&uring_multishots, many, &found, BPF_ANY);
    *key = found;
    return bpf_map_lookup_elem(&uring_requests, &found);
}

SEC("tp_btf/io_uring_complete") int on_uring_complete(u64 *ctx)
{
    u64 ring = ctx[0], key = ctx[1], user_data;
    s64 res, now = (s64)bpf_ktime_get_ns();
    u32 flags, work_at = WORK_COMPLETE;
    if (!UNDERSTOOD)
        return 0;
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
    struct work *w = bpf_map_lookup_elem(&uring_works, &work_at);
    if (!key) {
        u64 *found = bpf_map_lookup_elem(&uring_multishots, &many);
        key = found ? *found : 0;
    }
    struct request *r = bpf_map_lookup_elem(&uring_requests, &key);
    /* A request whose completion is not told leaves its entry behind. */
    if (!r || r->ring != ring || r->user_data != user_data) {
        r = w ? earlier_request(w, &many, &key) : NULL;
        if (!r)
            return 0;
    }
    if (r->of_socket && !is_of_socket((struct io_kiocb *)key)) {
        bpf_map_delete_elem(&uring_requests, &key);
        return 0;
    }
    struct task_struct *me = bpf_get_current_task_btf();
    struct signal_struct___ending *signal = (void *)me->signal;
    u32 copies = (u64)me->mm == r->mm ? COPIES : 0;
    if (r->selects && r->nr != NR_recvmsg) {
        r->args[1] = res > 0 ? chosen_buffer(r->nr, (void *)key) : 0;
        copies = r->args[1] ? copies : 0;
    } else if (r->selects) /* a header of io_uring's own stands before the message */
        copies = 0;
    /* The program never hears of what is cancelled at its end, or cleared away by a kernel thread with its ring; and
     * a thread that was let go is no longer ours. */
    int unheard = me->flags & PF_KTHREAD || (!(me->flags & PF_IO_WORKER) && !current_target()) ||
                  (res == -ECANCELED && GET(signal, flags) & SIGNAL_GROUP_EXIT);
    if (w && unheard && !r->told)
        tell_request(w, r, -1, 0, ENTERED_ONLY | copies);
    else if (w && !unheard && r->told != TOLD_OF_ALL && (!r->told || res < 0))
        tell_request(w, r, now, res, copies);
    if (flags & CQE_MORE && r->multishot) {
        /* As if called again at once. */
        r->enter_ns = now;
        return 0;
    }
    if (w && r->next)
        tell_linked(w, r, key, now);
    if (r->multishot)
        bpf_map_delete_elem(&uring_multishots, &many);
    bpf_map_delete_elem(&uring_requests, &key);
    return 0;
}

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct bpf_iter__bpf_map_elem {
    struct bpf_iter_meta *meta;
    void *map, *key, *value;
};
#pragma clang attribute pop

/* At the end of the session, over uring_requests: what is under way still. */
SEC("iter/bpf_map_elem") int uring_pending(struct bpf_iter__bpf_map_elem *ctx)
{
    struct request *r = ctx->value;
    u32 work_at = WORK_PENDING;
    struct work *w = bpf_map_lookup_elem(&uring_works, &work_at);
    if (!r || !w || r->told)
        return 0;
    r->told = 1;
    tell_request(w, r, -1, 0, ENTERED_ONLY);
    return 0;
}

#endif
