"""Where our mark of a segment differs from tshark's: which of the differences of docs/wire.md it is.

A segment on which both do not agree, or of which the page speaks in its own words, passes three questions; who fails
one is unexplained, and the test with it:

1. Does tshark say something else when it is asked again without what counts for nothing, by the page? (`retold`.)
   Then the cause (`_causes`) names the difference, and the new answer is the one to compare with.
2. Is our mark what the page says of this segment? `flow_story.Story.words` looks that up in the packets, one segment at
   a time, without the columns that made the mark.
3. What still differs from tshark, part for part (`_PARTS`): does one of `_EXPLANATIONS` hold for it?

A new difference takes: its name and reason in docs/wire.md; in `Story` what the page says of such a segment, unless
Wireshark would say the same; here an explanation, or a cause; and a scene in test_mark_differences.py, which makes it
and then tells it wrong in every way. (`tshark_marks` asks tshark; `wire_traffic` over `lossy_network` makes the
captures of test_expert_agreement.py.)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sockscope.model.tcp import SegmentMark as Mark
from sockscope.model.tcp import TcpFlag
from tests.live.flow_story import ANSWERS, LATE, PROBES, Segment, Story
from tests.live.tshark_marks import Compared, tshark
from tests.live.written_packets import ipv4, write_packets

_IN_OTHER_WORDS = np.uint16(LATE | PROBES | ANSWERS | Mark.ACKED_UNSEEN | Mark.ZERO_WINDOW)
_PARTS = (LATE, Mark.ACKED_UNSEEN, Mark(0xFFFF) & ~(LATE | Mark.ACKED_UNSEEN))
_UNEXPLAINED = "unexplained"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retold:
    """What tshark says without what counts for nothing.

    Attributes:
        marks: shape (packets,), uint16, as `SegmentMark`; its first word where nothing was left out.
        causes: of each row of a flow told again, what counts for nothing there, and from which row on that may tell.
    """

    marks: npt.NDArray[np.uint16]
    causes: dict[int, dict[str, int]]


class Differences:
    """All segments of one capture on which we and tshark do not agree."""

    def __init__(self, compared: Compared, retold: Retold | None = None) -> None:
        self._compared = compared
        self._retold = retold
        self._stories: dict[int, Story] = {}

    def each(self, flow: int | None = None) -> Iterator[tuple[int, str]]:
        """(frame number, the differences' names; empty where one is not explained), of one flow or all."""
        wire, theirs = self._compared.wire, self._compared.told.marks
        ours, flows = wire.packet_marks, wire.packet_flow
        mine = flows == flow if flow is not None else flows >= 0
        # What the page tells in its own words is looked up even where both say the same.
        odd = mine & ((ours != theirs) | ((ours | theirs) & _IN_OTHER_WORDS != 0))
        looked_at = np.unique(flows[odd]).tolist()
        retold = self._retold or self.retold(looked_at)
        odd |= mine & (ours != retold.marks)
        for one in looked_at:
            odd[list(self._story(one).acks_of_unseen)] = True
        for row in np.flatnonzero(odd).tolist():
            story = self._story(int(flows[row]))
            mark, said = Mark(int(ours[row])), Mark(int(retold.marks[row]))
            names = set[str]()
            if said != theirs[row]:
                names = {name for name, since in retold.causes[row].items() if since <= row} or {_UNEXPLAINED}
            segment = story.at.get(row)
            if segment is not None:
                names |= _names(story, segment, said, mark)
            elif mark:
                names.add(_UNEXPLAINED)
            if names:
                yield row + 1, "" if _UNEXPLAINED in names else " ".join(sorted(names))

    def retold(self, flows: list[int]) -> Retold:
        """Anew of those flows in which something counts for nothing, each between addresses of its own."""
        marks, causes = self._compared.told.marks.copy(), dict[int, dict[str, int]]()
        rows, packets = list[int](), list[npt.NDArray[np.void]]()
        for flow in flows:
            story = self._story(flow)
            found = self._causes(story)
            if not found:
                continue
            causes.update(dict.fromkeys(story.rows, found))
            # No connection was there before it now.
            marks[story.rows] = 0
            marks[story.rows[0]] = Mark.PORT_REUSED if story.reuses_ports else 0
            if not story.segments:
                continue
            before = [story.segments[place].row for place in story.keep_alives]
            told = sorted([*before, *story.at])
            packets.append(_between_others(_with_bytes_before(self._compared, told), len(packets)))
            rows += told
        if packets:
            with tempfile.NamedTemporaryFile(suffix=".pcap") as file:
                write_packets(Path(file.name), np.concatenate(packets))
                again = tshark(Path(file.name)).marks
            # Of two for one row the first is the byte before.
            marks[rows] |= again
        return Retold(marks=marks, causes=causes)

    def _story(self, flow: int) -> Story:
        if flow not in self._stories:
            self._stories[flow] = Story(self._compared, flow)
        return self._stories[flow]

    def _causes(self, story: Story) -> dict[str, int]:
        """What of the flow counts for nothing, and from which row on that may tell."""
        stream, differs = self._compared.told.stream, self._compared.wire.packet_marks != self._compared.told.marks
        shared = bool((stream[: story.rows[0]] == stream[story.rows[0]]).any())
        # Many a connection ends with one, after which nothing comes.
        after = any(differs[row] for row in story.rows if row >= story.resets[0]) if story.resets else False
        since = {
            "after-a-reset": story.resets if after else [],
            "before-the-syn": story.before_syn,
            "first-keep-alive": [story.segments[place].row for place in story.keep_alives],
            "another-connection": story.rows if shared else [],
        }
        return {name: rows[0] for name, rows in since.items() if rows}


def _between_others(packets: npt.NDArray[np.void], number: int) -> npt.NDArray[np.void]:
    """One flow's packets, between the addresses of that number."""
    ends = [ipv4(f"10.{number >> 8}.{number & 255}.{end}") for end in (1, 2)]
    first = packets[0]
    forth = (packets["src"] == first["src"]).all(axis=1) & (packets["sport"] == first["sport"])
    packets["src"] = np.where(forth[:, None], *ends)
    packets["dst"] = np.where(forth[:, None], *ends[::-1])
    return packets


def _with_bytes_before(compared: Compared, rows: list[int]) -> npt.NDArray[np.void]:
    """These packets; where a row comes twice, the first tells of the byte that the second, a keep-alive, repeats."""
    packets = compared.packets.records[rows]
    twice = np.flatnonzero(np.diff(rows) == 0)
    packets["seq"][twice] += np.uint32(1)
    packets["flags"][twice] &= ~np.uint8(TcpFlag.ACK)
    return packets


def _names(story: Story, segment: Segment, said: Mark, mark: Mark) -> set[str]:
    """Why tshark's mark and ours differ, part for part."""
    words, spoken = story.words(segment)
    if (mark ^ words) & spoken:
        return {_UNEXPLAINED}
    found = set()
    for part in _PARTS:
        more, less = mark & ~said & ~Mark.RTO & part, said & ~mark & part
        if more or less:
            explained = (name for name, explains in _EXPLANATIONS.items() if explains(story, segment, more, less))
            found.add(next(explained, _UNEXPLAINED))
    return found


def _closed_window(story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
    if more == Mark.ZERO_WINDOW_PROBE:
        return less == Mark.KEEP_ALIVE and story.closed(segment)
    return more == Mark.ZERO_WINDOW_PROBE_ACK and less in (Mark(0), Mark.KEEP_ALIVE_ACK, Mark.DUPLICATE_ACK)


def _seen_before(story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
    return less == Mark.OUT_OF_ORDER and bool(more & Mark.RETRANSMISSION) and not story.brings_new(segment)


def _age_of_the_hole(story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
    late = bool((more | less) & LATE) and story.brings_new(segment)
    if more == Mark.OUT_OF_ORDER:
        return late and bool(less & Mark.RETRANSMISSION) and story.young(segment)
    return late and less == Mark.OUT_OF_ORDER and bool(more & Mark.RETRANSMISSION) and not story.young(segment)


def _later_hole(story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
    return more == Mark.FAST_RETRANSMISSION and not less and segment.start != story.told(segment)


def _counter_below_zero(story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
    """Its side had acknowledged bytes that were not captured."""
    if more or less != Mark.FAST_RETRANSMISSION:
        return False
    own = story.before(segment, segment.side)
    return segment.start == story.told(segment) and any(one.row in story.acks_of_unseen for one in (*own, segment))


def _once_a_hole(story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
    return (more | less) == Mark.ACKED_UNSEEN


def _one_side_captured(story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
    return story.one_sided and not more and less == Mark.DUPLICATE_ACK


def _acknowledged_first(story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
    if less != Mark.RETRANSMISSION | Mark.SPURIOUS_RETRANSMISSION or more:
        return False
    told, reached = story.told(segment), story.next(segment)
    return told is not None and told >= segment.stop and (reached is None or segment.start >= reached)


def _simultaneous_open(story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
    return not more and bool(less) and less in LATE and story.opens_too(segment)


def _one_byte_again(story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
    if less == Mark.KEEP_ALIVE_ACK and more == Mark.DUPLICATE_ACK:
        return _is_one_byte_again(story, story.before(segment, 1 - segment.side)[-1])
    theirs, ours = less == Mark.KEEP_ALIVE and not more, bool(more & LATE) and not less
    return (theirs or ours) and _is_one_byte_again(story, segment)


def _is_one_byte_again(story: Story, segment: Segment) -> bool:
    return story.at_last_byte(segment) and not story.below(segment)


def _before_the_syn(story: Story, segment: Segment, more: Mark, less: Mark) -> bool:
    """The other side had acknowledged, after its own SYN, what is not of this connection."""
    other = story.before(segment, 1 - segment.side)
    strays = [one for one in other if one.flags & TcpFlag.ACK and one.ack_number != segment.seq_number + 1]
    first = not story.before(segment, segment.side)
    return first and not more and less == Mark.PORT_REUSED and segment.answers_syn and bool(strays)


_EXPLANATIONS = {
    "closed-window": _closed_window,
    "seen-before": _seen_before,
    "age-of-the-hole": _age_of_the_hole,
    "later-hole": _later_hole,
    "counter-below-zero": _counter_below_zero,
    "once-a-hole": _once_a_hole,
    "one-side-captured": _one_side_captured,
    "acknowledged-first": _acknowledged_first,
    "simultaneous-open": _simultaneous_open,
    "one-byte-again": _one_byte_again,
    "before-the-syn": _before_the_syn,
}
