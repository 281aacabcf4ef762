"""Packets grouped into TCP connections, column by column; and their times moved to CLOCK_MONOTONIC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.wire.columns import (
    NEVER,
    Ints,
    at_or_after,
    copies,
    count_bytes,
    endpoints,
    first_times,
    group_order,
    last_times,
    split_reuse,
)
from sockscope.model.connections import Flow
from sockscope.model.packets import Packets
from sockscope.model.sockaddr import Address
from sockscope.model.tcp import TcpFlag

_TCP = 6
_NEVER = int(NEVER)


def monotonic_ns(packets: Packets, clock_samples: Sequence[tuple[int, int]]) -> Ints:
    """Each packet's time as CLOCK_MONOTONIC ns; shape (n,), int64.

    Between two samples the offset of the clocks is taken as linear, before the first and after the last as
    constant. Without samples (a capture alone) the times stay as they are.

    Args:
        packets: the packets.
        clock_samples: (monotonic_ns, realtime_ns) pairs, as in SessionInfo.
    """
    times = packets.records["time_ns"].astype(np.int64)
    if not clock_samples or not len(times):
        return times
    samples = np.array(sorted(clock_samples, key=lambda pair: pair[1]), np.int64)
    monotonic, realtime = samples[:, 0], samples[:, 1]
    offsets = monotonic - realtime
    # Differences are small enough for float64 to hold them to the nanosecond; absolute times are not.
    moved = np.interp((times - realtime[0]).astype(np.float64), realtime - realtime[0], offsets - offsets[0])
    shifted: Ints = times + offsets[0] + np.rint(moved).astype(np.int64)
    return shifted


def build_flows(packets: Packets, packet_ns: Ints) -> tuple[list[Flow], npt.NDArray[np.int32]]:
    """Group TCP packets into connections.

    Ports used again make another flow: at each handshake with another initial sequence number. A connection
    that began before the capture is a flow too, its handshake times None; its side 0 sent the first packet seen.

    Args:
        packets: the packets, of any protocol, in any order.
        packet_ns: shape (n,), int64, their CLOCK_MONOTONIC times.

    Returns:
        The flows in order of their first packet, and each packet's flow: shape (n,), int32, -1 for all but TCP
        and for copies of a packet that another interface showed at the same moment.
    """
    packet_flow = np.full(len(packets), -1, np.int32)
    records = packets.records
    rows = np.flatnonzero((records["protocol"] == _TCP) & (records["sport"] > 0) & (records["dport"] > 0))
    if not len(rows):
        return [], packet_flow
    when = packet_ns[rows]
    if (when[1:] < when[:-1]).any():
        rows = rows[np.argsort(when, kind="stable")]
    copied = copies(records, rows, packet_ns)
    if copied.any():
        rows = rows[~copied]
    whole = len(rows) == len(records) and bool((rows[1:] > rows[:-1]).all())
    table = _Sorted.of(records if whole else records[rows], packet_ns if whole else packet_ns[rows])
    packet_flow[rows[table.order]] = table.flow
    return _make(table), packet_flow


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sorted:
    """TCP rows sorted by (endpoints, time): what the facts of the flows are counted from.

    Attributes:
        order: shape (n,), row of the unsorted table.
        flow: shape (n,), flow number, in order of the flows' first packets.
        gid: shape (n,), flow * 2 + side.
        when, flags, seq, ack, window, length: shape (n,), columns of the packets.
        first_row: shape (flows,), row of the unsorted table that holds the flow's first packet.
        opener_is_source: shape (flows,), whether side 0 sent that packet.
        records, source, destination: the unsorted table and its endpoints.
    """

    order: Ints
    flow: Ints
    gid: Ints
    when: Ints
    flags: npt.NDArray[np.uint8]
    seq: npt.NDArray[np.uint32]
    ack: npt.NDArray[np.uint32]
    window: npt.NDArray[np.uint16]
    length: Ints
    first_row: Ints
    opener_is_source: npt.NDArray[np.bool_]
    records: npt.NDArray[np.void]
    source: npt.NDArray[np.uint64]
    destination: npt.NDArray[np.uint64]

    @property
    def flow_count(self) -> int:
        return len(self.first_row)

    @classmethod
    def of(cls, records: npt.NDArray[np.void], when: Ints) -> _Sorted:
        source, destination = endpoints(records)
        order, starts = group_order(np.minimum(source, destination), np.maximum(source, destination))
        flags, seq, ack = (records[name][order] for name in ("flags", "seq", "ack"))
        direction = (source > destination)[order].astype(np.int64)
        starts = split_reuse(starts, direction, flags, seq, ack)
        begin = np.flatnonzero(starts)
        grouped = np.cumsum(starts) - 1
        # Flows are numbered by their first packet, not by the hash that sorted them.
        first_row = order[begin]
        by_first = np.argsort(first_row, kind="stable")
        number = np.empty(len(begin), np.int64)
        number[by_first] = np.arange(len(begin))
        flow = number[grouped]
        opener = _openers(flow, direction, flags, len(begin))
        side = direction ^ opener[flow]
        first_row = first_row[by_first]
        return cls(
            order=order,
            flow=flow,
            gid=flow * 2 + side,
            when=when[order],
            flags=flags,
            seq=seq,
            ack=ack,
            window=records["window"][order],
            length=records["payload_bytes"][order].astype(np.int64),
            first_row=first_row,
            opener_is_source=(source > destination)[first_row].astype(np.int64) == opener,
            records=records,
            source=source,
            destination=destination,
        )

    def has(self, flag: TcpFlag) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = (self.flags & np.uint8(flag)) != 0
        return found


def _openers(flow: Ints, direction: Ints, flags: npt.NDArray[np.uint8], count: int) -> Ints:
    """The opener's direction of each flow: who sent the SYN, or got the SYN-ACK, or is seen first."""
    opener = np.zeros(count, np.int64)
    opener[flow[::-1]] = direction[::-1]
    syn, ack = (flags & TcpFlag.SYN) != 0, (flags & TcpFlag.ACK) != 0
    answers = np.flatnonzero(syn & ack)[::-1]
    opener[flow[answers]] = 1 - direction[answers]
    opens = np.flatnonzero(syn & ~ack)[::-1]
    opener[flow[opens]] = direction[opens]
    return opener


@dataclass(frozen=True, slots=True, kw_only=True)
class _Handshakes:
    """Shape (flows,) each, NEVER where not seen."""

    syn: Ints
    synack: Ints
    established: Ints


def _handshakes(table: _Sorted) -> _Handshakes:
    count = table.flow_count
    syn, ack = table.has(TcpFlag.SYN), table.has(TcpFlag.ACK)
    opens = np.flatnonzero(syn & ~ack)
    syn_ns = first_times(table.flow[opens], table.when[opens], count)
    answers = np.flatnonzero(syn & ack)
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
    return _Handshakes(syn=syn_ns, synack=synack_ns, established=established)


def _fins(table: _Sorted) -> tuple[Ints, Ints]:
    """When each side's first FIN went out, and when the other acknowledged it; shape (gids,)."""
    count = table.flow_count * 2
    fins = np.flatnonzero(table.has(TcpFlag.FIN))
    fin_ns = first_times(table.gid[fins], table.when[fins], count)
    after = np.zeros(count, np.uint32)
    first = fins[::-1]
    after[table.gid[first]] = table.seq[first] + table.length[first].astype(np.uint32) + np.uint32(1)
    # Only rows of flows with a FIN can acknowledge one.
    finished = (fin_ns != NEVER).reshape(-1, 2).any(axis=1)
    rows = np.flatnonzero(finished[table.flow] & table.has(TcpFlag.ACK))
    other = table.gid[rows] ^ 1
    sent = fin_ns[other]
    acks = (sent != NEVER) & (table.when[rows] >= sent) & at_or_after(table.ack[rows], after[other])
    return fin_ns, first_times(other[acks], table.when[rows[acks]], count)


def _retransmitted_flags(table: _Sorted) -> Ints:
    """SYNs and FINs without payload beyond the first of each side; shape (gids,)."""
    count = table.flow_count * 2
    out = np.zeros(count, np.int64)
    for flag in (TcpFlag.SYN, TcpFlag.FIN):
        rows = np.flatnonzero(table.has(flag) & ~table.has(TcpFlag.RST))
        bare = rows[table.length[rows] == 0]
        number = np.bincount(table.gid[bare], minlength=count)
        with_data = np.bincount(table.gid[rows], minlength=count) - number
        out += np.where(with_data > 0, number, np.maximum(number - 1, 0))
    return out


def _make(table: _Sorted) -> list[Flow]:
    """The Flow objects, from columns."""
    flows = table.flow_count
    gids = flows * 2
    handshakes = _handshakes(table)
    fin_ns, fin_acked_ns = _fins(table)
    resets = np.flatnonzero(table.has(TcpFlag.RST))
    rst_ns = first_times(table.gid[resets], table.when[resets], gids)
    data = np.flatnonzero(table.length > 0)
    last_payload_ns = last_times(table.gid[data], table.when[data], gids)
    # A SYN's own number comes before its data (TCP Fast Open).
    first_byte = table.seq[data] + table.has(TcpFlag.SYN)[data].astype(np.uint32)
    counted = count_bytes(table.gid[data], table.when[data], first_byte, table.length[data], gids)
    retransmissions = counted.retransmissions + _retransmitted_flags(table)
    stuck = (table.window == 0) & ~table.has(TcpFlag.RST) & ~table.has(TcpFlag.SYN)
    columns = zip(
        range(flows),
        _ends(table),
        first_times(table.flow, table.when, flows).tolist(),
        last_times(table.flow, table.when, flows).tolist(),
        _pairs(np.bincount(table.gid, minlength=gids)),
        _pairs(counted.distinct),
        _times(handshakes.syn),
        _times(handshakes.synack),
        _times(handshakes.established),
        _time_pairs(fin_ns),
        _time_pairs(fin_acked_ns),
        _time_pairs(rst_ns),
        _time_pairs(last_payload_ns),
        _pairs(retransmissions),
        _pairs(np.bincount(table.gid[stuck], minlength=gids)),
        strict=True,
    )
    return [
        Flow(
            id=number,
            ends=ends,
            first_ns=first_ns,
            last_ns=last_ns,
            packet_count=packet_count,
            payload_bytes=payload_bytes,
            syn_ns=syn,
            synack_ns=synack,
            established_ns=established,
            fin_ns=fin,
            fin_acked_ns=fin_acked,
            rst_ns=rst,
            last_payload_ns=last_payload,
            retransmission_count=retransmitted,
            zero_window_count=zero_window,
        )
        for (
            number,
            ends,
            first_ns,
            last_ns,
            packet_count,
            payload_bytes,
            syn,
            synack,
            established,
            fin,
            fin_acked,
            rst,
            last_payload,
            retransmitted,
            zero_window,
        ) in columns
    ]


def _pairs(values: Ints) -> list[tuple[int, int]]:
    if not values.any():
        return [(0, 0)] * (len(values) // 2)
    return list(zip(values[0::2].tolist(), values[1::2].tolist(), strict=True))


def _times(values: Ints) -> list[int | None]:
    if (values != NEVER).all():
        return list(values.tolist())
    return [None if v == _NEVER else v for v in values.tolist()]


def _time_pairs(values: Ints) -> list[tuple[int | None, int | None]]:
    if (values == NEVER).all():
        return [(None, None)] * (len(values) // 2)
    return list(zip(_times(values[0::2]), _times(values[1::2]), strict=True))


def _ends(table: _Sorted) -> list[tuple[Address, Address]]:
    """The sides' addresses; flows that share an end share its object."""
    rows = table.first_row
    known: dict[int, Address] = {}
    found: list[list[Address]] = []
    for is_source in (table.opener_is_source, ~table.opener_is_source):
        numbers = np.where(is_source, table.source[rows], table.destination[rows])
        keys = np.where(is_source[:, None], table.records["src"][rows], table.records["dst"][rows])
        ports = np.where(is_source, table.records["sport"][rows], table.records["dport"][rows])
        raw = np.ascontiguousarray(keys).tobytes()
        side = []
        for at, (number, port) in enumerate(zip(numbers.tolist(), ports.tolist(), strict=True)):
            address = known.get(number)
            if address is None:
                address = known[number] = Address.inet(raw[at * 16 : at * 16 + 16], port)
            side.append(address)
        found.append(side)
    return list(zip(*found, strict=True))
