"""Moves what other clocks have stamped to where it belongs, and says how sure that is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sockscope.analysis.alignment.bounds import Fit
from sockscope.analysis.alignment.clocks import Clocks, Strand, resolution
from sockscope.analysis.alignment.packets import Laid, lay_beside
from sockscope.analysis.alignment.places.together import Together, lay_together
from sockscope.analysis.alignment.sides import Sides
from sockscope.analysis.alignment.snapshots import Room, align_snapshots
from sockscope.analysis.alignment.talks import Talks
from sockscope.analysis.replay.assign import Assignment
from sockscope.analysis.replay.known import complete_names
from sockscope.analysis.replay.state import ReplayState
from sockscope.analysis.wire.flows import build_flows
from sockscope.model.columns import picked
from sockscope.model.events import Events
from sockscope.model.info import Alignment, SessionInfo
from sockscope.model.packets import Packets
from sockscope.model.sockets import Sockets
from sockscope.model.tcp import TcpFlag

Ints = npt.NDArray[np.int64]

NOTHING_TOLD = -1
_DAYS_NS = 2 * 86_400 * 1_000_000_000
"""No two clocks with a date are so far apart."""
_LISTED_NS = 600 * 1_000_000_000
"""So long after the last packet a listing may still be of the same watching."""
_STIRRING = int(TcpFlag.SYN | TcpFlag.FIN | TcpFlag.RST)
_WORTH_A_NOTE_NS = 1_000_000
_SPOKEN_NS = 100_000
"""strace takes a call's time before it prints the arguments, and counts its duration from after that."""
_ONE_CLOCK_NS = 1_000_000
"""What strace and tcpdump on one machine may differ by: each stamps a little beside the moment itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A table's times after alignment.

    Attributes:
        times: shape (rows,).
        alignments: one a strand.
        notes: what the user should know of them.
    """

    times: Ints
    alignments: tuple[Alignment, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OneClock:
    """All evidence by the session's clock.

    Attributes:
        info: with alignments and notes, its beginning widened by what was moved.
        packets, packet_ns: of captures of several places in order of time, by the reference's clock, and only those
            that are told. sockets: as moved.
    """

    info: SessionInfo
    packets: Packets
    packet_ns: Ints
    sockets: Sockets


def lay(
    info: SessionInfo,
    state: ReplayState,
    events: Events,
    assignment: Assignment,
    packets: Packets,
    packet_ns: Ints,
    sockets: Sockets,
    clocks: Clocks,
) -> OneClock:
    """Move packets and socket rows to the session's clock.

    Args:
        info: what is known before. state, events, assignment: the log, replayed.
        packets, packet_ns: with their times as they stand.
        sockets: rows with their times as they stand.
        clocks: which rows have a clock of their own.
    """
    complete_names(state, events, assignment)
    talks = Talks.of(state, events, assignment)
    beside = _Beside(talks, packets, packet_ns, info.syscalls.resolution_ns if info.syscalls.engine else 0)
    together = lay_together(packets, packet_ns, clocks.files, beside.laid) if clocks.files else None
    if together is not None:
        packet_ns, clocks = together.times, _named(clocks, together.reference)
        info = replace(info, notes=(*info.notes, *together.notes))
    # Without a log the packets' clock is the session's.
    if info.syscalls.engine:
        if info.syscalls.resolution_ns:
            moved = move_packets(beside, packet_ns, clocks, together)
        else:
            moved = begin_together(packet_ns, clocks, info.started_ns)
        info, packet_ns = _told(info, moved), moved.times
    elif together is not None:
        info = _spanning(info, packet_ns)
    every_ns = packet_ns
    if together is not None:
        info = replace(info, alignments=(*info.alignments, *together.alignments))
        order = np.flatnonzero(together.told)
        order = order[np.argsort(packet_ns[order], kind="stable")]
        packets, packet_ns = replace(packets, records=picked(packets.records, order)), packet_ns[order]
        packets.records["time_ns"] += (together.times - beside.packet_ns)[order]
    if clocks.sockets:
        shown = move_sockets(talks, packets, packet_ns, sockets, clocks, _undated_by(info))
        info = _told(info, shown)
        records = sockets.records.copy()
        records["time_ns"] = shown.times
        sockets = replace(sockets, records=records)
    if info.syscalls.engine and clocks.packets:
        # What is not told shows, too, that the server was asked for something.
        info = replace(info, ended_ns=watched_until(info, beside.packets, every_ns, sockets))
    return OneClock(info=info, packets=packets, packet_ns=packet_ns, sockets=sockets)


def _named(clocks: Clocks, reference: str) -> Clocks:
    """All packets have the reference's clock."""
    return replace(clocks, packets=tuple(replace(one, source=reference) for one in clocks.packets))


def _spanning(info: SessionInfo, packet_ns: Ints) -> SessionInfo:
    """The session of captures alone, once their clocks are one."""
    first, last = int(packet_ns.min()), int(packet_ns.max())
    realtime = info.started_realtime_ns + first - info.started_ns
    return replace(info, started_ns=first, ended_ns=last, started_realtime_ns=realtime)


def _undated_by(info: SessionInfo) -> int:
    """How far a log without a date is from the captures' clock; 0: it has one."""
    laid = [one for one in info.alignments if one.packets and not one.beside and one.uncertainty_ns >= 0]
    offsets = [one.offset_ns for one in laid]
    return next((one for one in offsets if abs(one) > _DAYS_NS), 0)


def watched_until(info: SessionInfo, packets: Packets, packet_ns: Ints, sockets: Sockets) -> int:
    """When the session ends: a server that sits in a call writes no line of how long it does so.

    While other evidence goes on after the log's last line, and nothing crosses the wire that the server would have sent
    or have had to deal with, what the last lines say still holds. At the first such packet the log may have been over.
    """
    if info.apart_ns is None or not len(packets):
        return info.ended_ns
    last = max(info.ended_ns, int(packet_ns.max()))
    shown = sockets.records["time_ns"]
    # Listings that lie elsewhere were not laid beside the log by anything.
    until = max(last, int(shown[shown < last + _LISTED_NS].max(initial=0)))
    records = packets.records
    stirs = (records["payload_bytes"] > 0) | (records["flags"] & _STIRRING != 0)
    later = packet_ns[stirs & (packet_ns > info.ended_ns + info.apart_ns + _WORTH_A_NOTE_NS)]
    return max(info.ended_ns, int(later.min(initial=until)))


def _told(info: SessionInfo, moved: Moved) -> SessionInfo:
    """The session ends where the log does: what was not done after it was only not seen, whatever else goes on."""
    started = min(info.started_ns, int(moved.times.min(initial=info.started_ns)))
    return replace(
        info,
        started_ns=started,
        started_realtime_ns=info.started_realtime_ns - (info.started_ns - started),
        alignments=(*info.alignments, *moved.alignments),
        notes=(*info.notes, *moved.notes),
    )


def move_sockets(
    talks: Talks, packets: Packets, packet_ns: Ints, sockets: Sockets, clocks: Clocks, usual_ns: int = 0
) -> Moved:
    """Lay snapshots beside packets and calls.

    Args:
        talks: the log's connections.
        packets, packet_ns: the packets, with times of the session's clock.
        sockets: all rows; those in a strand have times of another clock, or guessed ones.
        clocks: which rows are whose.
        usual_ns: what is added where it fits: the log has no date, and that is how far the captures show it to be off.
    """
    times = sockets.records["time_ns"].astype(np.int64)
    flows, packet_flow = build_flows(packets, packet_ns)
    sides = Sides.of(packets, packet_ns, flows, packet_flow) if flows else None
    alignments, notes = [], []
    for strand in clocks.sockets:
        rows = slice(strand.start, strand.stop)
        room = align_snapshots(sockets.records[rows], talks, sides)
        alignment = _placed(strand, room, clocks.guessed, usual_ns)
        times[rows] += alignment.offset_ns
        if not (len(talks) or flows):
            # Alone: there is nothing to lie beside.
            continue
        alignments.append(alignment)
        if alignment.uncertainty_ns < 0 and (clocks.guessed or room is None):
            notes.append(f"{strand.source}: {alignment.basis}: its times were taken as they stand")
    return Moved(times=times, alignments=tuple(alignments), notes=tuple(notes))


def _placed(strand: Strand, room: Room | None, guessed: bool, usual_ns: int) -> Alignment:
    if room is None:
        return Alignment(
            source=strand.source,
            offset_ns=0,
            uncertainty_ns=NOTHING_TOLD,
            basis="no connection that the rest of the evidence knows, or none that fits it",
            packets=False,
        )
    basis = f"{room.agreeing:,} of {room.rows:,} socket states"
    low, high = room.least_ns, room.most_ns
    if low is not None and high is not None:
        offset = (low + high) // 2 if guessed or not low <= usual_ns <= high else usual_ns
        uncertainty = max(high - offset, offset - low)
    else:
        # Open to one side: no further than it must.
        offset = max(low, usual_ns) if low is not None else min(usual_ns if high is None else high, usual_ns)
        uncertainty, basis = NOTHING_TOLD, f"{basis} fit, which would fit {'later' if high is None else 'earlier'}, too"
    return Alignment(source=strand.source, offset_ns=offset, uncertainty_ns=uncertainty, basis=basis, packets=False)


class _Beside:
    """How packets lie beside the log.

    Args:
        talks: the log's connections.
        packets, packet_ns: of all captures, with times as they stand.
        resolution_ns: how fine the log's times are; 0: it has none.
    """

    def __init__(self, talks: Talks, packets: Packets, packet_ns: Ints, resolution_ns: int) -> None:
        self.talks, self.packets, self.packet_ns, self.resolution_ns = talks, packets, packet_ns, resolution_ns

    def laid(self, rows: Ints | slice) -> Laid | None:
        """Some of the packets; None where they have nothing in common with it."""
        if not self.resolution_ns or not len(self.talks):
            return None
        every, packet_ns = self.packets.records, self.packet_ns[rows]
        packets = replace(self.packets, records=every[rows] if isinstance(rows, slice) else picked(every, rows))
        flows, packet_flow = build_flows(packets, packet_ns)
        if not flows:
            return None
        return lay_beside(
            self.talks,
            Sides.of(packets, packet_ns, flows, packet_flow),
            log_resolution_ns=self.resolution_ns,
            packet_resolution_ns=resolution(packets.records["time_ns"]),
        )


def move_packets(beside: _Beside, packet_ns: Ints, clocks: Clocks, together: Together | None) -> Moved:
    """Lay captures beside the log.

    Args:
        beside: the log.
        packet_ns: shape (packets,), by one clock.
        clocks: which rows are of which capture.
        together: captures of several places, whose reference is laid beside the log; the others move with it.
    """
    times = packet_ns.copy()
    alignments, notes = [], []
    for strand in clocks.packets:
        rows = slice(strand.start, strand.stop)
        laid = beside.laid(rows) if together is None else together.laid
        if laid is None:
            alignments.append(_nothing_in_common(strand))
            notes.append(_apart(strand))
            continue
        fit = _kept(laid, beside.resolution_ns)
        alignments.append(_alignment(strand, laid, fit))
        times[rows] += fit.offsets(packet_ns[rows])
        if alignments[-1].uncertainty_ns > _WORTH_A_NOTE_NS:
            notes.append(_coarse(strand, alignments[-1]))
    return Moved(times=times, alignments=tuple(alignments), notes=tuple(notes))


def begin_together(packet_ns: Ints, clocks: Clocks, started_ns: int) -> Moved:
    """Captures beside a log without times: they begin where it does, and nothing more is said."""
    times = packet_ns.copy()
    alignments, notes = [], []
    for strand in clocks.packets:
        rows = slice(strand.start, strand.stop)
        offset = started_ns - int(packet_ns[rows].min()) if strand.stop > strand.start else 0
        times[rows] += offset
        basis = "the log has no times; both are told as if they began together"
        alignments.append(Alignment(source=strand.source, offset_ns=offset, uncertainty_ns=NOTHING_TOLD, basis=basis))
        notes.append(
            f"{strand.source}: the log has no times, so connections are joined by their addresses and order alone, and "
            "which came first of a packet and a call is not known: record it with strace -f -ttt -T"
        )
    return Moved(times=times, alignments=tuple(alignments), notes=tuple(notes))


def _kept(laid: Laid, log_resolution_ns: int) -> Fit:
    """Where the clocks may be one, they are one; where both are of one host, and may be one, nothing is in doubt."""
    fit = laid.fit.at_zero(_SPOKEN_NS if laid.one_host else 0)
    if not fit.slope and not fit.offset_ns and laid.one_host:
        most = max(_ONE_CLOCK_NS, 2 * log_resolution_ns)
        fit = replace(fit, below_ns=min(fit.below_ns, most), above_ns=min(fit.above_ns, most))
    return fit


def _nothing_in_common(strand: Strand) -> Alignment:
    return Alignment(source=strand.source, offset_ns=0, uncertainty_ns=NOTHING_TOLD, basis="nothing in common")


def _alignment(strand: Strand, laid: Laid, fit: Fit) -> Alignment:
    parts = [
        f"{count:,}" + f" {noun}{'s' if count > 1 else ''}"
        for count, noun in ((laid.handshakes, "handshake"), (laid.transfers, "transfer"), (laid.closes, "close"))
        if count
    ]
    basis = " and ".join(parts) if len(parts) < 3 else f"{parts[0]}, {parts[1]} and {parts[2]}"
    if fit.slope:
        basis += f"; its clock gains {-fit.slope * 1e6:+.1f} ppm"
    if laid.one_host and fit.offset_ns == 0:
        basis += " within one host"
    elif fit.one_sided:
        basis += "; bounded from one side only"
    return Alignment(
        source=strand.source, offset_ns=fit.offset_ns, uncertainty_ns=max(fit.uncertainty_ns, 0), basis=basis
    )


def _apart(strand: Strand) -> str:
    return (
        f"{strand.source}: no connection is both in this capture and in the log, so nothing tells how their clocks "
        "differ: the two are told side by side, not joined"
    )


def _coarse(strand: Strand, alignment: Alignment) -> str:
    return (
        f"{strand.source}: laid beside the log to ± {alignment.uncertainty_ns / 1e6:.3g} ms only "
        f"({alignment.basis}): within that, what came first is not known"
    )
