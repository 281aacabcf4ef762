/* Kernel events: what the kernel did to a TCP socket, whoever ran then. Most of it runs in softirq, so nothing here
 * shares scratch memory with the programs of calls.
 *
 * What fires (watched on 6.18, loopback):
 *  server  CLOSE→LISTEN                    in listen()
 *          LISTEN→SYN_RECV→ESTABLISHED     on the child, both when the handshake's last ACK is there; its SYN
 *                                          made a request socket, which has no states of its own. The child gets its
 *                                          cookie between the two.
 *  client  CLOSE→SYN_SENT→ESTABLISHED      the first in connect(), before the local port is chosen (0)
 *  ends    ESTABLISHED→FIN_WAIT1→FIN_WAIT2→CLOSE, ESTABLISHED→CLOSE_WAIT→LAST_ACK→CLOSE. TIME_WAIT is a socket of
 *          another kind that takes over the ports: here FIN_WAIT2→CLOSE is what begins it.
 *  abort   ESTABLISHED→CLOSE, then tcp_send_reset; the other end: tcp_receive_reset, then ESTABLISHED→CLOSE.
 *          A closed port's RST has no socket. */
#ifndef SOCKSCOPE_NET_H
#define SOCKSCOPE_NET_H

#include "state.h"

#define EXISTS(access) __builtin_preserve_field_info(access, 2) /* BPF_FIELD_EXISTS */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct in6_addr {
    union {
        u32 u6_addr32[4];
    } in6_u;
};
struct atomic64___socket {
    s64 counter;
};
struct sock_common {
    u32 skc_daddr, skc_rcv_saddr;
    u16 skc_dport, skc_num;
    u16 skc_family;
    volatile u8 skc_state;
    struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;
    struct atomic64___socket skc_cookie;
};
struct sock {
    struct sock_common __sk_common;
    u16 sk_protocol;
};
struct inet_sock {
    u16 inet_sport;
};
struct request_sock {
    struct sock_common __req_common;
};
struct sk_buff {
    u16 network_header, transport_header;
    u8 *head;
};

#pragma clang attribute pop

/* include/net/tcp_states.h, include/linux/socket.h, include/uapi/linux/in.h */
enum { TCP_ESTABLISHED = 1, TCP_SYN_SENT, TCP_SYN_RECV, TCP_TIME_WAIT = 6, TCP_CLOSE, TCP_LISTEN = 10,
       TCP_NEW_SYN_RECV = 12 };
enum { AF_INET = 2, AF_INET6 = 10, IPPROTO_TCP = 6 };

/* struct sockaddr_in6, include/uapi/linux/in6.h */
struct address {
    u16 family, port; /* the port in network order */
    u32 flow;
    u32 words[4];
    u32 scope;
};
struct ends {
    struct section local_header;
    struct address local;
    struct section peer_header;
    struct address peer;
};
_Static_assert(sizeof(struct ends) == 72 && sizeof(struct ends) <= SMALL_BLOB, "two sections");

/* Host order. */
struct port_pair {
    u16 local, peer;
};

INLINE int wanted(struct port_pair p)
{
    return bpf_map_lookup_elem(&ports, &p.local) || bpf_map_lookup_elem(&ports, &p.peer);
}

INLINE int is_full(u8 state) { return state != TCP_TIME_WAIT && state != TCP_NEW_SYN_RECV; }

INLINE struct port_pair ports_of(struct sock *sk)
{
    struct port_pair p = {sk->__sk_common.skc_num, __builtin_bswap16(sk->__sk_common.skc_dport)};
    u16 source = 0;
    /* A socket that reaches CLOSE has given its port back; inet_sport still tells it. */
    if (!p.local && is_full(sk->__sk_common.skc_state) &&
        !bpf_probe_read_kernel(&source, sizeof source, &((struct inet_sock *)sk)->inet_sport))
        p.local = __builtin_bswap16(source);
    return p;
}

INLINE void set_v4(struct address *a, u16 port, u32 v4)
{
    *a = (struct address){.family = AF_INET6, .port = __builtin_bswap16(port)};
    a->words[2] = 0xffff0000; /* ::ffff:0:0 */
    a->words[3] = v4;
}

/* A dual-stack socket's child knows its IPv4 addresses before it knows them mapped. 127.0.0.6 (LOOPBACK4_IPV6) stands
 * there for "an IPv6 address". */
INLINE void set_end(struct address *a, u16 port, u16 family, u32 v4, const struct in6_addr *v6)
{
    set_v4(a, port, v4);
    if (family != AF_INET6 || !EXISTS(((struct sock_common *)0)->skc_v6_daddr))
        return;
    u32 words[4] = {};
    bpf_probe_read_kernel(words, sizeof words, v6);
    if (!words[0] && !words[1] && !words[2] && !words[3] && v4 && v4 != 0x0600007f)
        return;
    a->words[0] = words[0];
    a->words[1] = words[1];
    a->words[2] = words[2];
    a->words[3] = words[3];
}

INLINE struct ends *ends_begin(struct small_record *r)
{
    struct ends *b = (void *)r->blob;
    b->local_header = (struct section){SEC_SOCKADDR, 0, 0, sizeof b->local};
    b->peer_header = (struct section){SEC_PEER, 0, 0, sizeof b->peer};
    r->e.blob_bytes = sizeof *b;
    return b;
}

INLINE u64 cookie_of(struct sock *sk)
{
    u64 known = (u64)sk->__sk_common.skc_cookie.counter;
    /* Of its own, a socket has one only once it was asked for. */
    return known || !is_full(sk->__sk_common.skc_state) ? known : bpf_get_socket_cookie(sk);
}

INLINE void tell(struct sock_common *c, struct port_pair p, u64 cookie, u16 call, u64 a, u64 b)
{
    struct small_record *r = small_begin();
    if (!r)
        return;
    fill_event(&r->e, bpf_ktime_get_ns(), 0, 0, call, cookie, a, b);
    struct ends *ends = ends_begin(r);
    set_end(&ends->local, p.local, c->skc_family, c->skc_rcv_saddr, &c->skc_v6_rcv_saddr);
    set_end(&ends->peer, p.peer, c->skc_family, c->skc_daddr, &c->skc_v6_daddr);
    small_end(r);
}

INLINE void tell_state_of(struct sock *sk, u16 call)
{
    struct port_pair p = ports_of(sk);
    if (wanted(p))
        tell(&sk->__sk_common, p, cookie_of(sk), call, sk->__sk_common.skc_state, 0);
}

/* For whom the kernel works now: the thread that runs, or, where a thread of an io_uring's own does (SQPOLL, workers),
 * its process's first. */
INLINE struct task *current_principal(void)
{
    struct task_struct *me = bpf_get_current_task_btf();
    struct task *t = current_target();
    if (t || !(me->flags & PF_IO_WORKER))
        return t;
    struct task_struct *leader = me->group_leader;
    t = leader ? bpf_task_storage_get(&tasks, leader, NULL, 0) : NULL;
    return t && t->live ? t : NULL;
}

INLINE void add_port(u16 port)
{
    u8 one = 1;
    if (port)
        bpf_map_update_elem(&ports, &port, &one, BPF_ANY);
}

/* (sk, former state, new state) */
SEC("tp_btf/inet_sock_set_state") int on_sock_state(u64 *ctx)
{
    struct sock *sk = (void *)ctx[0];
    u32 from = (u32)ctx[1], to = (u32)ctx[2];
    if (sk->sk_protocol != IPPROTO_TCP)
        return 0;
    struct port_pair p = ports_of(sk);
    /* What a target listens on or connects to is its business from then on. Both happen in its own call. */
    if (to == TCP_LISTEN && current_principal())
        add_port(p.local);
    else if (to == TCP_SYN_SENT && current_principal())
        add_port(p.peer);
    else if (!wanted(p))
        return 0;
    /* Here the child gets its cookie later; on kernels where it has no peer yet either, this says nothing. */
    int child = from == TCP_LISTEN && to == TCP_SYN_RECV;
    if (child && !p.peer)
        return 0;
    tell(&sk->__sk_common, p, child ? 0 : cookie_of(sk), SOCK_STATE, from, to);
    return 0;
}

SEC("tp_btf/tcp_retransmit_skb") int on_retransmit(u64 *ctx)
{
    tell_state_of((void *)ctx[0], TCP_RETRANSMIT);
    return 0;
}

/* (listener, request, …): a SYN/ACK. */
SEC("tp_btf/tcp_retransmit_synack") int on_retransmit_synack(u64 *ctx)
{
    struct request_sock *request = (void *)ctx[1];
    struct sock_common *c = &request->__req_common;
    struct port_pair p = {c->skc_num, __builtin_bswap16(c->skc_dport)};
    if (wanted(p))
        tell(c, p, (u64)c->skc_cookie.counter, TCP_RETRANSMIT, c->skc_state, 0);
    return 0;
}

SEC("tp_btf/tcp_receive_reset") int on_reset_received(u64 *ctx)
{
    tell_state_of((void *)ctx[0], TCP_RESET_RECEIVED);
    return 0;
}

struct ip4 {
    u8 version_length, tos;
    u16 bytes, id, fragment;
    u8 ttl, protocol;
    u16 sum;
    u32 from, to;
};
struct ip6 {
    u32 version_flow;
    u16 bytes;
    u8 next, hops;
    u32 from[4], to[4];
};

/* An RST that answers a segment no connection is there for: its ends are the segment's, turned round. */
INLINE void tell_refusal(struct sk_buff *segment, u64 state)
{
    u8 *head = NULL;
    u16 network = 0, transport = 0, tcp[2] = {};
    bpf_probe_read_kernel(&head, sizeof head, &segment->head);
    bpf_probe_read_kernel(&network, sizeof network, &segment->network_header);
    bpf_probe_read_kernel(&transport, sizeof transport, &segment->transport_header);
    if (bpf_probe_read_kernel(tcp, sizeof tcp, head + transport))
        return;
    struct port_pair p = {__builtin_bswap16(tcp[1]), __builtin_bswap16(tcp[0])};
    if (!wanted(p))
        return;
    struct ip6 six = {};
    struct ip4 four = {};
    if (bpf_probe_read_kernel(&four, sizeof four, head + network))
        return;
    int is_six = four.version_length >> 4 == 6;
    if (is_six && bpf_probe_read_kernel(&six, sizeof six, head + network))
        return;
    struct small_record *r = small_begin();
    if (!r)
        return;
    fill_event(&r->e, bpf_ktime_get_ns(), 0, 0, TCP_RESET_SENT, 0, state, 0);
    struct ends *ends = ends_begin(r);
    set_v4(&ends->local, p.local, four.to);
    set_v4(&ends->peer, p.peer, four.from);
    if (is_six) {
        __builtin_memcpy(ends->local.words, six.to, sizeof six.to);
        __builtin_memcpy(ends->peer.words, six.from, sizeof six.from);
    }
    small_end(r);
}

/* (sk, skb, …). Without a connection, sk is NULL or the listener and skb is the segment answered; skb is NULL where the
 * program aborts. Before 6.10 skb may be the RST itself, but then sk is a connection. */
SEC("tp_btf/tcp_send_reset") int on_reset_sent(u64 *ctx)
{
    struct sock *sk = (void *)ctx[0];
    struct sk_buff *segment = (void *)ctx[1];
    u64 state = TCP_CLOSE;
    if (sk) {
        state = sk->__sk_common.skc_state;
        if (state != TCP_LISTEN) {
            tell_state_of(sk, TCP_RESET_SENT);
            return 0;
        }
    }
    if (segment)
        tell_refusal(segment, state);
    return 0;
}

#endif
