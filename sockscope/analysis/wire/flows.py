"""Packets to TCP connections, marked and counted, column by column; and their times moved to CLOCK_MONOTONIC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.wire.columns import NEVER, Ints, copies, distinct_bytes, first_times, last_times
from sockscope.analysis.wire.facts import count_facts, first_resets
from sockscope.analysis.wire.marks import Marks, mark_segments
from sockscope.analysis.wire.openings import Handshakes, fins, handshakes
from sockscope.analysis.wire.segments import Segments
from sockscope.model.connections import Flow
from sockscope.model.flow_facts import FLOW_FACT_DTYPE
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WireTables:
    """What the packets tell.

    Attributes:
        flows: in order of their first packet.
        packet_flow: shape (packets,), int32, each packet's flow; -1 for all but TCP and for copies of a packet that
            another interface showed at the same moment.
        packet_marks: shape (packets,), uint16, `SegmentMark`; 0 for those without a flow.
        flow_facts: shape (flows,), FLOW_FACT_DTYPE.
    """

    flows: list[Flow]
    packet_flow: npt.NDArray[np.int32]
    packet_marks: Marks
    flow_facts: npt.NDArray[np.void]


def build_wire(packets: Packets, packet_ns: Ints) -> WireTables:
    """Group TCP packets into connections, and tell what each went through.

    Ports used again make another flow: at each handshake with another initial sequence number. A connection
    that began before the capture is a flow too, its handshake times None; its side 0 sent the first packet seen.

    Args:
        packets: the packets, of any protocol, in any order.
        packet_ns: shape (n,), int64, their CLOCK_MONOTONIC times.
    """
    packet_flow = np.full(len(packets), -1, np.int32)
    packet_marks = np.zeros(len(packets), np.uint16)
    records = packets.records
    rows = np.flatnonzero((records["protocol"] == _TCP) & (records["sport"] > 0) & (records["dport"] > 0))
    if not len(rows):
        none = np.zeros(0, FLOW_FACT_DTYPE)
        return WireTables(flows=[], packet_flow=packet_flow, packet_marks=packet_marks, flow_facts=none)
    when = packet_ns[rows]
    if (when[1:] < when[:-1]).any():
        rows = rows[np.argsort(when, kind="stable")]
    copied = copies(records, rows, packet_ns)
    if copied.any():
        rows = rows[~copied]
    whole = len(rows) == len(records) and bool((rows[1:] > rows[:-1]).all())
    table = Segments.of(records if whole else records[rows], packet_ns if whole else packet_ns[rows])
    shake = handshakes(table)
    marks = mark_segments(table, shake.rtt_ns)
    fin_ns, fin_acked_ns = fins(table)
    facts = count_facts(table, marks, shake, fin_ns)
    flows = _make(table, shake, (fin_ns, fin_acked_ns), facts)
    place = table.order if whole else rows[table.order]
    packet_flow[place] = table.flow
    packet_marks[place] = marks
    return WireTables(flows=flows, packet_flow=packet_flow, packet_marks=packet_marks, flow_facts=facts)


def build_flows(packets: Packets, packet_ns: Ints) -> tuple[list[Flow], npt.NDArray[np.int32]]:
    """The flows of `build_wire`, and each packet's."""
    wire = build_wire(packets, packet_ns)
    return wire.flows, wire.packet_flow


def _make(table: Segments, shake: Handshakes, ends_ns: tuple[Ints, Ints], facts: npt.NDArray[np.void]) -> list[Flow]:
    """The Flow objects, from columns."""
    flows = table.flow_count
    gids = flows * 2
    fin_ns, fin_acked_ns = ends_ns
    rst_ns = first_resets(table)
    data = np.flatnonzero(table.length > 0)
    last_payload_ns = last_times(table.gid[data], table.when[data], gids)
    # A SYN's own number comes before its data (TCP Fast Open).
    first_byte = table.seq[data] + table.has(TcpFlag.SYN)[data].astype(np.uint32)
    distinct = distinct_bytes(table.gid[data], first_byte, table.length[data], gids)
    columns = zip(
        range(flows),
        _ends(table),
        first_times(table.flow, table.when, flows).tolist(),
        last_times(table.flow, table.when, flows).tolist(),
        _pairs(np.bincount(table.gid, minlength=gids)),
        _pairs(distinct),
        _times(shake.syn),
        _times(shake.synack),
        _times(shake.established),
        _time_pairs(fin_ns),
        _time_pairs(fin_acked_ns),
        _time_pairs(rst_ns),
        _time_pairs(last_payload_ns),
        _pairs(facts["retransmissions"].ravel()),
        _pairs(facts["zero_windows"].ravel()),
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


def _pairs(values: npt.NDArray[np.integer]) -> list[tuple[int, int]]:
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


def _ends(table: Segments) -> list[tuple[Address, Address]]:
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
