"""Where our mark of a segment differs from tshark's: which of the differences of docs/wire.md it is, looked up slowly.

Each explanation is checked against the packets themselves, segment by segment, without the columns that made the mark.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sockscope.model.tcp import SegmentMark as Mark
from sockscope.model.tcp import TcpFlag
from tests.live.tshark_marks import Compared

LATE = Mark.RETRANSMISSION | Mark.FAST_RETRANSMISSION | Mark.SPURIOUS_RETRANSMISSION | Mark.OUT_OF_ORDER
REORDERING_NS, FAST_NS = 3_000_000, 20_000_000


@dataclass(frozen=True, slots=True)
class Segment:
    """One row; `start` and `stop` count from the first seen of its side, `ack` from the other's."""

    row: int
    time_ns: int
    side: int
    flags: int
    start: int
    stop: int
    ack: int | None
    window: int
    mark: Mark


class Story:
    """One flow, as a plain list of segments."""

    def __init__(self, compared: Compared, flow: int) -> None:
        self._rows = np.flatnonzero(compared.wire.packet_flow == flow).tolist()
        self._compared = compared
        self._flow = flow

    @cached_property
    def segments(self) -> list[Segment]:
        records, first = self._compared.packets.records, self._rows[0]
        opener = bytes(records["src"][first].tobytes()), int(records["sport"][first])
        bases: dict[int, int] = {}
        made = []
        for row in self._rows:
            one = records[row]
            side = int((bytes(one["src"].tobytes()), int(one["sport"])) != opener)
            flags, seq = int(one["flags"]), int(one["seq"])
            base = bases.setdefault(side, seq) if not flags & TcpFlag.RST else bases.get(side, seq)
            start = _signed(seq - base)
            span = int(one["payload_bytes"]) + bool(flags & TcpFlag.SYN) + bool(flags & TcpFlag.FIN)
            known = flags & TcpFlag.ACK and 1 - side in bases
            made.append(
                Segment(
                    row=row,
                    time_ns=int(one["time_ns"]),
                    side=side,
                    flags=flags,
                    start=start,
                    stop=start + span,
                    ack=_signed(int(one["ack"]) - bases[1 - side]) if known else None,
                    window=int(one["window"]),
                    mark=Mark(int(self._compared.wire.packet_marks[row])),
                )
            )
        return made

    @property
    def one_sided(self) -> bool:
        return len({one.side for one in self.segments}) == 1

    @property
    def rtt_ns(self) -> int:
        return int(self._compared.wire.flow_facts["handshake_rtt_ns"][self._flow])

    def before(self, segment: Segment, side: int) -> list[Segment]:
        """What that side had sent by then, resets aside."""
        at = self.segments.index(segment)
        return [one for one in self.segments[:at] if one.side == side and not one.flags & TcpFlag.RST]

    def brings_new(self, segment: Segment) -> bool:
        """Whether some byte below the highest of its side had not been seen."""
        own = self.before(segment, segment.side)
        low, high = segment.start, min(segment.stop, max(one.stop for one in own))
        for one in sorted(own, key=lambda one: one.start):
            if one.start <= low < one.stop:
                low = one.stop
        return low < high

    def hole_age_ns(self, segment: Segment) -> int:
        """Since its side first went beyond its first byte."""
        beyond = next(one for one in self.before(segment, segment.side) if one.stop > segment.start)
        return segment.time_ns - beyond.time_ns

    def acks_unseen(self, segment: Segment) -> bool:
        """Whether it is the first to acknowledge some byte that was not seen by then."""
        if segment.ack is None or segment.flags & TcpFlag.RST:
            return False
        earlier = [one.ack for one in self.before(segment, segment.side) if one.ack is not None]
        sent = sorted(self.before(segment, 1 - segment.side), key=lambda one: one.start)
        every = [one for one in self.segments if one.side != segment.side and not one.flags & TcpFlag.RST]
        low = max([*earlier, min(one.start for one in every)])
        for one in sent:
            if one.start <= low < one.stop or (one.stop == one.start == low - 1 and Mark.KEEP_ALIVE & one.mark):
                low = max(low, one.stop)
        # Bytes of a hole that an earlier ACK already told of are not told of twice.
        return low < segment.ack


def _signed(number: int) -> int:
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)


class Differences:
    """All segments of one capture on which we and tshark do not agree."""

    def __init__(self, compared: Compared) -> None:
        self._compared = compared
        self._stories: dict[int, Story] = {}

    def each(self) -> Iterator[tuple[int, str]]:
        """(frame number, the differences' names; empty where one is not explained)."""
        ours = self._compared.wire.packet_marks & ~np.uint16(Mark.RTO)
        for row in np.flatnonzero(ours != self._compared.theirs).tolist():
            more = Mark(int(ours[row]) & ~int(self._compared.theirs[row]))
            less = Mark(int(self._compared.theirs[row]) & ~int(ours[row]))
            names = [self._name(row, more & part, less & part) for part in _PARTS if (more | less) & part]
            yield row + 1, "" if "" in names else " ".join(sorted(set(names)))

    def _name(self, row: int, more: Mark, less: Mark) -> str:
        flow = int(self._compared.wire.packet_flow[row])
        story = self._stories.setdefault(flow, Story(self._compared, flow))
        segment = next(one for one in story.segments if one.row == row)
        for name, explains in _EXPLANATIONS.items():
            if explains(self, story, segment, more, less):
                return name
        return ""

    def closed_window(self, story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
        other = story.before(segment, 1 - segment.side)
        if more == Mark.ZERO_WINDOW_PROBE and less in (Mark.KEEP_ALIVE, Mark.KEEP_ALIVE | Mark.WINDOW_FULL):
            return other[-1].window == 0
        return more == Mark.ZERO_WINDOW_PROBE_ACK and not less and bool(other[-1].mark & Mark.ZERO_WINDOW_PROBE)

    def seen_before(self, story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
        return less == Mark.OUT_OF_ORDER and bool(more & Mark.RETRANSMISSION) and not story.brings_new(segment)

    def age_of_the_hole(self, story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
        limit = story.rtt_ns if story.rtt_ns > 0 else REORDERING_NS
        if not (more | less) & LATE or not story.brings_new(segment):
            return False
        young = story.hole_age_ns(segment) < limit
        if more == Mark.OUT_OF_ORDER:
            return young and bool(less & Mark.RETRANSMISSION)
        return less == Mark.OUT_OF_ORDER and bool(more & Mark.RETRANSMISSION) and not young

    def later_hole(self, story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
        if more != Mark.FAST_RETRANSMISSION or less:
            return False
        other = story.before(segment, 1 - segment.side)
        acks = [one for one in other if one.ack == other[-1].ack and one.mark & Mark.DUPLICATE_ACK]
        after = other[-1].ack is not None and segment.start >= other[-1].ack
        soon = segment.time_ns - other[-1].time_ns < FAST_NS
        return after and soon and len(acks) >= 2

    def once_a_hole(self, story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
        return (more | less) == Mark.ACKED_UNSEEN and bool(more) == story.acks_unseen(segment)

    def first_keep_alive(self, story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
        firsts = [next((one for one in story.segments if one.side == side), None) for side in (0, 1)]
        probes = Mark.KEEP_ALIVE | Mark.ZERO_WINDOW_PROBE
        return any(one is not None and bool(one.mark & probes) for one in firsts)

    def one_side_captured(self, story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
        return story.one_sided and not more and less == Mark.DUPLICATE_ACK

    def another_connection(self, story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
        """tshark goes on with the stream where a SYN-ACK, its SYN not captured, began another."""
        stream = self._compared.stream
        earlier = np.flatnonzero(stream[: segment.row] == stream[segment.row])
        flows = self._compared.wire.packet_flow
        unopened = not (story.segments[0].flags & TcpFlag.SYN) or bool(story.segments[0].flags & TcpFlag.ACK)
        return unopened and bool((flows[earlier] != flows[segment.row]).any())

    def before_the_syn(self, story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
        """Some segment before its side's SYN answers for the connection before."""
        opened = {one.side: number for number, one in reversed([*enumerate(story.segments)]) if one.flags & TcpFlag.SYN}
        return any(
            number < opened.get(one.side, 0) and not one.flags & TcpFlag.RST
            for number, one in enumerate(story.segments)
        )

    def acknowledged_first(self, story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
        if less & ~Mark.LOST_BEFORE != Mark.RETRANSMISSION | Mark.SPURIOUS_RETRANSMISSION or more:
            return False
        own, other = story.before(segment, segment.side), story.before(segment, 1 - segment.side)
        acked = [one.ack for one in other if one.ack is not None]
        return bool(acked) and acked[-1] >= segment.stop and segment.start >= max(one.stop for one in own)


_PARTS = (
    LATE,
    Mark.ACKED_UNSEEN,
    Mark(0xFFFF) & ~(LATE | Mark.ACKED_UNSEEN),
)
_EXPLANATIONS = {
    "closed-window": Differences.closed_window,
    "seen-before": Differences.seen_before,
    "age-of-the-hole": Differences.age_of_the_hole,
    "later-hole": Differences.later_hole,
    "once-a-hole": Differences.once_a_hole,
    "one-side-captured": Differences.one_side_captured,
    "another-connection": Differences.another_connection,
    "acknowledged-first": Differences.acknowledged_first,
    "before-the-syn": Differences.before_the_syn,
    "first-keep-alive": Differences.first_keep_alive,
}
