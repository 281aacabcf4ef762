"""What each segment is: sent again and why, late, a probe, a word about the window.

The rules are Wireshark's TCP analysis ("TCP Analysis" in its user's guide), which people know, run over sorted columns
instead of packet by packet; where the capture shows better, they differ: docs/wire.md names each difference.
Source: RFC 9293 (windows, probes, keep-alives), RFC 5681 and 6675 (fast retransmit), RFC 6298 (the timer).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.wire.chains import Chains
from sockscope.analysis.wire.columns import REORDERING_NS, Ints, Mask
from sockscope.analysis.wire.coverage import UNSEEN, Pieces, brought, first_seen
from sockscope.analysis.wire.oddities import odd_flows
from sockscope.analysis.wire.segments import Segments
from sockscope.analysis.wire.windows import Scales, fills_window, window_scales
from sockscope.model.tcp import SegmentMark, TcpFlag

Marks = npt.NDArray[np.uint16]

FAST_NS = 20_000_000
"""So soon after a duplicate ACK a retransmission is its answer (Wireshark's limit)."""

TIMEOUT_NS = 150_000_000
"""A sender that was silent for so long waited for its timer: Linux's is never below 200 ms (TCP_RTO_MIN)."""

_ENOUGH_DUPLICATES = 2
"""RFC 5681 asks for three; one may be missing from the capture, and SACK needs no third."""

_MOST_ROUNDS = 8
_BARE = TcpFlag.SYN | TcpFlag.FIN | TcpFlag.RST


def mark_segments(table: Segments, rtt_ns: Ints) -> Marks:
    """The mark of each segment; shape (n,), uint16, `SegmentMark`. Resets have none.

    Args:
        table: the segments.
        rtt_ns: shape (flows,), the handshake's round trip; -1: not seen.
    """
    marks = np.zeros(len(table.flow), np.uint16)
    scales = window_scales(table)
    odd = odd_flows(table, scales)
    if odd.any():
        chains = Chains.of(table, odd)
        marks[chains.row] = _Marker(chains, scales, rtt_ns).marks()
    opens = np.flatnonzero(table.begins & table.has(TcpFlag.SYN))
    marks[opens[table.reused[table.flow[opens]]]] |= np.uint16(SegmentMark.PORT_REUSED)
    return marks


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reach:
    """How far each side had come. Shape (n,) each.

    Attributes:
        now: the highest offset, the row included; before: without it.
        first: nothing was seen of the side before.
    """

    now: Ints
    before: Ints
    first: Mask


class _Marker:
    """Marks the segments of flows that did not go smoothly."""

    def __init__(self, chains: Chains, scales: Scales, rtt_ns: Ints) -> None:
        self._chains = chains
        self._scales = scales
        self._rtt_ns = rtt_ns[chains.gid >> 1]
        self._bare = chains.has(_BARE)
        self._spans = chains.stop > chains.start
        self._heard = chains.other >= 0
        self._stop = np.where(self._first_probes(), chains.start + 1, chains.stop)

    def marks(self) -> Marks:
        """Shape (n,), in the chains' order."""
        marks = np.zeros(len(self._chains.row), np.uint16)
        beyond, reach = self._probes()
        below = self._below(reach)
        closed = self._window_of_other() == 0
        probes = beyond | (below & closed)
        alive = below & ~closed
        marks[probes] |= np.uint16(SegmentMark.ZERO_WINDOW_PROBE)
        marks[alive] |= np.uint16(SegmentMark.KEEP_ALIVE)
        marks[(self._chains.window == 0) & ~self._chains.has(TcpFlag.SYN)] |= np.uint16(SegmentMark.ZERO_WINDOW)
        gaps = ~reach.first & (self._chains.start > reach.before)
        marks[gaps] |= np.uint16(SegmentMark.LOST_BEFORE)
        full = fills_window(self._chains, self._chains.other, self._scales)
        marks[full & ~beyond] |= np.uint16(SegmentMark.WINDOW_FULL)
        marks |= self._pure_acks(reach, probes=probes, alive=alive)
        pieces = self._pieces(reach, gaps)
        marks[self._acked_unseen(pieces)] |= np.uint16(SegmentMark.ACKED_UNSEEN)
        marks |= self._late(
            reach, pieces, duplicates=marks & np.uint16(SegmentMark.DUPLICATE_ACK) != 0, probes=probes | alive
        )
        return marks

    def _first_probes(self) -> Mask:
        """Keep-alives that are the first of their side in the capture: the answer tells that a byte came before."""
        chains = self._chains
        answered = (chains.answer >= 0) & chains.has(TcpFlag.ACK)
        next_wanted = chains.ack[chains.answer]
        found: Mask = chains.begins & ~self._bare & (chains.length == 0) & answered
        found &= next_wanted == chains.seq + np.uint32(1)
        # A byte, or a FIN, that the side itself sent meanwhile was not there before.
        last = chains.other[chains.answer]
        found &= (chains.seq[last] == chains.seq) & ~self._spans[last]
        return found

    def _window_of_other(self) -> Ints:
        """What the other side said last; -1 where it has said nothing."""
        return np.where(self._heard, self._chains.window[self._chains.other].astype(np.int64), -1)

    def _probes(self) -> tuple[Mask, _Reach]:
        """One byte beyond a closed window; and how far the sides came, which such bytes do not count for."""
        chains = self._chains
        beyond = (chains.length == 1) & ~self._bare & ~chains.begins & (self._window_of_other() == 0)
        reach = self._reach(~beyond)
        # Each round takes some away; mostly the first takes none, and only nonsense needs many.
        for _ in range(_MOST_ROUNDS):
            kept = beyond & (chains.start == reach.before)
            if (kept == beyond).all():
                break
            beyond, reach = kept, self._reach(~kept)
        return beyond, reach

    def _reach(self, counts: Mask) -> _Reach:
        chains = self._chains
        lowest = int(self._stop.min(initial=0))
        now = chains.highest(np.where(counts, self._stop, lowest))
        return _Reach(now=now, before=chains.before(now, 0), first=chains.begins)

    def _below(self, reach: _Reach) -> Mask:
        """Keep-alives and Linux's probes of a window: nothing, or one old byte, at the last number sent."""
        chains = self._chains
        found: Mask = (chains.length <= 1) & ~self._bare & ~reach.first & (chains.start == reach.before - 1)
        # One byte that is not acknowledged yet is simply sent again.
        found &= (chains.length == 0) | ~self._heard | (self._told() > chains.start)
        found |= self._first_probes()
        return found

    def _told(self) -> Ints:
        """The other side's last acknowledgment as an offset of the own stream; far below where there is none."""
        chains = self._chains
        acknowledges = self._heard & (chains.flags[chains.other] & np.uint8(TcpFlag.ACK) != 0)
        step = (chains.ack[chains.other] - chains.seq).view(np.int32)
        return np.where(acknowledges, chains.start + step, -UNSEEN)

    def _pure_acks(self, reach: _Reach, *, probes: Mask, alive: Mask) -> Marks:
        """Segments without data that acknowledge what their side's last one did."""
        chains = self._chains
        same = (chains.length == 0) & ~self._bare & ~reach.first & (chains.start == reach.before)
        same &= chains.ack == chains.before(chains.ack, 0)
        window_before = chains.before(chains.window, 0)
        unchanged = chains.window == window_before
        open_window = chains.window > 0
        after_probe, after_alive = probes[chains.other], alive[chains.other]
        marks = np.zeros(len(same), np.uint16)
        marks[same & open_window & ~unchanged] |= np.uint16(SegmentMark.WINDOW_UPDATE)
        after_probe &= self._heard
        # Also of an open one, where the probe met the news on its way.
        marks[same & unchanged & after_probe] |= np.uint16(SegmentMark.ZERO_WINDOW_PROBE_ACK)
        # Where the other side was not captured at all, this may answer anything.
        present = np.zeros(int(chains.gid.max()) + 2, np.bool_)
        present[chains.gid] = True
        repeated = same & open_window & unchanged & ~after_probe & present[chains.gid ^ 1]
        after_alive &= self._heard
        marks[repeated & after_alive] |= np.uint16(SegmentMark.KEEP_ALIVE_ACK)
        marks[repeated & ~after_alive] |= np.uint16(SegmentMark.DUPLICATE_ACK)
        return marks

    def _acknowledged(self) -> Ints:
        """What each acknowledges, as an offset of the other side's stream; far below where that is not known."""
        chains = self._chains
        knows = self._heard & chains.has(TcpFlag.ACK)
        step = (chains.ack - chains.seq[chains.other]).view(np.int32)
        return np.where(knows, chains.start[chains.other] + step, -UNSEEN)

    def _pieces(self, reach: _Reach, gaps: Mask) -> Pieces:
        """The streams with holes, in pieces."""
        chains = self._chains
        holed = np.zeros(int(chains.rank[-1]) + 1, np.bool_)
        holed[chains.rank[gaps]] = True
        # Before the first segment seen: that one came too early.
        holed[chains.rank[self._spans & (chains.start < 0)]] = True
        acknowledged = self._acknowledged()
        acks = np.flatnonzero(self._heard & (acknowledged > reach.now[chains.other]))
        sender, reached = chains.rank[chains.other[acks]], reach.now[chains.other[acks]]
        holed[sender] = True
        rows = np.flatnonzero(holed[chains.rank] & (self._stop > chains.start))
        return first_seen(
            chains.rank[rows],
            chains.start[rows],
            self._stop[rows],
            chains.moment[rows],
            (np.concatenate((sender, sender)), np.concatenate((reached, acknowledged[acks]))),
        )

    def _acked_unseen(self, pieces: Pieces) -> Ints:
        """Places of the first ACK of each piece that it came before."""
        chains = self._chains
        if not len(pieces.start):
            return np.zeros(0, np.int64)
        sides = int(chains.rank[-1]) + 1
        # Whose acknowledgments speak of a side's stream: those of the other side of its flow.
        acker = np.full(sides, -1, np.int64)
        rows = np.flatnonzero(self._heard)
        acker[chains.rank[chains.other[rows]]] = chains.rank[rows]
        bounds = np.append(np.flatnonzero(chains.begins), len(chains.row))
        # Within what can be lifted side by side; only nonsense is further off.
        acknowledged = np.clip(self._acknowledged(), -1 << 39, 1 << 39)
        low = min(int(acknowledged.min()), int(pieces.start.min()))
        spread = max(int(acknowledged.max()), int(pieces.stop.max())) - low + 2
        lifted = np.maximum.accumulate(acknowledged - low + chains.rank * spread)
        by = acker[pieces.sender]
        place = np.searchsorted(lifted, pieces.start - low + by * spread, side="right")
        found = (by >= 0) & (place < bounds[by + 1])
        place = place[found]
        early = chains.moment[place] < pieces.first[found]
        result: Ints = np.unique(place[early])
        return result

    def _late(self, reach: _Reach, pieces: Pieces, *, duplicates: Mask, probes: Mask) -> Marks:
        """Segments that begin before what was sent: again, or out of order."""
        chains = self._chains
        marks = np.zeros(len(chains.row), np.uint16)
        late = self._spans & ~reach.first & ~probes & (chains.start < reach.before)
        # The last byte again with new ones behind it: the byte had been a probe.
        late &= (chains.length <= 1) | (chains.start != reach.before - 1)
        late &= ~self._second_of_simultaneous_open()
        rows = np.flatnonzero(late)
        if not len(rows):
            return marks
        heard, told = self._heard[rows], self._told()[rows]
        other = chains.other[rows]
        spurious = heard & (chains.length[rows] > 0) & (chains.start[rows] + chains.length[rows] <= told)
        filled = np.zeros(len(chains.row), np.bool_)
        if len(pieces.start):
            below = np.empty(len(chains.row), np.int64)
            below[chains.moment] = reach.before
            filled[brought(pieces, below)] = True
        rtt = self._rtt_ns[rows]
        # Sent again takes a round trip from when the hole showed; what was overtaken comes sooner.
        soon = chains.when[rows] - self._passed(reach, rows) < np.where(rtt > 0, rtt, REORDERING_NS)
        reordered = ~spurious & soon & filled[chains.moment[rows]]
        lately = heard & (chains.when[rows] - chains.when[other] < FAST_NS)
        fast = ~spurious & ~reordered & lately & (self._repeats(duplicates)[other] >= _ENOUGH_DUPLICATES)
        fast &= chains.start[rows] >= told
        silent = chains.when[rows] - self._last_sent()[rows]
        timeout = ~spurious & ~fast & ~reordered & (silent >= np.maximum(rtt, TIMEOUT_NS))
        marks[rows] |= np.where(reordered, SegmentMark.OUT_OF_ORDER, SegmentMark.RETRANSMISSION).astype(np.uint16)
        marks[rows[spurious]] |= np.uint16(SegmentMark.SPURIOUS_RETRANSMISSION)
        marks[rows[fast]] |= np.uint16(SegmentMark.FAST_RETRANSMISSION)
        marks[rows[timeout]] |= np.uint16(SegmentMark.RTO)
        return marks

    def _passed(self, reach: _Reach, rows: Ints) -> Ints:
        """When the side first went beyond the first byte of each of these rows."""
        chains = self._chains
        low = min(int(reach.now.min()), int(chains.start[rows].min()))
        spread = int(reach.now.max()) - low + 2
        lifted = reach.now - low + chains.rank * spread
        found: Ints = chains.when[
            np.searchsorted(lifted, chains.start[rows] - low + chains.rank[rows] * spread, "right")
        ]
        return found

    def _second_of_simultaneous_open(self) -> Mask:
        """The SYN-ACK that answers the other's SYN, after the own SYN."""
        chains = self._chains
        opens, both = np.uint8(TcpFlag.SYN), np.uint8(TcpFlag.SYN | TcpFlag.ACK)
        own_before = chains.before(chains.flags, 0)
        found: Mask = (chains.flags & both == both) & (own_before & both == opens)
        return found

    def _repeats(self, duplicates: Mask) -> Ints:
        """How many duplicates of its acknowledgment each side had sent, the row included."""
        chains = self._chains
        count = np.cumsum(duplicates)
        changed = chains.begins | (chains.ack != chains.before(chains.ack, 0))
        found: Ints = count - count[chains.last(changed)]
        return found

    def _last_sent(self) -> Ints:
        """When the side sent its last segment that takes sequence numbers before."""
        chains = self._chains
        last = chains.before(chains.last(self._spans | chains.begins), 0)
        return chains.when[last]
