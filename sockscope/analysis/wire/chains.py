"""Each side's segments in a row, their sequence numbers as plain offsets: no modulus, one order for all.

What came before a segment on its own side is then the row above; running maxima go over all flows at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sockscope.analysis.wire.columns import Ints, Mask
from sockscope.analysis.wire.neighbours import answers, neighbours
from sockscope.analysis.wire.segments import Segments
from sockscope.model.tcp import TcpFlag

Scalar = TypeVar("Scalar", bound=np.integer)

_LIMIT = 1 << 38
"""Offsets are held within ± this: only nonsense goes further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chains:
    """Segments side after side, each side's in order of time: no resets, nothing before a side's SYN. Shape (n,) each.

    Attributes:
        row: where each lies in the table; those of a flow are in order of time there.
        moment: its number in order of flow and time, over both sides.
        gid: flow * 2 + side; rank: the same without gaps.
        begins: where sides begin.
        other: the place (in these columns) of the other side's last segment before; -1.
        answer: the place of the other side's next; -1.
        start, stop: offsets of its first byte and behind its last, SYN and FIN taking one each.
        when, flags, seq, ack, window, length: as in the table.
    """

    row: Ints
    moment: Ints
    gid: Ints
    rank: Ints
    begins: Mask
    other: Ints
    answer: Ints
    start: Ints
    stop: Ints
    when: Ints
    flags: npt.NDArray[np.uint8]
    seq: npt.NDArray[np.uint32]
    ack: npt.NDArray[np.uint32]
    window: npt.NDArray[np.uint16]
    length: Ints

    @classmethod
    def of(cls, table: Segments, flows: Mask) -> Chains:
        """The segments of the flows that the mask, shape (flows,), names."""
        rows = np.flatnonzero(flows[table.flow] & ~table.has(TcpFlag.RST))
        # What a side sends before its SYN belongs to the connection before (a challenge ACK, RFC 5961 section 4).
        opens = np.flatnonzero(table.has(TcpFlag.SYN))[::-1]
        first_syn = np.full(table.flow_count * 2, -1, np.int64)
        first_syn[table.gid[opens]] = opens
        rows = rows[rows >= first_syn[table.gid[rows]]]
        flow, side = table.flow[rows], table.gid[rows] & 1
        begins = np.ones(len(rows), np.bool_)
        begins[1:] = flow[1:] != flow[:-1]
        near = neighbours(begins, side)
        later = answers(begins, side, np.ones(len(rows), np.bool_))
        order = np.argsort(np.cumsum(begins) * 2 + side, kind="stable")
        place = np.empty(len(rows) + 1, np.int64)
        place[order] = np.arange(len(rows))
        place[-1] = -1
        picked = rows[order]
        gid = table.gid[picked]
        starts = np.ones(len(rows), np.bool_)
        starts[1:] = gid[1:] != gid[:-1]
        rank = np.cumsum(starts) - 1
        seq, flags, length = table.seq[picked], table.flags[picked], table.length[picked]
        start = unwrapped(seq, starts, rank)
        span = length + (flags & np.uint8(TcpFlag.SYN) != 0) + (flags & np.uint8(TcpFlag.FIN) != 0)
        return cls(
            row=picked,
            moment=order,
            gid=gid,
            rank=rank,
            begins=starts,
            other=place[near.other[order]],
            answer=place[later[order]],
            start=start,
            stop=start + span,
            when=table.when[picked],
            flags=flags,
            seq=seq,
            ack=table.ack[picked],
            window=table.window[picked],
            length=length,
        )

    def has(self, flag: TcpFlag) -> Mask:
        """Which carry any of these flags."""
        found: Mask = (self.flags & np.uint8(flag)) != 0
        return found

    def highest(self, values: Ints) -> Ints:
        """The running maximum of each side, itself included."""
        low = int(values.min(initial=0))
        spread = int(values.max(initial=0)) - low + 1
        lifted = np.maximum.accumulate(values - low + self.rank * spread)
        found: Ints = lifted - self.rank * spread + low
        return found

    def last(self, mask: Mask) -> Ints:
        """The place of the last row of its side, itself included, for which the mask holds; -1 where none does."""
        places = np.arange(len(mask))
        last = np.maximum.accumulate(np.where(mask, places, -1))
        first = np.maximum.accumulate(np.where(self.begins, places, 0))
        found: Ints = np.where(last >= first, last, -1)
        return found

    def before(self, values: npt.NDArray[Scalar], none: int) -> npt.NDArray[Scalar]:
        """The value of the row before of the same side; `none` for the first."""
        out = np.full(len(values), none, values.dtype)
        out[1:] = np.where(self.begins[1:], none, values[:-1])
        return out


def unwrapped(numbers: npt.NDArray[np.uint32], begins: Mask, rank: Ints) -> Ints:
    """Sequence numbers counted from each run's first: steps are signed 32-bit differences (RFC 9293 section 3.4)."""
    if not len(numbers):
        return np.zeros(0, np.int64)
    step = np.zeros(len(numbers), np.int64)
    step[1:] = (numbers[1:] - numbers[:-1]).view(np.int32)
    total = np.cumsum(step)
    found: Ints = np.clip(total - total[begins][rank], -_LIMIT, _LIMIT)
    return found
