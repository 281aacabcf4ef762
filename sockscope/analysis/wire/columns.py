"""Flow facts as columns: which packets make one connection, and what each side of it did.

All arrays here concern TCP rows sorted by (endpoints, time); `gid` is flow * 2 + side.
Source: RFC 9293 (sequence numbers, the handshake, the close).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.model.columns import pieces
from sockscope.model.tcp import TcpFlag

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

NEVER = np.int64(2**63 - 1)
"""Stands for "not seen" in time columns."""

REORDERING_NS = 3_000_000
"""Where bytes are missing from the capture or came out of order, a late segment that comes within this
time of a later one is reordering, not a retransmission (the threshold that Wireshark uses)."""

COPY_NS = 1_000_000

_NEAR_ROWS = 1 << 13
"""Rows of the packet table that fit into the CPU's nearer caches."""

_MAPPED, _LOW_WORD = np.uint64(0xFFFF0000), np.uint64(0xFFFFFFFF)
_WORD_BITS, _PORT_BITS = np.uint64(32), np.uint64(16)

_OFFSET_LIMIT = 1 << 38
"""Sequence offsets within a flow are held within ± this: only nonsense goes further."""


def endpoints(records: npt.NDArray[np.void]) -> tuple[Words, Words]:
    """Each row's source and destination as numbers: equal exactly where address and port are equal."""
    source, destination = np.empty(len(records), np.uint64), np.empty(len(records), np.uint64)
    # A piece at a time, so that what is read of a row for one column is at hand for the next.
    for part in pieces(len(records), _NEAR_ROWS):
        for numbers, address, port in ((source, "src", "sport"), (destination, "dst", "dport")):
            if not _number_v4(numbers[part], records[part], address, port):
                return _number_all(records)
    return source, destination


def _number_v4(out: Words, records: npt.NDArray[np.void], address: str, port: str) -> bool:
    """Fill in what IPv4 addresses (v4-mapped) and ports are as numbers; whether all were IPv4."""
    halves = records[address].view("<u8")
    np.right_shift(halves[:, 1], _WORD_BITS, out=out)
    out <<= _PORT_BITS
    out |= records[port]
    return bool(((halves[:, 0] == 0) & (halves[:, 1] & _LOW_WORD == _MAPPED)).all())


def _number_all(records: npt.NDArray[np.void]) -> tuple[Words, Words]:
    """IPv6 addresses are numbered from 2**32 on, above all IPv4 ones."""
    halves = [records[name].view("<u8") for name in ("src", "dst")]
    v6 = [(h[:, 0] != 0) | (h[:, 1] & _LOW_WORD != _MAPPED) for h in halves]
    wide = np.concatenate([h[mask] for h, mask in zip(halves, v6, strict=True)])
    order, new = group_order(wide[:, 0], wide[:, 1])
    ids = np.empty(len(order), np.uint64)
    ids[order] = np.cumsum(new).astype(np.uint64) + np.uint64(2**32)
    source, destination = (h[:, 1] >> _WORD_BITS for h in halves)
    split = int(v6[0].sum())
    source[v6[0]], destination[v6[1]] = ids[:split], ids[split:]
    for number, port in ((source, "sport"), (destination, "dport")):
        number <<= _PORT_BITS
        number |= records[port]
    return source, destination


def group_order(low: Words, high: Words) -> tuple[Ints, Mask]:
    """Rows grouped by (low, high), each group in row order; and where, in that order, groups begin.

    A 64-bit sort of (hash, row) packed in one word is several times faster than an argsort; a collision of
    hashes is seen (rows of one hash that differ) and then sorted the plain way.
    """
    n = len(low)
    row_bits = np.uint64(max(n - 1, 1).bit_length())
    mixed = (low * np.uint64(0x9E3779B97F4A7C15)) ^ (high * np.uint64(0xC2B2AE3D27D4EB4F))
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    rows_mask = (np.uint64(1) << row_bits) - np.uint64(1)
    packed = (mixed & ~rows_mask) | np.arange(n, dtype=np.uint64)
    packed.sort()
    order = (packed & rows_mask).astype(np.int64)
    hashes = packed >> row_bits
    starts = _differ(low[order], high[order])
    if (starts[1:] & (hashes[1:] == hashes[:-1])).any():
        order = np.lexsort((high, low)).astype(np.int64)
        starts = _differ(low[order], high[order])
    return order, starts


def _differ(low: Words, high: Words) -> Mask:
    """Which rows are not as the one before."""
    starts = np.ones(len(low), np.bool_)
    starts[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    return starts


def copies(records: npt.NDArray[np.void], rows: Ints, packet_ns: Ints) -> Mask:
    """Which rows another interface showed within a millisecond before: a VLAN and its parent, a bridge and its port.

    Only what is the same in all that TCP says is a copy, so that neither asymmetric routes nor one interface
    described twice lose anything.

    Args:
        records, packet_ns: the whole table. rows: shape (n,), TCP rows in order of time.

    Returns:
        Shape (n,).
    """
    out = np.zeros(len(rows), bool)
    interface = records["interface"][rows]
    if (interface == interface[0]).all():
        return out
    picked, when = records[rows], packet_ns[rows]
    source, destination = endpoints(picked)
    sequence = picked["seq"].astype(np.uint64) << np.uint64(32) | picked["ack"]
    rest = (
        picked["payload_bytes"].astype(np.uint64) << np.uint64(32)
        | picked["window"].astype(np.uint64) << np.uint64(16)
        | picked["flags"]
    )
    spread = np.uint64(0x9E3779B97F4A7C15)
    order, _ = group_order(source * spread ^ sequence, destination * spread ^ rest)
    before, after = order[:-1], order[1:]
    same = (when[after] - when[before] <= COPY_NS) & (interface[after] != interface[before])
    for column in (source, destination, sequence, rest):
        same &= column[after] == column[before]
    out[after[same]] = True
    return out


def split_reuse(starts: Mask, rows: Ints, forward: Mask, syns: npt.NDArray[np.void]) -> Mask:
    """Where connections begin: at the groups' starts, and at each handshake with another initial sequence number.

    A SYN of the same number is a retransmission; SYNs of both sides in a row are a simultaneous open. A SYN-ACK may
    acknowledge data of the SYN too (TCP Fast Open, RFC 7413).

    Args:
        starts: shape (n,), where groups of packets between the same endpoints begin.
        rows: shape (k,), which of these packets carry a SYN. forward: shape (k,), which way they went.
        syns: shape (k,), PACKET_DTYPE, these packets.
    """
    out = starts.copy()
    if not len(rows):
        return out
    direction = forward.astype(np.int64)
    seq, ack, length = syns["seq"], syns["ack"], syns["payload_bytes"]
    group = np.cumsum(starts)[rows]
    answers = (syns["flags"] & TcpFlag.ACK) != 0
    # Who opens with which number: a SYN-ACK names the opener's in its acknowledgment.
    isn = np.where(answers, ack - np.uint32(1), seq)
    opener = np.where(answers, 1 - direction, direction)
    known = np.zeros(len(rows), bool)
    # Where both open at once, their SYNs come in turn, some of them twice.
    for back in range(1, 6):
        if len(rows) <= back:
            break
        beyond = isn[back:] - isn[:-back]
        brought = np.where(answers[back:] & ~answers[:-back], length[:-back], np.uint32(0))
        same = (group[back:] == group[:-back]) & (beyond <= brought) & (opener[back:] == opener[:-back])
        known[back:] |= same
    together = np.zeros(len(rows), bool)
    together[1:] = (
        (group[1:] == group[:-1])
        & ~answers[1:]
        & ~answers[:-1]
        & (opener[1:] != opener[:-1])
        & (rows[1:] == rows[:-1] + 1)
    )
    out[rows[~known & ~together]] = True
    return out


def first_times(gid: Ints, when: Ints, count: int) -> Ints:
    """Earliest time of each gid; NEVER where it has none. Rows of a gid are in order of time."""
    out = np.full(count, NEVER)
    out[gid[::-1]] = when[::-1]
    return out


def last_times(gid: Ints, when: Ints, count: int) -> Ints:
    """Latest time of each gid; NEVER where it has none."""
    out = np.full(count, NEVER)
    out[gid] = when
    return out


def at_or_after(value: npt.NDArray[np.uint32], mark: npt.NDArray[np.uint32]) -> Mask:
    """Sequence comparison modulo 2**32 (RFC 9293 section 3.4)."""
    return (value - mark).astype(np.uint32) < np.uint32(0x80000000)


def distinct_bytes(gid: Ints, seq: npt.NDArray[np.uint32], length: Ints, count: int) -> Ints:
    """How many sequence bytes each gid's segments brought, each byte counted once; shape (count,).

    Args:
        gid, length: shape (n,), rows with payload, each gid's in order of time (gids may interleave).
        seq: shape (n,), uint32, sequence number of the first byte.
        count: number of gids.
    """
    if not len(gid):
        return np.zeros(count, np.int64)
    order = np.argsort(gid, kind="stable")
    gid, seq, length = gid[order], seq[order], length[order]
    begins = np.ones(len(gid), bool)
    begins[1:] = gid[1:] != gid[:-1]
    rank = np.cumsum(begins) - 1
    # Unwrapped: steps are signed 32-bit differences, summed from the first segment on.
    step = np.zeros(len(gid), np.int64)
    step[1:] = (seq[1:] - seq[:-1]).astype(np.uint32).view(np.int32)
    total = np.cumsum(step)
    start = np.clip(total - total[begins][rank], -_OFFSET_LIMIT, _OFFSET_LIMIT)
    stop = start + length
    reach = _reach_before(start, stop, rank, begins)
    late = start < reach
    gap = np.zeros(int(rank[-1]) + 1, bool)
    gap[rank[start > reach]] = True
    # Before the first segment seen: that one came too early.
    gap[rank[start < 0]] = True
    new = np.clip(stop - np.maximum(start, reach), 0, length)
    if (gap[rank] & late).any():
        new = _union(start, stop, rank, gap, new)
    return np.bincount(gid, weights=new, minlength=count).astype(np.int64)


def _reach_before(start: Ints, stop: Ints, rank: Ints, begins: Mask) -> Ints:
    """The highest sequence offset that the rows before, of the same rank, reached; a first row's own start."""
    span = np.int64(int(stop.max()) - int(start.min()) + 1)
    lifted = np.maximum.accumulate(stop + rank * span)
    reach = np.empty(len(start), np.int64)
    reach[1:] = lifted[:-1] - rank[1:] * span
    reach[begins] = start[begins]
    return reach


def _union(start: Ints, stop: Ints, rank: Ints, gap: Mask, new: Ints) -> Ints:
    """New bytes anew for ranks with gaps: in order of sequence, what reaches beyond all before is new."""
    rows = np.flatnonzero(gap[rank])
    order = rows[np.lexsort((start[rows], rank[rows]))]
    begins = np.ones(len(order), bool)
    begins[1:] = rank[order[1:]] != rank[order[:-1]]
    reach = _reach_before(start[order], stop[order], np.cumsum(begins) - 1, begins)
    out = new.copy()
    out[order] = np.maximum(stop[order] - np.maximum(start[order], reach), 0)
    return out
