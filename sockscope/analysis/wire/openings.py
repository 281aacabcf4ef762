"""When connections began and ended on the wire: the handshake, and each side's FIN (RFC 9293 sections 3.5 and 3.6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sockscope.analysis.wire.columns import NEVER, Ints, at_or_after, first_times, last_times
from sockscope.analysis.wire.segments import Segments
from sockscope.model.tcp import TcpFlag


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshakes:
    """CLOCK_MONOTONIC. Shape (flows,) each, NEVER where not seen."""

    syn: Ints
    synack: Ints
    established: Ints
    rtt_ns: Ints
    """The last SYN of side 0 to the ACK that ends the handshake; -1 where either was not seen."""


def handshakes(table: Segments) -> Handshakes:
    """SYN, SYN-ACK and the ACK of each flow, the first of each."""
    count = table.flow_count
    syn, ack = table.has(TcpFlag.SYN), table.has(TcpFlag.ACK)
    opens = np.flatnonzero(syn & ~ack)
    syn_ns = first_times(table.flow[opens], table.when[opens], count)
    # Where both open at once, each side answers: the other's answer is what side 0 waits for.
    answers = np.flatnonzero(syn & ack & (table.gid & 1 == 1))
    synack_ns = first_times(table.flow[answers], table.when[answers], count)
    wanted = np.zeros(count, np.uint32)
    wanted[table.flow[answers[::-1]]] = table.seq[answers[::-1]] + np.uint32(1)
    answered = synack_ns != NEVER
    ends = np.flatnonzero(
        ack
        & ~syn
        & ~table.has(TcpFlag.RST)
        & (table.gid & 1 == 0)
        & answered[table.flow]
        & (table.when >= synack_ns[table.flow])
        & at_or_after(table.ack, wanted[table.flow])
    )
    established = first_times(table.flow[ends], table.when[ends], count)
    rtt_ns = _round_trips(table, opens, np.where(answered, wanted.astype(np.int64), -1))
    return Handshakes(syn=syn_ns, synack=synack_ns, established=established, rtt_ns=rtt_ns)


def _round_trips(table: Segments, opens: Ints, wanted: Ints) -> Ints:
    """From the last SYN of side 0 to its first ACK, of the SYN-ACK alone where that was captured."""
    count = table.flow_count
    asked = opens[table.gid[opens] & 1 == 0]
    rows = np.flatnonzero(
        (table.gid & 1 == 0)
        & (table.flags & np.uint8(TcpFlag.SYN | TcpFlag.ACK | TcpFlag.RST) == np.uint8(TcpFlag.ACK))
    )
    flow = table.flow[rows]
    ends = (table.ack[rows] == wanted[flow]) | (wanted[flow] < 0)
    ended = first_times(flow[ends], table.when[rows[ends]], count)
    asked = asked[table.when[asked] <= ended[table.flow[asked]]]
    last_syn = last_times(table.flow[asked], table.when[asked], count)
    found: Ints = np.where((ended != NEVER) & (last_syn != NEVER), ended - last_syn, -1)
    return found


def fins(table: Segments) -> tuple[Ints, Ints]:
    """When each side's first FIN went out, and when the other acknowledged it; shape (gids,)."""
    count = table.flow_count * 2
    rows = np.flatnonzero(table.has(TcpFlag.FIN))
    fin_ns = first_times(table.gid[rows], table.when[rows], count)
    after = np.zeros(count, np.uint32)
    first = rows[::-1]
    after[table.gid[first]] = table.seq[first] + table.length[first].astype(np.uint32) + np.uint32(1)
    # Only rows of flows with a FIN can acknowledge one.
    finished = (fin_ns != NEVER).reshape(-1, 2).any(axis=1)
    rows = np.flatnonzero(finished[table.flow] & table.has(TcpFlag.ACK))
    other = table.gid[rows] ^ 1
    sent = fin_ns[other]
    acks = (sent != NEVER) & (table.when[rows] >= sent) & at_or_after(table.ack[rows], after[other])
    return fin_ns, first_times(other[acks], table.when[rows[acks]], count)
