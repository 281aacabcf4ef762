"""What the processes of a stop did, step by step: signals, closes, waits, ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Ids, Session
from sockscope.analysis.stops.proc_facts import rows_of
from sockscope.analysis.stops.serving import Serving, is_of_client
from sockscope.model.calls import Call
from sockscope.model.descriptors import Descriptor, Ended, OpenFile
from sockscope.model.ids import NO_ID
from sockscope.model.stops import A_GROUP, StopAct, StopStep

FDS_SHOWN = 8
_KILLS = (Call.kill, Call.tkill, Call.tgkill)
_P_PID = 1
_SHUT_RD = 0

Signal = tuple[int, int, int]
"""Event, tgid, CLOCK_MONOTONIC ns."""


class Members:
    """The processes of one stop, and their part of the session from the signal on.

    Args:
        tgids: who got the signal first, then those below.
        since_ns: when the signal came.
        signals: every signal of `ENDING` in the session: event, tgid, time.
        serving: who holds which sockets.
    """

    def __init__(
        self, session: Session, tgids: list[int], since_ns: int, signals: Sequence[Signal], serving: Serving
    ) -> None:
        self.tgids = tgids
        self.since_ns = since_ns
        self._session = session
        self._serving = serving
        mine = set(tgids)
        self.signals = [one for one in signals if one[1] in mine and one[2] >= since_ns]
        self._inner = {tgid: _inner_number(session, tgid) for tgid in tgids}
        self._outer = {inner: tgid for tgid, inner in reversed(self._inner.items())}
        events = np.concatenate([session.events_of_tgid(tgid) for tgid in tgids])
        self._events: Ids = np.sort(events[session.effective_ns[events] >= since_ns])

    @property
    def has_ended(self) -> bool:
        """Whether any of them did: what others close is then part of the stop, not of the day's work."""
        return any(self._session.processes[tgid].exited_ns is not None for tgid in self.tgids)

    def inner(self, tgid: int) -> int:
        """The number that a process knows itself by."""
        return self._inner.get(tgid, tgid)

    def named_by(self, number: int) -> int:
        """Who is meant by a number that one of them used; NO_ID: none of them."""
        if number in self._inner:
            return number
        return self._outer.get(number, NO_ID)

    def events(self, *calls: Call) -> list[int]:
        """Theirs of these calls since the signal, in the table's order."""
        found = self._events[by_call(calls)[self._session.events.records["call"][self._events]]]
        return [int(event) for event in found]

    def fetched_by(self, event: int) -> int:
        """The member whose end a wait4 or waitid told; NO_ID: none."""
        row = self._session.events.records[event]
        if row["call"] == Call.wait4:
            return self.named_by(int(row["ret"])) if row["ret"] > 0 else NO_ID
        by_number = int(row["args"][0]) == _P_PID and row["ret"] == 0
        return self.named_by(int(row["args"][1])) if by_number else NO_ID

    def sockets(self) -> Iterator[tuple[Descriptor, OpenFile, bool]]:
        """Their listeners, and clients' connections, that were open: descriptor, open file, is it a listener."""
        # Of a table that several processes share, each has them all.
        held = {one.id: one for tgid in self.tgids for one in self._serving.held(tgid)}
        for one in held.values():
            if one.closed_ns is None or one.closed_ns >= self.since_ns:
                file = self._session.open_files[one.open_file]
                yield one, file, file.listening


def _inner_number(session: Session, tgid: int) -> int:
    rows = rows_of(session, tgid)
    if len(rows) and rows[-1]["ns_tgid"]:
        return int(rows[-1]["ns_tgid"])
    found = next((one.ns_tgid for one in session.seed.processes if one.tgid == tgid), None)
    return found or tgid


@dataclass(slots=True)
class _Held:
    """What a process's end closed."""

    listener_count: int = 0
    connection_count: int = 0


def steps_of(session: Session, members: Members) -> Iterator[StopStep]:
    """In order of time; several of a kind in a row are one."""
    at_end: dict[int, _Held] = {tgid: _Held() for tgid in members.tgids}
    steps = [*_signals(session, members), *_sent(session, members), *_fetched(session, members)]
    if members.has_ended:
        steps += _closed(session, members, at_end)
        steps += _shut(session, members)
        steps += _accepted(session, members)
        steps += _answered(session, members)
    steps += _ended(session, members, at_end)
    steps.sort(key=lambda step: (step.time_ns, step.act is StopAct.ENDED))
    yield from _in_a_row(steps)


def listeners_first(session: Session, members: Members) -> bool | None:
    """Whether the program closed (or shut down) its listeners before the first connection; None: it did not do both.

    Connections whose clients had ended them already do not count: closing these is the day's work.
    """
    listeners = [step.time_ns for step in _shut(session, members) if step.is_listener]
    connections = []
    for one, file, is_listener in members.sockets() if members.has_ended else ():
        if one.closed_ns is None or one.ended is Ended.EXIT:
            continue
        if is_listener:
            listeners.append(one.closed_ns)
            continue
        eof_ns = session.connections[file.connection].eof_ns
        if eof_ns is None or eof_ns > one.closed_ns:
            connections.append(one.closed_ns)
    return min(listeners) <= min(connections) if listeners and connections else None


def _signals(session: Session, members: Members) -> Iterator[StopStep]:
    for event, tgid, time_ns in members.signals:
        args = session.events.records["args"][event]
        sender = int(args[2])
        yield StopStep(
            time_ns=time_ns,
            last_ns=time_ns,
            tgid=tgid,
            act=StopAct.SIGNALLED,
            signal=int(args[0]),
            other=members.named_by(sender) if sender else NO_ID,
        )


def _sent(session: Session, members: Members) -> Iterator[StopStep]:
    records = session.events.records
    for event in members.events(*_KILLS):
        row = records[event]
        # tgkill names the process, then the thread.
        number = int(row["args"][2 if row["call"] == Call.tgkill else 1])
        to = int(np.int32(row["args"][0] & np.uint64(0xFFFFFFFF)))
        if row["ret"] != 0 or not number or members.named_by(to) == int(row["tgid"]):
            continue
        yield StopStep(
            time_ns=int(row["enter_ns"]),
            last_ns=int(row["enter_ns"]),
            tgid=int(row["tgid"]),
            act=StopAct.SENT,
            signal=number,
            other=members.named_by(to) if to > 0 else A_GROUP,
        )


def _fetched(session: Session, members: Members) -> Iterator[StopStep]:
    for event in members.events(Call.wait4, Call.waitid):
        child = members.fetched_by(event)
        if child != NO_ID:
            yield _at(session, event, StopAct.FETCHED, other=child)


def _closed(session: Session, members: Members, at_end: dict[int, _Held]) -> Iterator[StopStep]:
    for one, file, is_listener in members.sockets():
        if one.closed_ns is None:
            continue
        event = one.closed_event
        tgid = int(session.events.records["tgid"][event]) if event != NO_ID else session.tgid_of_table(one.table)
        if one.ended is Ended.EXIT:
            held = at_end.get(tgid)
            if held is not None:
                held.listener_count += is_listener
                held.connection_count += not is_listener
            continue
        yield StopStep(
            time_ns=one.closed_ns,
            last_ns=one.closed_ns,
            tgid=tgid,
            act=StopAct.CLOSED,
            fds=(one.fd,),
            address=str(file.local) if is_listener and file.local is not None else "",
            is_listener=is_listener,
        )


def _shut(session: Session, members: Members) -> Iterator[StopStep]:
    records = session.events.records
    for event in members.events(Call.shutdown):
        file = int(session.event_open_file[event])
        if file == NO_ID or records["ret"][event] != 0:
            continue
        named = session.open_files[file]
        client = is_of_client(session, named.connection)
        if named.listening or (client and int(records["args"][event, 1]) != _SHUT_RD):
            yield _at(
                session,
                event,
                StopAct.SHUT,
                fds=(int(records["args"][event, 0]),),
                address=str(named.local) if named.listening and named.local is not None else "",
                is_listener=named.listening,
            )


def _accepted(session: Session, members: Members) -> Iterator[StopStep]:
    ret = session.events.records["ret"]
    for event in members.events(Call.accept, Call.accept4):
        if ret[event] >= 0:
            yield _at(session, event, StopAct.ACCEPTED, fds=(int(ret[event]),))


def _answered(session: Session, members: Members) -> Iterator[StopStep]:
    rows = session.exchanges
    late = (rows["first_read_ns"] <= members.since_ns) & (rows["last_write_ns"] > members.since_ns)
    for row in rows[late & np.isin(rows["tgid"], members.tgids)]:
        yield _at(session, int(row["last_write_event"]), StopAct.ANSWERED)


def _ended(session: Session, members: Members, at_end: dict[int, _Held]) -> Iterator[StopStep]:
    for tgid in members.tgids:
        process = session.processes[tgid]
        if process.exited_ns is not None:
            yield StopStep(
                time_ns=process.exited_ns,
                last_ns=process.exited_ns,
                tgid=tgid,
                act=StopAct.ENDED,
                status=process.exit_status,
                listener_count=at_end[tgid].listener_count,
                connection_count=at_end[tgid].connection_count,
            )


def _at(
    session: Session,
    event: int,
    act: StopAct,
    *,
    other: int = NO_ID,
    fds: tuple[int, ...] = (),
    address: str = "",
    is_listener: bool = False,
) -> StopStep:
    time_ns = int(session.effective_ns[event])
    tgid = int(session.events.records["tgid"][event])
    return StopStep(
        time_ns=time_ns,
        last_ns=time_ns,
        tgid=tgid,
        act=act,
        other=other,
        fds=fds,
        address=address,
        is_listener=is_listener,
    )


_ALONE = (StopAct.SIGNALLED, StopAct.ENDED)


def _in_a_row(steps: list[StopStep]) -> Iterator[StopStep]:
    run: StopStep | None = None
    for step in steps:
        if run is not None and step.act not in _ALONE and _alike(run, step):
            fds = (*run.fds, *step.fds)[:FDS_SHOWN]
            run = replace(run, last_ns=step.last_ns, count=run.count + step.count, fds=fds)
            continue
        if run is not None:
            yield run
        run = step
    if run is not None:
        yield run


def _alike(run: StopStep, step: StopStep) -> bool:
    def kind(one: StopStep) -> tuple[int, StopAct, int, bool, str]:
        return one.tgid, one.act, one.signal, one.is_listener, one.address

    return kind(run) == kind(step)
