"""A capture laid beside a log: which of its flows are the log's connections, and how far its clock is off."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sockscope.analysis.alignment.bounds import Bounds, Fit, fit
from sockscope.analysis.alignment.candidates import NO_KEY, Moments, Naming, moments, namings
from sockscope.analysis.alignment.messages import NO_BASE, message_moments, stream_bases
from sockscope.analysis.alignment.sides import Sides
from sockscope.analysis.alignment.talks import Talks
from sockscope.analysis.alignment.voting import Cluster, densest
from sockscope.analysis.wire.columns import NEVER

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_MARGIN_NS = 1_000_000
_WEIGHT = 6.0
"""Standard deviations by which agreement stands out from chance."""
_SURE_VOTES = 3
_MANY_VOTES = 10
_CLOSE_NS = 1_000_000_000
"""So near to each other few votes must lie to be believed, and many that bound the offset on one side only."""
_SHARE = 0.05
"""Of the connections that might be common so many are, or what agrees does so by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Laid:
    """How a capture lies beside a log.

    Attributes:
        fit: what to add to its times.
        handshakes, transfers, closes: how many moments it rests on.
        talk, side: shape (n,), the connections of the log and the end of the flow that each is.
        one_host: all of these never left the machine that the log is of, and so the capture is of it, too.
    """

    fit: Fit
    handshakes: int
    transfers: int
    closes: int
    talk: Ints
    side: Ints
    one_host: bool = False


def lay_beside(talks: Talks, sides: Sides, *, log_resolution_ns: int = 1, packet_resolution_ns: int = 1) -> Laid | None:
    """Find the offset from what both tell of the same connections.

    Args:
        talks: the log's connections.
        sides: the capture's flows, seen from either end, their times those of the capture.
        log_resolution_ns, packet_resolution_ns: how fine the times are; they are cut off, not rounded.

    Returns:
        None where they have no connection in common, or nothing that tells.
    """
    if not len(talks) or not len(sides):
        return None
    named = namings(talks, sides)
    matched = moments(talks, sides, named)
    cluster = _stands_out(matched)
    whole = np.ones(len(talks), np.bool_)
    if cluster is None:
        exact = [part for one in named if one.exact for part in message_moments(talks, sides, one, whole)]
        cluster = _stands_out(exact)
        if cluster is None:
            return None
    margin = max(_MARGIN_NS, cluster.most_ns - cluster.least_ns, 2 * log_resolution_ns)
    least, most = cluster.least_ns - margin, cluster.most_ns + margin
    side_of = _nearest(matched, cluster, least, most, len(talks))
    for one in named:
        if one.exact:
            _by_messages(talks, sides, one, side_of, least, most)
    if not _sizes_agree(talks, sides, side_of):
        return None
    upper, lower, counts = _bounds(talks, sides, side_of, least, most)
    found = fit(
        Bounds(talk=upper.talk, at_ns=upper.at_ns, offset_ns=upper.offset_ns + _coarse(log_resolution_ns, 2)),
        Bounds(talk=lower.talk, at_ns=lower.at_ns, offset_ns=lower.offset_ns - _coarse(packet_resolution_ns, 1)),
        len(talks),
    )
    if found is None:
        return None
    vague = found.uncertainty_ns > _CLOSE_NS + 2 * log_resolution_ns
    if found.one_sided:
        coarse = _coarse(log_resolution_ns, 2) + _coarse(packet_resolution_ns, 1)
        found = replace(found, below_ns=found.below_ns + coarse, above_ns=found.above_ns + coarse)
    if cluster.votes < _MANY_VOTES and vague:
        return None
    if found.one_sided and cluster.most_ns - cluster.least_ns > _CLOSE_NS + 2 * log_resolution_ns:
        return None
    talk = np.flatnonzero(side_of >= 0)
    return Laid(
        fit=found,
        handshakes=counts[0],
        transfers=counts[1],
        closes=counts[2],
        talk=talk,
        side=side_of[talk],
        one_host=all(
            sides.flows[side // 2].ends[0].packed == sides.flows[side // 2].ends[1].packed for side in side_of[talk]
        ),
    )


def _coarse(resolution_ns: int, times: int) -> int:
    return times * resolution_ns if resolution_ns > 1 else 0


def _stands_out(matched: list[Moments]) -> Cluster | None:
    """The offset that repeats, where that is no chance."""
    parts = [one.differences() for one in matched]
    if not parts:
        return None
    # A moment of another kind is another voter only where it is another connection's.
    cluster = densest(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))
    if cluster is None:
        return None
    candidates = [np.unique(one.talk[np.isin(one.talk_key, one.side_key)]) for one in matched]
    possible = len(np.unique(np.concatenate(candidates)))
    if cluster.votes < _SURE_VOTES:
        # Alone, or nearly so, among a few.
        return cluster if all(one.exact for one in matched) and 2 * cluster.votes > possible else None
    if cluster.weight < min(_WEIGHT, 0.9 * cluster.votes) or cluster.votes < _SHARE * possible:
        return None
    if cluster.votes < _MANY_VOTES and cluster.most_ns - cluster.least_ns > _CLOSE_NS:
        return None
    return cluster


def _nearest(matched: list[Moments], cluster: Cluster, least: int, most: int, count: int) -> Ints:
    """The side of each talk whose offset fits best, each taken once: shape (talks,), NO_KEY none."""
    side_of = np.full(count, NO_KEY, np.int64)
    middle = (cluster.least_ns + cluster.most_ns) // 2
    for one in matched:
        talk, side, apart = one.between(least, most)
        free = (side_of[talk] < 0) & ~np.isin(side, side_of)
        talk, side, apart = talk[free], side[free], apart[free]
        if not one.exact:
            # Of the same port and sizes: only where there is no other it might be.
            _, where, number = np.unique(talk, return_inverse=True, return_counts=True)
            alone = number[where.reshape(-1)] == 1
            _, where, number = np.unique(side, return_inverse=True, return_counts=True)
            alone &= number[where.reshape(-1)] == 1
            talk, side, apart = talk[alone], side[alone], apart[alone]
        order = np.argsort(np.abs(apart - middle), kind="stable")
        talk, side = talk[order], side[order]
        _, first = np.unique(talk, return_index=True)
        talk, side = talk[np.sort(first)], side[np.sort(first)]
        _, first = np.unique(side, return_index=True)
        side_of[talk[first]] = side[first]
    return side_of


def _by_messages(talks: Talks, sides: Sides, naming: Naming, side_of: Ints, least: int, most: int) -> None:
    """Match what is left by the messages on it."""
    left = (side_of < 0) & (naming.talk_key >= 0)
    if not left.any():
        return
    votes = []
    parts = message_moments(talks, sides, naming, left)
    for moves, own, part in ((talks.reads, 1, parts[0]), (talks.writes, 0, parts[1])):
        row, segment, _ = part.between(least, most)
        votes.append(np.stack([moves.talk[row], sides.carried.direction[segment] ^ own], axis=1))
    pairs, count = np.unique(np.concatenate(votes), axis=0, return_counts=True)
    pairs = pairs[np.argsort(count, kind="stable")]
    fresh = ~np.isin(pairs[:, 1], side_of)
    side_of[pairs[fresh, 0]] = pairs[fresh, 1]


def _sizes_agree(talks: Talks, sides: Sides, side_of: Ints) -> bool:
    """What was moved on connections that both saw from beginning to end is the same for most."""
    talk = np.flatnonzero((side_of >= 0) & talks.from_start & (talks.closing_ns != NEVER))
    side = side_of[talk]
    whole = sides.carried.from_start[side] & sides.carried.from_start[side ^ 1] & (sides.our_fin_ns[side] != NEVER)
    whole &= (talks.read_bytes[talk] > 0) | (talks.written_bytes[talk] > 0)
    talk, side = talk[whole], side[whole]
    same = (talks.read_bytes[talk] == sides.received_bytes[side]) | (
        talks.written_bytes[talk] == sides.sent_bytes[side]
    )
    return bool(2 * same.sum() >= len(same))


def _bounds(
    talks: Talks, sides: Sides, side_of: Ints, least: int, most: int
) -> tuple[Bounds, Bounds, tuple[int, int, int]]:
    """Upper and lower bounds of the offset, and how many handshakes, transfers and closes they come from."""
    talk = np.flatnonzero(side_of >= 0)
    side = side_of[talk]
    upper: list[tuple[Ints, Ints, Ints]] = []
    lower: list[tuple[Ints, Ints, Ints]] = []
    handshakes = closes = 0
    server = side & 1 == 1
    for ours, theirs, into, opens in (
        (talks.accepted_ns[talk], np.where(server, sides.opened_ns[side], NEVER), upper, True),
        (talks.connecting_ns[talk], np.where(server, NEVER, sides.syn_ns[side]), lower, True),
        (talks.connected_ns[talk], np.where(server, NEVER, sides.synack_ns[side]), upper, False),
        (talks.told_end_ns[talk], sides.their_fin_ns[side], upper, False),
        (talks.closing_ns[talk], sides.our_fin_ns[side], lower, False),
    ):
        known = (ours != NEVER) & (theirs != NEVER)
        into.append((talk[known], theirs[known], ours[known]))
        handshakes += int(known.sum()) if opens else 0
        closes += 0 if opens else int(known.sum())
    transfers = 0
    for moves, own, into in ((talks.reads, 1, upper), (talks.writes, 0, lower)):
        direction = np.where(side_of >= 0, side_of ^ own, NO_KEY)
        base = _bases(talks, sides, direction, own, least, most)
        rows = np.flatnonzero((base[moves.talk] != NO_BASE) & (moves.when != NEVER))
        # What a read returned had come to its last byte; what a write gave goes out from its first on.
        wanted = moves.start[rows] + base[moves.talk[rows]] + (moves.count[rows] if own else 1)
        passed = sides.carried.reach.reached(direction[moves.talk[rows]], wanted)
        rows, passed = rows[passed != -1], passed[passed != -1]
        into.append((moves.talk[rows], passed, moves.when[rows]))
        transfers += len(rows)
    return _joined(upper), _joined(lower), (handshakes, transfers, closes)


def _bases(talks: Talks, sides: Sides, direction: Ints, own: int, least: int, most: int) -> Ints:
    """Where each talk's stream begins in that of its flow; NO_BASE: not to be told."""
    moves = talks.reads if own else talks.writes
    known = (direction >= 0) & talks.from_start & sides.carried.from_start[direction]
    base = np.where(known, 0, NO_BASE)
    late = (direction >= 0) & ~known
    if late.any():
        told = stream_bases(moves, sides, np.where(late, direction, NO_KEY), least, most)
        base[late] = told[late]
    if not own:
        # More on the wire than the log has written: it lacks writes, and later bytes would be taken for earlier ones.
        base[known & (sides.sent_bytes[direction] > talks.written_bytes)] = NO_BASE
    return base


def _joined(parts: list[tuple[Ints, Ints, Ints]]) -> Bounds:
    talk, at, ours = (np.concatenate([part[column] for part in parts]) for column in range(3))
    return Bounds(talk=talk, at_ns=at, offset_ns=ours - at)
