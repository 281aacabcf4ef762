"""Calls of connections as timeline items: in strace's notation, and what each means in its connection's story."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache, cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from sockscope.analysis.narration.describe import describe_view
from sockscope.analysis.narration.describe_view import View
from sockscope.analysis.narration.describe_words import LISTENER, timeout_of, told_ready, words_of
from sockscope.analysis.narration.hands import FORKS, Hands
from sockscope.analysis.narration.http1 import Standings
from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Ids, Session
from sockscope.model.calls import EPOLL_WAITS, READS, WAITS, WRITES, Call
from sockscope.model.columns import picked
from sockscope.model.connections import Connection, Protocol
from sockscope.model.events import EventFlag
from sockscope.model.ids import NO_ID
from sockscope.model.report import Lane, TimelineRow

_KEY_DTYPE: Final = np.dtype([("ret", "<i8"), ("args", "<u8", (6,)), ("call", "<u2"), ("flags", "<u2")])
"""What the text of a call is made of, beside its blob."""
_REMEMBERED: Final = 1 << 13
"""Calls whose telling is kept, and HTTP standings it hangs on: most are like one before."""
_REMEMBERED_BYTES: Final = 1 << 24
"""Of what they were told by at most: with `--payload`, or in a log of strace, much of each may be kept."""
_SENDINGS: Final = frozenset({Call.sendmsg, Call.sendmmsg})
_ARRIVALS: Final = frozenset({Call.recvmsg, Call.recvmmsg})
_CLOSINGS: Final = frozenset({Call.close, Call.close_range, Call.task_exit})
_OF_HANDS: Final = _SENDINGS | _ARRIVALS | _CLOSINGS | FORKS
_MOVES: Final = by_call(READS | WRITES)
_ARGUMENT_COUNTS: Final = {
    1: (Call.close, Call.dup),
    2: (Call.listen, Call.shutdown, Call.dup2),
    3: (
        Call.socket, Call.bind, Call.connect, Call.accept, Call.getsockname, Call.getpeername, Call.sendmsg,
        Call.recvmsg, Call.read, Call.write, Call.readv, Call.writev, Call.dup3, Call.fcntl, Call.ioctl, Call.poll,
    ),
    4: (Call.accept4, Call.sendfile, Call.epoll_ctl, Call.epoll_wait),
    5: (Call.setsockopt, Call.getsockopt),
}  # fmt: skip
"""Of usual calls: what is in the registers beyond is noise."""
_ENTERED_ONLY, _URING = int(EventFlag.ENTERED_ONLY), int(EventFlag.URING)


class _Kind(Enum):
    """What the words of a call hang on, beside the call itself."""

    PLAIN = auto()
    TASK = auto()
    """Its thread."""
    WAIT = auto()
    """The names of what is ready."""
    MOVE = auto()
    """The HTTP standing."""


@dataclass(slots=True, kw_only=True)
class _Alike:
    """What is told of calls that differ in their times and threads alone.

    Attributes:
        view: of the first of them; its times, tgid and tid are not to be asked.
        text, words: as far as they hang on nothing else.
        is_of_hands: it may hand descriptors on, or end them: the connection's `_Story` knows.
        ready: what a wait reports, as far as it is told by name.
        by_data: `ready` is epoll_data, not descriptors.
        is_timed: of a wait: what it means hangs on how long it took.
        by_context: of a wait the names of what is ready, of a move the HTTP standing → its words, and the standing
            after it.
    """

    view: View
    kind: _Kind
    name: str
    text: str
    words: str
    failed: bool
    is_of_hands: bool
    is_empty_read: bool
    ready: tuple[int, ...]
    by_data: bool
    is_timed: bool
    by_context: dict[object, tuple[str, int]] = field(default_factory=dict)


class CallTeller:
    """Tells calls of connections, each connection's in order of time.

    Args:
        session: the joined session.
        data: open file → epoll_data it is or was registered with.
    """

    def __init__(self, session: Session, data: Mapping[int, set[int]]) -> None:
        self._session = session
        self._data = data
        self._standings = Standings()
        self._alike: dict[bytes, _Alike] = {}
        self._alike_bytes = 0
        self._actors: dict[tuple[int, int], str] = {}

    def rows(
        self,
        connections: Sequence[Connection],
        place: Ids,
        part: Ids,
        events: Ids,
        came_in: npt.NDArray[np.bool_],
    ) -> Iterator[TimelineRow]:
        """One an item.

        Args:
            connections: those that the calls are told of.
            place: shape (n,), index into them of each call, ascending.
            part: shape (n,), where it changes the story begins anew: nothing is known of HTTP before.
            events: shape (n,), event ids, of each connection in time.
            came_in: shape (n,), the recvmsg calls that brought the connection: told when they returned.
        """
        if max(len(self._alike), len(self._standings)) > _REMEMBERED:
            self._alike, self._standings, self._alike_bytes = {}, Standings(), 0
        session = self._session
        records = picked(session.events.records, events)
        ids = np.array([one.id for one in connections], np.int64)
        is_own = session.event_connection[events] == ids[place]
        times_ns, durations_ns = _when(records, came_in)
        columns = (times_ns, durations_ns, records["tgid"], records["tid"], is_own, place, part, events)
        current, standing, story = -1, 0, _Story(session, self._data)
        for key, time_ns, duration_ns, tgid, tid, own, at, each, event in zip(
            _keys(session, records), *(column.tolist() for column in columns), strict=True
        ):
            if each != current:
                current, standing, story = each, 0, _Story(session, self._data, connections[at])
            alike = self._alike.get(key) or self._look(key, event)
            text = alike.text
            if alike.kind is _Kind.TASK:
                # They tell of their thread, which is not in the key.
                view = View.of(session.events, event)
                text, words = describe_view(view), words_of(view)
            elif alike.kind is _Kind.WAIT:
                words = self._wait_words(alike, event, story.names(alike, tgid))
            elif alike.kind is _Kind.MOVE:
                before = standing if own else 0
                words, after = alike.by_context.get(before) or self._moved_words(alike, before)
                standing = after if own else standing
                if alike.is_empty_read and story.is_datagrams:
                    words = "read an empty datagram"
            else:
                words = alike.words
            if alike.is_of_hands:
                words = story.words(alike.view, event) or words
            actor = self._actors.get((tgid, tid)) or self._actor(tgid, tid)
            yield (
                time_ns, duration_ns, Lane.SYSCALL, actor, alike.name, text, words, event, alike.failed, False, False
            )  # fmt: skip

    def _look(self, key: bytes, event: int) -> _Alike:
        self._alike_bytes += len(key)
        if self._alike_bytes > _REMEMBERED_BYTES:
            self._alike.clear()
            self._alike_bytes = len(key)
        view = View.of(self._session.events, event)
        waits, moves = view.call in WAITS, view.call in READS or view.call in WRITES
        kind = _Kind.TASK if view.is_task else _Kind.WAIT if waits else _Kind.MOVE if moves else _Kind.PLAIN
        alike = self._alike[key] = _Alike(
            view=view,
            kind=kind,
            name=view.call.name,
            text="" if view.is_task else describe_view(view),
            words=words_of(view) if kind is _Kind.PLAIN else "",
            failed=bool(view.errno),
            is_of_hands=view.call in _OF_HANDS,
            is_empty_read=view.call in READS and view.returned and view.ret == 0,
            ready=told_ready(view) if waits else (),
            by_data=view.call in EPOLL_WAITS,
            is_timed=waits and view.returned and view.ret == 0 and timeout_of(view) is None,
        )
        return alike

    def _moved_words(self, alike: _Alike, standing: int) -> tuple[str, int]:
        state = self._standings.state(standing)
        words = words_of(alike.view, state)
        told = alike.by_context[standing] = words, self._standings.number(state)
        return told

    def _wait_words(self, alike: _Alike, event: int, names: tuple[str, ...]) -> str:
        if alike.is_timed:
            return words_of(View.of(self._session.events, event))
        told = alike.by_context.get(names)
        if told is None:
            known = dict(zip(alike.ready, names, strict=True))
            told = alike.by_context[names] = words_of(alike.view, naming=lambda key: known.get(key, "")), 0
        return told[0]

    def _actor(self, tgid: int, tid: int) -> str:
        told = self._actors[tgid, tid] = actor(self._session, tgid, tid)
        return told


def actor(session: Session, tgid: int, tid: int) -> str:
    """`comm[tgid]`, or `comm[tgid/tid]` for a thread that does not lead its process."""
    return f"{session.comm(tgid)}[{tgid}]" if tid == tgid else f"{session.comm(tgid)}[{tgid}/{tid}]"


def _keys(session: Session, records: npt.NDArray[np.void]) -> Iterator[bytes]:
    """Equal for calls that are told alike."""
    heads = np.empty(len(records), _KEY_DTYPE)
    for name in _KEY_DTYPE.names or ():
        heads[name] = records[name]
    heads["args"][np.arange(6) >= argument_counts()[records["call"]][:, None]] = 0
    packed, blob, size = heads.tobytes(), session.events.blob.data, _KEY_DTYPE.itemsize
    places = zip(
        range(0, len(packed), size), records["blob_offset"].tolist(), records["blob_bytes"].tolist(), strict=True
    )
    for at, begin, count in places:
        yield packed[at : at + size] + blob[begin : begin + count]


@cache
def argument_counts() -> npt.NDArray[np.uint8]:
    """By call number, shape (65536,)."""
    counts = np.full(1 << 16, 6, np.uint8)
    for count, calls in _ARGUMENT_COUNTS.items():
        counts[[int(call) for call in calls]] = count
    return counts


def _when(records: npt.NDArray[np.void], came_in: npt.NDArray[np.bool_]) -> tuple[Ids, Ids]:
    """When each call is told, and its duration: -1 where it has not returned, 0 for what happened at one moment."""
    entered, left = records["enter_ns"], records["exit_ns"]
    returned, ringed = (records["flags"] & _ENTERED_ONLY) == 0, (records["flags"] & _URING) != 0
    begins = np.where((ringed & (left >= 0)) | (entered < 0), left, entered)
    times = np.where(came_in & returned, left, begins)
    lasted = np.where(ringed | (entered < 0) | (times != begins), 0, np.maximum(left - entered, 0))
    return times, np.where(returned, lasted, -1)


class _Story:
    """What only the whole connection tells of one of its calls. Without a connection it tells nothing."""

    def __init__(self, session: Session, data: Mapping[int, set[int]], connection: Connection | None = None) -> None:
        self._session = session
        self._data = data
        self._connection = connection
        self.is_datagrams = connection is not None and connection.protocol is Protocol.UDP

    @cached_property
    def _hands(self) -> Hands | None:
        one = self._connection
        return (
            None
            if one is None or one.open_file == NO_ID
            else Hands(self._session, self._session.open_files[one.open_file])
        )

    @cached_property
    def _users(self) -> frozenset[int]:
        """Threads that read or wrote."""
        assert self._connection is not None
        own = self._session.events_of(self._connection.id)
        used = own[_MOVES[self._session.event_call[own]]]
        return frozenset(self._session.events.records["tid"][used].tolist())

    @cached_property
    def _named(self) -> dict[int, str]:
        """What waits may report of the connection, itself and its listener: open file → name."""
        one = self._connection
        named = {} if one is None else {one.listener: LISTENER, one.open_file: "this connection"}
        named.pop(NO_ID, None)
        return named

    @cached_property
    def _by_data(self) -> dict[int, str]:
        return {key: name for file, name in self._named.items() for key in self._data.get(file, ())}

    @cached_property
    def _by_number(self) -> dict[tuple[int, int], str]:
        session = self._session
        return {
            (tgid, session.descriptors[one].fd): name
            for file, name in self._named.items()
            for one in session.open_files[file].descriptors
            for tgid in session.tables[session.descriptors[one].table].tgids
        }

    def names(self, alike: _Alike, tgid: int) -> tuple[str, ...]:
        """Of each in `alike.ready` what it is, where that is known; a poll's numbers are those of the process."""
        if alike.by_data:
            by_data = self._by_data
            return tuple([by_data.get(key, "") for key in alike.ready])
        return tuple([self._by_number.get((tgid, key), "") for key in alike.ready])

    def words(self, view: View, event: int) -> str:
        """Of a call that hands descriptors on or closes them; empty where it speaks for itself."""
        if self._hands is None or view.errno:
            return ""
        if view.call in FORKS:
            return self._birth(self._hands, view, event)
        if view.call in _SENDINGS:
            return self._hands.sending(event)
        if view.call in _ARRIVALS:
            return self._hands.arriving(event)
        assert self._connection is not None
        stream = self._connection.protocol is Protocol.TCP
        return self._hands.closing(event, int(self._session.effective_ns[event]), stream=stream)

    def _birth(self, hands: Hands, view: View, event: int) -> str:
        """Of a clone or fork: why it is in this story."""
        child = view.int_arg(0) if view.call is Call.task_new else view.ret
        told = hands.arriving(event) if view.call is Call.task_new else ""
        if child in self._users:
            process = child in self._session.processes
            serves = f"the {'process' if process else 'thread'} that will serve this connection"
            return f"{told}: {serves}" if told else f"started {child}, {serves}"
        return told
