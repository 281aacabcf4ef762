"""Packets to TCP connections, marked and counted, column by column; and their times moved to CLOCK_MONOTONIC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.wire.columns import Ints, copies, distinct_bytes, first_times, last_times
from sockscope.analysis.wire.facts import count_facts, first_resets
from sockscope.analysis.wire.flow_table import FlowColumns, Flows
from sockscope.analysis.wire.marks import Marks, mark_segments
from sockscope.analysis.wire.openings import Handshakes, fins, handshakes
from sockscope.analysis.wire.segments import Segments, Sorted
from sockscope.model.flow_facts import FLOW_FACT_DTYPE
from sockscope.model.packets import Packets
from sockscope.model.tcp import TcpFlag

_TCP = 6


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
    if len(samples) == 1:
        return times + int(offsets[0])
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

    flows: Flows
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
        return WireTables(flows=Flows(), packet_flow=packet_flow, packet_marks=packet_marks, flow_facts=none)
    when = packet_ns[rows]
    if (when[1:] < when[:-1]).any():
        rows = rows[np.argsort(when, kind="stable")]
    copied = copies(records, rows, packet_ns)
    if copied.any():
        rows = rows[~copied]
    every = Sorted.of(records, rows, packet_ns)
    # Flows are numbered by their first packet, not by the hash that sorted them.
    by_first = np.argsort(every.first_row, kind="stable")
    number = np.empty(len(by_first), np.int32)
    number[by_first] = np.arange(len(by_first))
    packet_flow[every.order] = number[np.cumsum(every.begins) - 1]
    columns = FlowColumns.room(len(number))
    facts = np.empty(len(number), FLOW_FACT_DTYPE)
    done = 0
    for part in every.parts():
        which = number[done : done + part.flow_count]
        done += part.flow_count
        shake = handshakes(part)
        marks = mark_segments(part, shake.rtt_ns)
        packet_marks[part.order] = marks
        ends_ns = fins(part)
        facts[which] = of_part = count_facts(part, marks, shake, ends_ns[0])
        columns.put(which, _columns(part, shake, ends_ns, of_part))
    return WireTables(flows=Flows(columns), packet_flow=packet_flow, packet_marks=packet_marks, flow_facts=facts)


def build_flows(packets: Packets, packet_ns: Ints) -> tuple[Flows, npt.NDArray[np.int32]]:
    """The flows of `build_wire`, and each packet's."""
    wire = build_wire(packets, packet_ns)
    return wire.flows, wire.packet_flow


def _columns(
    table: Segments, shake: Handshakes, ends_ns: tuple[Ints, Ints], facts: npt.NDArray[np.void]
) -> FlowColumns:
    flows = table.flow_count
    gids = flows * 2
    fin_ns, fin_acked_ns = ends_ns
    data = np.flatnonzero(table.length > 0)
    gid = table.gid[data]
    # A SYN's own number comes before its data (TCP Fast Open).
    first_byte = table.seq[data] + table.has(TcpFlag.SYN)[data].astype(np.uint32)
    rows = table.first_row
    # Side 0 is the source of the first packet, or its destination.
    swap = (np.arange(2) == table.opener_is_source[:, None]).astype(np.int64)
    every = np.arange(flows)[:, None]
    first = table.records[rows]
    return FlowColumns(
        number=np.stack([table.source[rows], table.destination[rows]], axis=1)[every, swap],
        key=np.stack([first["src"], first["dst"]], axis=1)[every, swap],
        port=np.stack([first["sport"], first["dport"]], axis=1)[every, swap],
        first_ns=first_times(table.flow, table.when, flows),
        last_ns=last_times(table.flow, table.when, flows),
        packet_count=np.bincount(table.gid, minlength=gids).reshape(-1, 2),
        payload_bytes=distinct_bytes(gid, first_byte, table.length[data], gids).reshape(-1, 2),
        syn_ns=shake.syn,
        synack_ns=shake.synack,
        established_ns=shake.established,
        fin_ns=fin_ns.reshape(-1, 2),
        fin_acked_ns=fin_acked_ns.reshape(-1, 2),
        rst_ns=first_resets(table).reshape(-1, 2),
        last_payload_ns=last_times(gid, table.when[data], gids).reshape(-1, 2),
        retransmission_count=facts["retransmissions"].astype(np.int64),
        zero_window_count=facts["zero_windows"].astype(np.int64),
    )
