"""Descriptor numbers through time: what opened and closed each, and what lies between."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.model.calls import Call
from sockscope.model.event_rows import Rows, find_sections, words_at
from sockscope.model.events import Section, unpack_sections
from sockscope.recording.keep_columns import IS_SEND, RANK_BITS, Columns, Flags, of_calls

F_DUPFD, F_SETFD, F_SETFL, F_DUPFD_CLOEXEC = 0, 2, 4, 1030
EBADF = 9

_OPENS = of_calls(
    {
        Call.socket, Call.accept, Call.accept4, Call.dup, Call.dup2, Call.dup3, Call.pidfd_open, Call.pidfd_getfd,
        Call.epoll_create, Call.epoll_create1, Call.openat, Call.open, Call.openat2, Call.creat, Call.eventfd,
        Call.eventfd2, Call.timerfd_create, Call.signalfd, Call.signalfd4, Call.memfd_create, Call.io_uring_setup,
    }
)  # fmt: skip
_PAIRS = of_calls({Call.socketpair, Call.pipe, Call.pipe2})
_SIGNALFDS = of_calls({Call.signalfd, Call.signalfd4})
_PASSES_ON = of_calls({Call.dup, Call.dup2, Call.dup3, Call.accept, Call.accept4})
"""What they open goes back to the descriptor in args[0]."""


@dataclass(slots=True, kw_only=True)
class Numbers:
    """Marks: a number of a process was opened, or closed. Sorted by process, number, rank.

    Attributes:
        rank: of the event. opens: it opened (else it closed).
        keys: group << RANK_BITS | rank, ascending; a group is one number of one process.
        groups: process << 32 | number, ascending: the groups' names.
        more: another mark of the same group follows.
        passes: shape (n,) by rank: the event passes on what args[0] names.
    """

    process: Rows
    rank: Rows
    opens: Flags
    keys: Rows
    groups: Rows
    more: Flags
    passes: Flags

    def mark_of(self, process: Rows, number: Rows, rank: Rows) -> Rows:
        """The last mark of each number by then: shape (k,); -1 where there is none."""
        if not len(self.keys):
            return np.full(len(rank), -1, np.int64)
        group = self.group_of(process, number)
        at = np.searchsorted(self.keys, group << RANK_BITS | rank, "right") - 1
        same = (group >= 0) & (at >= 0) & (self.keys[np.maximum(at, 0)] >> RANK_BITS == group)
        return np.where(same, at, -1)

    def group_of(self, process: Rows, number: Rows) -> Rows:
        """The group of each number; -1 where it was never opened or closed."""
        name = process << 32 | number & 0xFFFF_FFFF
        at = np.minimum(np.searchsorted(self.groups, name), max(len(self.groups) - 1, 0))
        if not len(self.groups):
            return np.full(len(name), -1, np.int64)
        return np.where(self.groups[at] == name, at, -1)


def is_copying_fcntl(columns: Columns) -> Flags:
    copies: Flags = (columns.call == Call.fcntl) & ((columns.a1 == F_DUPFD) | (columns.a1 == F_DUPFD_CLOEXEC))
    return copies


def find_numbers(columns: Columns) -> Numbers:
    """All marks of these events."""
    call, good = columns.call, (columns.ret >= 0) & ~columns.unreturned
    copies = is_copying_fcntl(columns)
    single = good & (_OPENS[call] | copies)
    single &= ~(_SIGNALFDS[call] & (columns.a0 >= 0))
    single &= ~((call == Call.dup2) & (columns.a0 == columns.ret))
    opened = np.flatnonzero(single)
    pair_rows, pair_numbers = _pairs(columns, np.flatnonzero(good & _PAIRS[call]))
    sent_rows, sent_numbers = carried(columns, np.flatnonzero(good & columns.rights & ~IS_SEND[call]))
    closed = np.flatnonzero((call == Call.close) & (columns.ret != -EBADF))
    rank = np.concatenate([opened, pair_rows, sent_rows, closed])
    number = np.concatenate([columns.ret[opened], pair_numbers, sent_numbers, columns.a0[closed]]) & 0xFFFF_FFFF
    opens = np.ones(len(rank), np.bool_)
    opens[len(rank) - len(closed) :] = False
    names = columns.process[rank] << 32 | number
    groups, group = np.unique(names, return_inverse=True)
    keys = group.reshape(-1).astype(np.int64) << RANK_BITS | rank
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    group = keys >> RANK_BITS
    more = np.append(group[1:] == group[:-1], False) if len(keys) else np.zeros(0, np.bool_)
    return Numbers(
        process=columns.process[rank[order]],
        rank=rank[order],
        opens=opens[order],
        keys=keys,
        groups=groups,
        more=more,
        passes=single & (_PASSES_ON[call] | copies),
    )


def _pairs(columns: Columns, ranks: Rows) -> tuple[Rows, Rows]:
    at, size = find_sections(columns.events, columns.row[ranks], Section.FD_PAIR)
    whole = size >= 8
    ranks, at = ranks[whole], at[whole]
    blob = columns.events.blob
    return np.concatenate([ranks, ranks]), np.concatenate([words_at(blob, at), words_at(blob, at + 4)])


def carried(columns: Columns, ranks: Rows) -> tuple[Rows, Rows]:
    """(rank, number) of every descriptor in these messages. One by one: they are rare, and of any length."""
    found: list[tuple[int, int]] = []
    for rank, row in zip(ranks.tolist(), columns.row[ranks].tolist(), strict=True):
        for kind, _, data in unpack_sections(columns.events.blob_of(row)):
            if kind == Section.CONTROL and data:
                found.extend((rank, number) for number in rights_numbers(data))
                break
    both = np.array(found, np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def rights_numbers(control: bytes) -> list[int]:
    """Descriptor numbers of every SCM_RIGHTS message in a raw msg_control (cmsg(3), 64-bit)."""
    numbers: list[int] = []
    at = 0
    while at + 16 <= len(control):
        length, level, kind = struct.unpack_from("<Qii", control, at)
        if length < 16:
            break
        if (level, kind) == (1, 1):
            data = control[at + 16 : at + length]
            numbers.extend(struct.unpack_from(f"<{len(data) // 4}i", data))
        at += (length + 7) & ~7
    return numbers


def between(sorted_keys: Rows, group: Rows, low: Rows, high: Rows) -> npt.NDArray[np.int64]:
    """How many keys of each group lie strictly between two ranks."""
    left = np.searchsorted(sorted_keys, group << RANK_BITS | low, "right")
    right = np.searchsorted(sorted_keys, group << RANK_BITS | high, "left")
    count: Rows = np.maximum(right - left, 0)
    return count
