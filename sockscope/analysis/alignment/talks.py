"""What a log tells of its TCP connections, as columns: who with whom, when, and which bytes moved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.replay.assign import Assignment, moved_bytes
from sockscope.analysis.replay.control import IS_READ
from sockscope.analysis.replay.state import ReplayState
from sockscope.analysis.wire.columns import NEVER
from sockscope.analysis.wire.streams import running
from sockscope.model.calls import Call
from sockscope.model.descriptors import Ended, OpenFile
from sockscope.model.events import EventFlag, Events, is_seeded
from sockscope.model.seed import FileKind
from sockscope.model.sockaddr import Address, Family

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

Key = tuple[bytes, int, int]
"""Peer's address, peer's port, local port; empty or 0 for what the log does not tell."""

_INET = (Family.INET, Family.INET6)
_DATAGRAM = 2
SHUT_WR, SHUT_RDWR = 1, 2
_BY_CLOSE = (Ended.CLOSE, Ended.CLOSE_RANGE, Ended.REPLACED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Reads or writes that moved bytes, talk after talk, each talk's in the order of its stream: shape (k,) each.

    Attributes:
        talk: whose.
        start: place in the stream before it, counted from the first byte the log tells of.
        count: bytes moved.
        when: a read's return, a write's entry; NEVER where it is not known.
    """

    talk: Ints
    start: Ints
    count: Ints
    when: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Talks:
    """TCP connections of the log, one an open file: shape (n,) each, NEVER where a time is not known.

    Attributes:
        keys: who with whom.
        from_start: their beginning was seen, so no byte before it was missed.
        accepted_ns: when accept returned. connecting_ns: when connect was entered. connected_ns: when it returned 0.
        closing_ns: when the first call that ends our half was entered. told_end_ns: when a read first returned 0.
        read_bytes, written_bytes: in all.
        reads, writes: what moved.
    """

    keys: list[Key]
    from_start: Mask
    accepted_ns: Ints
    connecting_ns: Ints
    connected_ns: Ints
    closing_ns: Ints
    told_end_ns: Ints
    read_bytes: Ints
    written_bytes: Ints
    reads: Moves
    writes: Moves

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of(cls, state: ReplayState, events: Events, assignment: Assignment) -> Talks:
        """Of a replayed log.

        Args:
            state: after replay; open files know what getsockname and getpeername told.
            events: the log.
            assignment: of its events.
        """
        files = [one for one in state.open_files if _is_talk(state, one)]
        count = len(files)
        back = returns(events)
        told = np.append(back, NEVER)
        accepted, connecting, connected, closing = (np.full(count, NEVER, np.int64) for _ in range(4))
        for at, one in enumerate(files):
            connect = state.connects.get(one.id)
            if connect is not None:
                connecting[at] = connect[1]
                if events.records["ret"][connect[0]] == 0:
                    connected[at] = told[connect[0]]
            elif one.witnessed and one.created_event >= 0:
                accepted[at] = told[one.created_event]
            if one.released_ns is not None and _closed(state, one):
                closing[at] = one.released_ns
        talk_of = np.full(len(state.open_files) + 1, -1, np.int64)
        talk_of[[one.id for one in files]] = np.arange(count)
        talk = talk_of[assignment.open_file]
        shut, told_end = _ends(events, talk, back, count)
        taken, put = moved_bytes(events)
        mine = talk >= 0
        return cls(
            keys=[_key(state, one) for one in files],
            from_start=np.array([one.witnessed for one in files], np.bool_),
            accepted_ns=accepted,
            connecting_ns=connecting,
            connected_ns=connected,
            closing_ns=np.minimum(closing, shut),
            told_end_ns=told_end,
            read_bytes=np.bincount(talk[mine], weights=taken[mine], minlength=count).astype(np.int64),
            written_bytes=np.bincount(talk[mine], weights=put[mine], minlength=count).astype(np.int64),
            reads=_in_stream(mine & (taken > 0), talk, taken, back, events.records["exit_ns"]),
            writes=_in_stream(mine & (put > 0), talk, put, _entries(events), events.records["enter_ns"]),
        )


def returns(events: Events) -> Ints:
    """When each call had returned at the latest: shape (n,), NEVER where nothing tells.

    A log without durations (`strace` without `-T`) gives each call's entry only: then it is when the same thread
    entered its next call.
    """
    records = events.records
    enter, leave = records["enter_ns"].astype(np.int64), records["exit_ns"].astype(np.int64)
    back = np.where(leave >= 0, leave, NEVER)
    unknown = (leave >= 0) & (leave <= enter)
    if unknown.any():
        order = np.lexsort((np.arange(len(records)), enter, records["tid"]))
        # What tells an address stands at the moment of the call that named it, and is no next call.
        order = order[~is_seeded(records)[order]]
        following = np.full(len(records), NEVER, np.int64)
        same = records["tid"][order[1:]] == records["tid"][order[:-1]]
        following[order[:-1][same]] = enter[order[1:][same]]
        back[unknown] = following[unknown]
    return back


def _is_talk(state: ReplayState, file: OpenFile) -> bool:
    if file.kind is not FileKind.SOCKET or file.listening or file.pair >= 0 or file.socket_type == _DATAGRAM:
        return False
    family = file.family or (file.peer.family if file.peer else 0)
    if not family and file.listener >= 0:
        family = state.open_files[file.listener].family
    if family and family not in _INET:
        return False
    return file.peer is not None or file.listener >= 0 or file.id in state.connects


def _key(state: ReplayState, file: OpenFile) -> Key:
    local: Address | None = file.local
    if (local is None or not local.port) and file.listener >= 0:
        local = state.open_files[file.listener].local
    port = local.port if local is not None else 0
    return (file.peer.packed, file.peer.port, port) if file.peer is not None else (b"", 0, port)


def _closed(state: ReplayState, file: OpenFile) -> bool:
    """The last reference went by a call: an exit is told at another moment than its FIN."""
    return all(state.descriptors[each].ended in _BY_CLOSE for each in file.descriptors)


def _entries(events: Events) -> Ints:
    enter = events.records["enter_ns"].astype(np.int64)
    return np.where(enter >= 0, enter, NEVER)


def _ends(events: Events, talk: Ints, back: Ints, count: int) -> tuple[Ints, Ints]:
    """When each talk was first shut for writing (entry), and when a read first returned 0: shape (talks,) each."""
    records = events.records
    mine = talk >= 0
    shutting, told = np.full(count, NEVER, np.int64), np.full(count, NEVER, np.int64)
    shut = np.flatnonzero(mine & (records["call"] == Call.shutdown) & (records["ret"] == 0))
    shut = shut[np.isin(records["args"][shut, 1], (SHUT_WR, SHUT_RDWR))]
    np.minimum.at(shutting, talk[shut], _entries(events)[shut])
    asked = (records["args"][:, 2] > 0) | ~np.isin(records["call"], (int(Call.read), int(Call.recvfrom)))
    whole = (records["flags"] & EventFlag.ENTERED_ONLY) == 0
    ends = np.flatnonzero(mine & IS_READ[records["call"]] & (records["ret"] == 0) & asked & whole)
    np.minimum.at(told, talk[ends], back[ends])
    return shutting, told


def _in_stream(chosen: Mask, talk: Ints, moved: Ints, when: Ints, sorted_by: Ints) -> Moves:
    rows = np.flatnonzero(chosen)
    rows = rows[np.lexsort((sorted_by[rows], talk[rows]))]
    mine, count = talk[rows], moved[rows]
    return Moves(talk=mine, start=running(mine, count) - count, count=count, when=when[rows])
