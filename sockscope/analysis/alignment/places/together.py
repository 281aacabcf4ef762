"""Captures of several places as one: their clocks laid together, and each connection told from one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.alignment.bounds import Fit
from sockscope.analysis.alignment.clocks import Files
from sockscope.analysis.alignment.packets import Laid
from sockscope.analysis.alignment.places.between import Between, between
from sockscope.analysis.alignment.places.path_loss import PathLoss, path_loss
from sockscope.analysis.alignment.places.place import Place, places, ways_of
from sockscope.analysis.alignment.places.sight import Sight, choose
from sockscope.model.columns import picked
from sockscope.model.info import Alignment
from sockscope.model.packets import Packets
from sockscope.model.sockaddr import from_key

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_UDP = 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Captures of several places.

    Attributes:
        times: shape (packets,), by the clock of the reference.
        told: shape (packets,), those to go on with: all but what other places have of a connection that is told from
            one, and of datagrams of which the reference has its own.
        reference: the name of the capture that tells most of what several saw.
        laid: how its packets lie beside the calls; None: they have nothing in common with them.
        alignments: of the other places. notes: what both together tell.
    """

    times: Ints
    told: Mask
    reference: str
    laid: Laid | None
    alignments: tuple[Alignment, ...]
    notes: tuple[str, ...]


def lay_together(
    packets: Packets, packet_ns: Ints, files: Files, beside: Callable[[Ints], Laid | None]
) -> Together | None:
    """Find the places, lay their clocks together, choose from where each connection is told, count what was lost.

    Args:
        packets, packet_ns: of all files, with times as they stand.
        files: which are from which.
        beside: how these packets lie beside the calls; None: they have nothing in common with them.

    Returns:
        None where all is of one place.
    """
    found = places(packets, packet_ns, files)
    if not found:
        return None
    laid = [beside(np.sort(one.rows)) for one in found]
    known = [(each.fit.uncertainty_ns, number) for number, each in enumerate(laid) if each is not None]
    sight = choose(found, min(known)[1] if known else -1)
    tree = _Tree(found, sight)
    times = packet_ns.copy()
    for number, fit in tree.moved:
        rows = np.isin(files.number, found[number].files)
        times[rows] += fit.offsets(times[rows])
    told = ~_again(packets, np.isin(files.number, found[sight.reference].files))
    for number, one in enumerate(found):
        told[one.copied] = False
        told[one.rows] = sight.told[one.table.flow + sight.first[number]]
    return Together(
        times=times,
        told=told,
        reference=found[sight.reference].name,
        laid=laid[sight.reference],
        alignments=tuple(tree.alignments),
        notes=(*tree.notes, *_left_out(found, sight)),
    )


def _left_out(found: Sequence[Place], sight: Sight) -> list[str]:
    """Connections that are told from nowhere."""
    reference = found[sight.reference]
    untold = ~np.isin(sight.connection, sight.connection[sight.told])
    for number, one in enumerate(found):
        # Of some nothing shows that both have them: only keep-alives.
        untold[one.table.flow[np.isin(one.way, reference.way)] + sight.first[number]] = False
    count = len(np.unique(sight.connection[untold]))
    if not count:
        return []
    many = f"{_counted(count, 'connection')} that {reference.name} lacks {'is' if count == 1 else 'are'} left out"
    return [f"{many}: it lies beside the calls, and what else was captured is too far from them"]


def _again(packets: Packets, own: Mask) -> Mask:
    """Datagrams of other places that go a way of which the reference has some: shape (packets,)."""
    out = np.zeros(len(packets), np.bool_)
    rows = np.flatnonzero(packets.records["protocol"] == _UDP)
    way, mine = ways_of(picked(packets.records, rows)), own[rows]
    out[rows] = ~mine & np.isin(way, way[mine])
    return out


class _Tree:
    """The places, each laid beside the one of those before it with which it has most in common.

    Attributes:
        moved: places and what was added to their times, in order.
        alignments, notes: of them.
    """

    def __init__(self, found: Sequence[Place], sight: Sight) -> None:
        self._places = found
        self._sight = sight
        self._when = [one.table.when for one in found]
        self._error_ns = {sight.reference: 0}
        self.moved: list[tuple[int, Fit]] = []
        self.alignments: list[Alignment] = []
        self.notes: list[str] = []
        pairs: dict[tuple[int, int], Between] = {}
        newest = sight.reference
        while True:
            left = [each for each in range(len(found)) if each not in self._error_ns]
            for each in left:
                if (pair := between(found[newest], found[each], self._when[newest])) is not None:
                    pairs[newest, each] = pair
            open_ = [each for each in pairs if each[1] in left]
            if not open_:
                break
            # What can be laid first, then what has most in common.
            best = max(open_, key=lambda each: (pairs[each].fit is not None, pairs[each].segments))
            self._place(*best, pairs[best])
            newest = best[1]
        for each in left:
            self._alone(each)

    def _place(self, one: int, other: int, pair: Between) -> None:
        here, there, fit = self._places[one], self._places[other], pair.fit
        basis = f"{pair.segments:,} segments of {_counted(pair.connections, 'connection')}"
        self._error_ns[other] = self._error_ns[one]
        offset_ns, error_ns = 0, -1
        both = self._both(one, other)
        if fit is None:
            self.notes.append(
                f"{both}; {there.name}: its times of what it has in common with {here.name} contradict each other (a "
                "clock was set?), so they were taken as they stand"
            )
        else:
            self._error_ns[other] += max(fit.uncertainty_ns, 0)
            self._when[other] = self._when[other] + fit.offsets(self._when[other])
            self.moved.append((other, fit))
            offset_ns, error_ns = fit.offset_ns, self._error_ns[other]
            basis += f"; its clock gains {-fit.slope * 1e6:+.1f} ppm" if fit.slope else ""
            basis += ", all of one direction" if fit.one_sided else ""
            self.notes.append("; ".join([both, *self._lost(one, other, pair)]))
        self.alignments.append(
            Alignment(source=there.name, offset_ns=offset_ns, uncertainty_ns=error_ns, basis=basis, beside=here.name)
        )

    def _both(self, one: int, other: int) -> str:
        first, second = (self._places[each].name for each in sorted((one, other)))
        sight = self._sight
        mine, theirs = (sight.connection[sight.first[each] : sight.first[each + 1]] for each in (one, other))
        shared = np.intersect1d(mine, theirs)
        teller = sight.place[sight.told & np.isin(sight.connection, shared)]
        # It may be a third place.
        told = np.bincount(teller, minlength=len(self._places))
        most = max(range(len(told)), key=lambda each: (told[each], each == one))
        but = f" but for {len(teller) - told[most]:,}" if told[most] < len(teller) else ""
        how = f"told from {self._places[most].name}{but}" if len(teller) else "told from neither"
        return f"{first} and {second} both saw {_counted(len(teller) or len(shared), 'connection')}, {how}"

    def _lost(self, one: int, other: int, pair: Between) -> list[str]:
        """What left one and did not come to the other, either way."""
        if not (self._places[one].whole and self._places[other].whole):
            return []
        ways, holes, passed, lost = [], [], 0, 0
        for out, near, far, rows in (
            (1, one, other, (pair.here, pair.there)),
            (0, other, one, (pair.there, pair.here)),
        ):
            here, there = self._places[near], self._places[far]
            mine = pair.outward == out
            loss = path_loss(here, there, (rows[0][mine], rows[1][mine]), (self._when[near], self._when[far]))
            if loss is None:
                continue
            if loss.hole:
                holes.append(f"{there.name} did not capture all that came to it, so what was lost before is not known")
                continue
            passed, lost = passed + int(loss.passed.sum()), lost + int(loss.lost.sum())
            ways += [_one_way(here, there, loss)] if loss.lost.any() else []
        if not passed:
            return holes
        words = (
            f"{'none' if not lost else f'{lost:,}'} of {passed:,} segments {'was' if lost < 2 else 'were'} lost between"
        )
        return [f"{words}: {', '.join(ways)}" if ways else words, *holes]

    def _alone(self, each: int) -> None:
        one, other = self._places[each], self._places[self._sight.reference]
        if one.begin_ns <= other.end_ns and other.begin_ns <= one.end_ns:
            self.notes.append(
                f"{one.name} and {other.name} have no segments in common that tell how their clocks differ: "
                "their times were taken as they stand"
            )


def _one_way(near: Place, far: Place, loss: PathLoss) -> str:
    """`10 on the way to client.pcap (4 of 10.0.0.2:80 → 10.0.0.1:48392)`."""
    worst = int(np.argmax(loss.lost))
    row = int(np.flatnonzero(near.way == loss.way[worst])[0])
    most = f"{int(loss.lost[worst]):,} of {_ends(near, row)}"
    return f"{int(loss.lost.sum()):,} on the way to {far.name} ({most})"


def _ends(place: Place, row: int) -> str:
    record = place.table.records[place.table.order[row]]
    source = from_key(record["src"].tobytes(), int(record["sport"]))
    return f"{source} → {from_key(record['dst'].tobytes(), int(record['dport']))}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
