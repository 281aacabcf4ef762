"""One flow of a capture as a plain list of segments, and what docs/wire.md says of each, looked up slowly.

Nothing here is shared with the columns that make the marks: what both say is right, or both are wrong on their own.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sockscope.model.tcp import SegmentMark as Mark
from sockscope.model.tcp import TcpFlag
from tests.live.tshark_marks import Compared

LATE = Mark.RETRANSMISSION | Mark.FAST_RETRANSMISSION | Mark.SPURIOUS_RETRANSMISSION | Mark.OUT_OF_ORDER | Mark.RTO
PROBES = Mark.KEEP_ALIVE | Mark.ZERO_WINDOW_PROBE
ANSWERS = Mark.DUPLICATE_ACK | Mark.KEEP_ALIVE_ACK | Mark.ZERO_WINDOW_PROBE_ACK
REORDERING_NS, FAST_NS, TIMEOUT_NS = 3_000_000, 20_000_000, 150_000_000
_BARE = TcpFlag.SYN | TcpFlag.FIN | TcpFlag.RST


@dataclass(frozen=True, slots=True)
class Segment:
    """One row; `start` and `stop` count from the first seen of its side, `ack` from the other's.

    `place` is its number in its story; -1: it counts for nothing there. `seq_number`
    and `ack_number` are as sent. `mark` is ours.
    """

    row: int
    place: int
    time_ns: int
    side: int
    flags: int
    start: int
    stop: int
    length: int
    ack: int | None
    seq_number: int
    ack_number: int
    window: int
    mark: Mark

    @property
    def bare(self) -> bool:
        """Neither SYN nor FIN."""
        return not self.flags & _BARE

    @property
    def opens(self) -> bool:
        return bool(self.flags & TcpFlag.SYN) and not self.flags & TcpFlag.ACK

    @property
    def answers_syn(self) -> bool:
        return bool(self.flags & TcpFlag.SYN) and bool(self.flags & TcpFlag.ACK)


class Story:
    """One flow.

    Attributes:
        rows: all of its rows, in order.
        resets: rows that are RST. before_syn: rows, no RST, before the SYN of their side.
        reuses_ports: it begins with a SYN between ends that had a connection before.
        keep_alives: places of the first segments of a side whose answer tells that a byte came before.
    """

    def __init__(self, compared: Compared, flow: int) -> None:
        self._compared = compared
        self.rows: list[int] = np.flatnonzero(compared.wire.packet_flow == flow).tolist()
        self.rtt_ns = int(compared.wire.flow_facts["handshake_rtt_ns"][flow])
        records = compared.packets.records
        first = records[self.rows[0]]
        ends = {*compared.wire.flows[flow].ends}
        again = any({*earlier.ends} == ends for earlier in compared.wire.flows[:flow])
        self.reuses_ports = again and bool(first["flags"] & TcpFlag.SYN)
        opener = bytes(first["src"]), int(first["sport"])
        self._side = {row: int((bytes(records[row]["src"]), int(records[row]["sport"])) != opener) for row in self.rows}
        flags = {row: int(records[row]["flags"]) for row in self.rows}
        self.resets = [row for row in self.rows if flags[row] & TcpFlag.RST]
        opened = {self._side[row]: row for row in reversed(self.rows) if flags[row] & TcpFlag.SYN}
        self.before_syn = [
            row for row in self.rows if row < opened.get(self._side[row], 0) and not flags[row] & TcpFlag.RST
        ]

    @cached_property
    def segments(self) -> list[Segment]:
        """All but resets, and what came before the SYN of its side."""
        left_out = {*self.resets, *self.before_syn}
        records, bases = self._compared.packets.records, dict[int, int]()
        made = list[Segment]()
        for row in self.rows:
            if row in left_out:
                continue
            one, side = records[row], self._side[row]
            flags, seq, length = int(one["flags"]), int(one["seq"]), int(one["payload_bytes"])
            start = _signed(seq - bases.setdefault(side, seq))
            known = flags & TcpFlag.ACK and 1 - side in bases
            made.append(
                Segment(
                    row=row,
                    place=len(made),
                    time_ns=int(one["time_ns"]),
                    side=side,
                    flags=flags,
                    start=start,
                    stop=start + length + bool(flags & TcpFlag.SYN) + bool(flags & TcpFlag.FIN),
                    length=length,
                    ack=_signed(int(one["ack"]) - bases[1 - side]) if known else None,
                    seq_number=seq,
                    ack_number=int(one["ack"]),
                    window=int(one["window"]),
                    mark=Mark(int(self._compared.wire.packet_marks[row])),
                )
            )
        return made

    @cached_property
    def at(self) -> dict[int, Segment]:
        return {one.row: one for one in self.segments}

    @cached_property
    def one_sided(self) -> bool:
        return len({one.side for one in self.segments}) == 1

    @cached_property
    def keep_alives(self) -> list[int]:
        found = []
        records = self._compared.packets.records
        for side in (0, 1):
            first = next((one for one in self.segments if one.side == side), None)
            if first is None or not first.bare or first.length or not first.flags & TcpFlag.ACK:
                continue
            answer = next((one for one in self.segments[first.place :] if one.side != side), None)
            if answer is None or any(one.stop > one.start for one in self.segments[first.place : answer.place]):
                continue
            if int(records[answer.row]["ack"]) == (int(records[first.row]["seq"]) + 1) % (1 << 32):
                found.append(first.place)
        return found

    def round_trip_ns(self) -> int:
        """Of the handshake: from the opener's last SYN to its first ACK of the SYN-ACK; -1: not seen."""
        opener = next((one.side for one in self.segments if one.opens), None)
        answer = next((one for one in self.segments if one.answers_syn and one.side != opener), None)
        for one in self.segments:
            acks = one.side == opener and one.flags & TcpFlag.ACK and not one.flags & TcpFlag.SYN
            if acks and (answer is None or one.ack_number == (answer.seq_number + 1) % (1 << 32)):
                return one.time_ns - max([syn.time_ns for syn in self.before(one, one.side) if syn.opens])
        return -1

    def before(self, segment: Segment, side: int) -> list[Segment]:
        """What that side had sent by then."""
        return [one for one in self.segments[: segment.place] if one.side == side]

    def next(self, segment: Segment) -> int | None:
        """The number after the highest that its side had sent; None: it had sent nothing."""
        own = self.before(segment, segment.side)
        # A byte beyond a closed window counts when it is sent in earnest.
        stops = [self._stop(one) for one in own if not (one.length and one.mark & Mark.ZERO_WINDOW_PROBE)]
        return max([own[0].start, *stops]) if own else None

    def words(self, segment: Segment) -> tuple[Mark, Mark]:
        """What the page says of it in other words than Wireshark's guide: (which marks it has, of which it speaks)."""
        mark, spoken = self.late(segment) | self.answer(segment), LATE | ANSWERS | Mark.ACKED_UNSEEN
        if segment.row in self.acks_of_unseen:
            mark |= Mark.ACKED_UNSEEN
        if self.at_last_byte(segment):
            spoken |= PROBES
        if self.below(segment):
            mark |= Mark.ZERO_WINDOW_PROBE if self.closed(segment) else Mark.KEEP_ALIVE
        return mark, spoken

    def at_last_byte(self, segment: Segment) -> bool:
        """Nothing, or one byte, at next − 1."""
        reached = self.next(segment)
        last = segment.bare and segment.length <= 1 and reached is not None and segment.start == reached - 1
        return last or segment.place in self.keep_alives

    def below(self, segment: Segment) -> bool:
        """The same; and the byte was acknowledged."""
        other = self.before(segment, 1 - segment.side)
        told = self.told(segment)
        acknowledged = not other or (told is not None and told > segment.start)
        return self.at_last_byte(segment) and (not segment.length or acknowledged)

    def told(self, segment: Segment) -> int | None:
        """What the other side acknowledged last, as an offset of its stream."""
        other = self.before(segment, 1 - segment.side)
        if not other or not other[-1].flags & TcpFlag.ACK:
            return None
        return segment.start + _signed(other[-1].ack_number - segment.seq_number)

    def closed(self, segment: Segment) -> bool:
        """Whether the other side's window is."""
        other = self.before(segment, 1 - segment.side)
        return bool(other) and not other[-1].window

    def answer(self, segment: Segment) -> Mark:
        """Of ACKs that repeat the one before, which."""
        own, other = self.before(segment, segment.side), self.before(segment, 1 - segment.side)
        if not own or self.one_sided or segment.length or not segment.bare or segment.start != self.next(segment):
            return Mark(0)
        if (own[-1].ack_number, own[-1].window) != (segment.ack_number, segment.window):
            return Mark(0)
        after = other[-1].mark if other else Mark(0)
        if after & Mark.ZERO_WINDOW_PROBE:
            return Mark.ZERO_WINDOW_PROBE_ACK
        if not segment.window:
            return Mark(0)
        return Mark.KEEP_ALIVE_ACK if after & Mark.KEEP_ALIVE else Mark.DUPLICATE_ACK

    def late(self, segment: Segment) -> Mark:
        """Of the late kinds, which."""
        reached = self.next(segment)
        if segment.mark & PROBES or reached is None or not segment.start < min(reached, segment.stop):
            return Mark(0)
        if segment.length > 1 and segment.start == reached - 1:
            return Mark(0)
        own, other = self.before(segment, segment.side), self.before(segment, 1 - segment.side)
        if self.opens_too(segment):
            return Mark(0)
        told = self.told(segment)
        if told is not None and 0 < segment.length <= told - segment.start:
            return Mark.RETRANSMISSION | Mark.SPURIOUS_RETRANSMISSION
        if self.brings_new(segment) and self.young(segment):
            return Mark.OUT_OF_ORDER
        asked = bool(other) and self.duplicates(other) >= 2 and segment.time_ns - other[-1].time_ns < FAST_NS
        if asked and (told is None or segment.start >= told):
            return Mark.RETRANSMISSION | Mark.FAST_RETRANSMISSION
        sent = [one.time_ns for one in own if one.stop > one.start] or [own[0].time_ns]
        silent = segment.time_ns - sent[-1] >= max(self.rtt_ns, TIMEOUT_NS)
        return Mark.RETRANSMISSION | (Mark.RTO if silent else Mark(0))

    def opens_too(self, segment: Segment) -> bool:
        """The SYN-ACK of a simultaneous open, after the own SYN."""
        own = self.before(segment, segment.side)
        return segment.answers_syn and bool(own) and own[-1].opens

    def brings_new(self, segment: Segment) -> bool:
        """Whether some byte below the highest of its side had not been seen."""
        low, high = segment.start, min(segment.stop, self.next(segment) or segment.stop)
        for one in sorted(self.before(segment, segment.side), key=lambda one: one.start):
            if one.start <= low < one.stop:
                low = one.stop
        return low < high

    def young(self, segment: Segment) -> bool:
        """Whether its side first went beyond its first byte less than a round trip ago."""
        beyond = next(one for one in self.before(segment, segment.side) if one.stop > segment.start)
        return segment.time_ns - beyond.time_ns < (self.rtt_ns if self.rtt_ns > 0 else REORDERING_NS)

    @staticmethod
    def duplicates(side: list[Segment]) -> int:
        """How many duplicate ACKs of its last acknowledgment a side had sent."""
        count = 0
        for one in reversed(side):
            if one.ack_number != side[-1].ack_number:
                break
            count += bool(one.mark & Mark.DUPLICATE_ACK)
        return count

    @cached_property
    def acks_of_unseen(self) -> frozenset[int]:
        """Rows that are the first to acknowledge a hole of the other side's stream, or some of it.

        Holes are told apart where a segment begins or ends, and where an ACK went beyond all that was seen by then.
        """
        seen, reached, edges = (_Seen(), _Seen()), [0, 0], (set[int](), set[int]())
        for one in self.segments:
            reached[one.side] = max(reached[one.side], self._stop(one))
            edges[one.side].update({one.start, self._stop(one)} if self._stop(one) > one.start else ())
            if one.ack is not None and one.ack > reached[1 - one.side]:
                edges[1 - one.side].update({reached[1 - one.side], one.ack})
        found, told, holes = list[int](), [-1 << 62] * 2, [sorted(side)[:-1] for side in edges]
        for one in self.segments:
            other = 1 - one.side
            seen[one.side].add(one.start, self._stop(one))
            if one.ack is None or one.ack <= told[one.side]:
                continue
            new = holes[other][bisect_left(holes[other], told[one.side]) : bisect_left(holes[other], one.ack)]
            if not all(seen[other].has(edge) for edge in new):
                found.append(one.row)
            told[one.side] = one.ack
        return frozenset(found)

    def _stop(self, segment: Segment) -> int:
        """Behind its last byte; that of a first keep-alive is there, though not in it."""
        return segment.stop + (segment.place in self.keep_alives)


class _Seen:
    """Ranges of a stream that were seen, joined."""

    def __init__(self) -> None:
        self._runs: list[tuple[int, int]] = []

    def add(self, start: int, stop: int) -> None:
        if start < stop:
            near = [run for run in self._runs if run[0] <= stop and start <= run[1]]
            apart = [run for run in self._runs if run not in near]
            self._runs = [*apart, (min([start, *(low for low, _ in near)]), max([stop, *(high for _, high in near)]))]

    def has(self, byte: int) -> bool:
        return any(start <= byte < stop for start, stop in self._runs)


def _signed(number: int) -> int:
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)
