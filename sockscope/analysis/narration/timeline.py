"""One connection's story: its syscalls in every process, its packets, the kernel's states, in time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from sockscope.analysis.narration.describe import describe_view
from sockscope.analysis.narration.describe_view import View
from sockscope.analysis.narration.describe_words import LISTENER, words_of
from sockscope.analysis.narration.hands import FORKS, Hands
from sockscope.analysis.narration.http1 import Http1State
from sockscope.analysis.narration.kernel_story import item_of, stamped_early, told_at
from sockscope.analysis.narration.timeline_events import EventPicker
from sockscope.analysis.narration.timeline_wire import WireTeller
from sockscope.analysis.replay.control import IS_READ, IS_WRITE
from sockscope.analysis.session import Ids, Session
from sockscope.model.calls import EPOLL_WAITS, READS, WAITS, Call
from sockscope.model.connections import Connection, Protocol
from sockscope.model.events import EventFlag
from sockscope.model.ids import NO_ID
from sockscope.model.report import Lane, TimelineItem
from sockscope.model.tcp import TcpState

_EVENT, _PACKET, _SAMPLE, _GONE, _TOLD = range(5)
_URING = int(EventFlag.URING)
_NO_BYTES = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tickets:
    """What will become items, in order: columns, so that a long story is cut before anything is decoded.

    Attributes:
        time_ns, source, ref: shape (n,), int64.
    """

    time_ns: Ids
    source: Ids
    ref: Ids

    def __len__(self) -> int:
        return len(self.time_ns)

    def part(self, first: int, last: int) -> _Tickets:
        return _Tickets(time_ns=self.time_ns[first:last], source=self.source[first:last], ref=self.ref[first:last])


class Timelines:
    """Makes timelines of a session's connections when asked (a `model.report.Timelines`).

    What all connections need (which wait came before which call, who watches which descriptor) is
    worked out once, at the first call.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._picker = EventPicker(session)

    def __call__(self, connection: int, *, limit: int = 200) -> list[TimelineItem]:
        """The story of one connection, in order of time.

        Over `limit` items the middle is left out, and one item says how much.
        """
        session = self._session
        one = session.connections[connection]
        tickets = self._tickets(one)
        limit = max(limit, 3)
        if len(tickets) <= limit:
            return self._tell(one, tickets)
        # The end tells more of what went wrong than the beginning: it gets the odd place.
        first = (limit - 1) // 2
        last = len(tickets) - (limit - 1 - first)
        gap = TimelineItem(
            time_ns=int(tickets.time_ns[first]),
            duration_ns=int(tickets.time_ns[last - 1] - tickets.time_ns[first]),
            lane=Lane.KERNEL,
            actor="--",
            name="…",
            text=f"… {last - first} more events …",
            words="left out here",
        )
        return [*self._tell(one, tickets.part(0, first)), gap, *self._tell(one, tickets.part(last, len(tickets)))]

    def _tickets(self, connection: Connection) -> _Tickets:
        session = self._session
        events = self._picker.of(connection)
        records = session.events.records
        entered, left = records["enter_ns"][events], records["exit_ns"][events]
        # What an io_uring did lies where it was done: submitted it may have been long before, and once for many.
        ringed = (records["flags"][events] & _URING) != 0
        packets = session.packets_of(connection.id)
        samples = _telling_samples(session, connection)
        told = session.kernel_of(connection.id)
        gone = [] if connection.gone_ns is None or _ended_before(session, connection) else [connection.gone_ns]
        came_in = ringed
        if connection.open_file != NO_ID:
            # Who waits for descriptors to come may have done so since long before this connection.
            came_in = ringed | np.isin(events, Hands(session, session.open_files[connection.open_file]).received)
        times = [
            np.where((entered >= 0) & ~(came_in & (left >= 0)), entered, left),
            session.packet_ns[packets],
            session.sockets.records["time_ns"][samples],
            np.array(gone, np.int64),
            session.kernel["time_ns"][told],
        ]
        time_ns = np.concatenate(times)
        source = np.repeat([_EVENT, _PACKET, _SAMPLE, _GONE, _TOLD], [len(part) for part in times])
        ref = np.concatenate([events, packets, samples, np.full(len(gone), -1), told])
        # At the same time the wire comes first: it is the cause.
        order = np.lexsort((ref, source != _PACKET, time_ns))
        return _Tickets(time_ns=time_ns[order], source=source[order], ref=ref[order])

    def _tell(self, connection: Connection, tickets: _Tickets) -> list[TimelineItem]:
        state = Http1State()
        wire = WireTeller(self._session, connection)
        story = _Story.of(self._session, connection, self._picker.data_by_open_file)
        items = []
        for time_ns, source, ref in zip(
            tickets.time_ns.tolist(), tickets.source.tolist(), tickets.ref.tolist(), strict=True
        ):
            if source == _EVENT:
                items.append(self._event(connection, ref, state, story))
            elif source == _PACKET:
                items.append(wire.item(ref))
            elif source == _SAMPLE:
                items.append(_sample(self._session, ref))
            elif source == _TOLD:
                items.append(item_of(self._session, ref))
            else:
                items.append(_gone(time_ns))
        return items

    def _event(self, connection: Connection, event: int, state: Http1State, story: _Story) -> TimelineItem:
        session = self._session
        view = View.of(session.events, event)
        own = state if session.event_connection[event] == connection.id else None
        words = words_of(view, own, partial(story.name, view) if view.call in WAITS else story.unnamed)
        if connection.protocol is Protocol.UDP and view.call in READS and view.returned and view.ret == 0:
            words = "read an empty datagram"
        words = story.words(view, event) or words
        time_ns = view.exit_ns if event in story.received and view.returned else view.time_ns
        return TimelineItem(
            time_ns=time_ns,
            duration_ns=0 if time_ns != view.time_ns else view.duration_ns,
            lane=Lane.SYSCALL,
            actor=actor(session, view.tgid, view.tid),
            name=view.call.name,
            text=describe_view(view),
            words=words,
            ref=event,
            failed=bool(view.errno),
        )


@dataclass(frozen=True, slots=True)
class _Story:
    """What only the whole connection tells of one of its events."""

    session: Session
    hands: Hands | None
    received: frozenset[int]
    users: frozenset[int]
    """Threads that read or wrote."""
    stream: bool
    numbers: dict[tuple[int, int], str]
    """(tgid, descriptor) → what it names."""
    data: dict[int, str]
    """The same by epoll_data."""

    @classmethod
    def of(cls, session: Session, connection: Connection, data: Mapping[int, set[int]]) -> _Story:
        own = session.events_of(connection.id)
        records = session.events.records
        used = own[(IS_READ | IS_WRITE)[records["call"][own]]]
        file = session.open_files[connection.open_file] if connection.open_file != NO_ID else None
        hands = Hands(session, file) if file is not None else None
        return cls(
            session,
            hands,
            frozenset(hands.received if hands is not None else ()),
            frozenset(np.unique(records["tid"][used]).tolist()),
            connection.protocol is Protocol.TCP,
            *_names(session, connection, data),
        )

    def name(self, view: View, key: int) -> str:
        """A `Naming` of what this wait reports."""
        return self.data.get(key, "") if view.call in EPOLL_WAITS else self.numbers.get((view.tgid, key), "")

    @staticmethod
    def unnamed(key: int) -> str:
        return ""

    def words(self, view: View, event: int) -> str:
        """Empty where the event speaks for itself."""
        if self.hands is None or view.errno:
            return ""
        if view.call in FORKS:
            return self._birth(view, event)
        if view.call in (Call.sendmsg, Call.sendmmsg):
            return self.hands.sending(event)
        if view.call in (Call.recvmsg, Call.recvmmsg):
            return self.hands.arriving(event)
        if view.call in (Call.close, Call.close_range, Call.task_exit):
            return self.hands.closing(event, int(self.session.effective_ns[event]), stream=self.stream)
        return ""

    def _birth(self, view: View, event: int) -> str:
        """Of a clone or fork: why it is in this story."""
        assert self.hands is not None
        child = view.int_arg(0) if view.call is Call.task_new else view.ret
        told = self.hands.arriving(event) if view.call is Call.task_new else ""
        if child in self.users:
            process = child in self.session.processes
            serves = f"the {'process' if process else 'thread'} that will serve this connection"
            return f"{told}: {serves}" if told else f"started {child}, {serves}"
        return told


def _names(
    session: Session, connection: Connection, data: Mapping[int, set[int]]
) -> tuple[dict[tuple[int, int], str], dict[int, str]]:
    """What waits may report of the connection: itself, and its listener."""
    named = {connection.listener: LISTENER, connection.open_file: "this connection"}
    named.pop(NO_ID, None)
    numbers = {
        (tgid, session.descriptors[one].fd): name
        for file, name in named.items()
        for one in session.open_files[file].descriptors
        for tgid in session.tables[session.descriptors[one].table].tgids
    }
    return numbers, {key: name for file, name in named.items() for key in data.get(file, ())}


def _ended_before(session: Session, connection: Connection) -> bool:
    """Whether its end has been told already: by its close, where no snapshot ever showed it, or by the kernel."""
    if connection.state is TcpState.UNKNOWN or connection.gone_ns is None:
        return True
    told = told_at(session, connection.id, np.array([connection.gone_ns], np.int64))
    return bool(told[0] == TcpState.CLOSE) and connection.state is not TcpState.TIME_WAIT


def _gone(time_ns: int) -> TimelineItem:
    return TimelineItem(
        time_ns=time_ns,
        duration_ns=0,
        lane=Lane.KERNEL,
        actor="--",
        name="gone",
        text="no longer in the kernel's tables",
    )


def timeline(session: Session, connection: int, *, limit: int = 200) -> list[TimelineItem]:
    """One connection's timeline; for many of them keep a `Timelines`."""
    return Timelines(session)(connection, limit=limit)


def actor(session: Session, tgid: int, tid: int) -> str:
    """`comm[tgid]`, or `comm[tgid/tid]` for a thread that does not lead its process."""
    return f"{session.comm(tgid)}[{tgid}]" if tid == tgid else f"{session.comm(tgid)}[{tgid}/{tid}]"


def _telling_samples(session: Session, connection: Connection) -> Ids:
    """Socket rows that show a state which is new and not told by the kernel, or in CLOSE_WAIT another receive queue."""
    rows = session.samples_of(connection.id)
    if len(rows):
        rows = rows[~stamped_early(session, connection.id, rows)]
    if not len(rows):
        return _NO_BYTES
    picked = session.sockets.records[rows]
    state, recv_q = picked["state"], picked["recv_q"]
    telling = np.ones(len(rows), np.bool_)
    telling[1:] = (state[1:] != state[:-1]) | ((state[1:] == TcpState.CLOSE_WAIT) & (recv_q[1:] != recv_q[:-1]))
    told = told_at(session, connection.id, picked["time_ns"].astype(np.int64))
    telling &= (told != state) | (state == TcpState.CLOSE_WAIT)
    found: Ids = rows[telling]
    return found


_STATE_WORDS = {
    TcpState.CLOSE_WAIT: "the peer has ended its half, the program has not closed",
    TcpState.FIN_WAIT2: "the program has closed, the peer has not",
    TcpState.LAST_ACK: "both have closed, the last acknowledgement is due",
    TcpState.TIME_WAIT: "closed; the port is kept for stray segments",
    TcpState.SYN_RECV: "the handshake is not complete",
}


def _sample(session: Session, row: int) -> TimelineItem:
    sample = session.sockets.records[row]
    number = int(sample["state"])
    state = TcpState(number) if number in TcpState._value2member_map_ else TcpState.UNKNOWN
    owner = "" if int(sample["inode"]) or state == TcpState.TIME_WAIT else ", owned by no process"
    return TimelineItem(
        time_ns=int(sample["time_ns"]),
        duration_ns=0,
        lane=Lane.KERNEL,
        actor="--",
        name=state.name,
        text=f"{state.name} recv-q {int(sample['recv_q'])} send-q {int(sample['send_q'])}{owner}",
        words=_STATE_WORDS.get(state, ""),
        ref=row,
    )
