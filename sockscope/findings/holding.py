"""Who holds an open file, how they came by it, and what they did with it: shared by the rules of closing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.session import Ids, Session
from sockscope.findings.evidence import from_event, from_proc, since_start, who
from sockscope.model.calls import EPOLL_WAITS, READS, WAITS, WRITES, Call
from sockscope.model.connections import Connection, Protocol
from sockscope.model.descriptors import Descriptor, Ended, How
from sockscope.model.events import EventFlag, Section
from sockscope.model.findings import Evidence, Holder

USES = READS | WRITES | {Call.splice, Call.shutdown, Call.connect}
"""What counts as using a connection; options, duplicates and closes do not."""

_USES = np.array(sorted(USES), np.uint16)
_READS = np.array(sorted(READS), np.uint16)
_WRITES = np.array(sorted(WRITES), np.uint16)
_WAITS = np.array(sorted(WAITS), np.uint16)
_EAGAIN = -11
_STANDARD_STREAMS = 3
_WAITS_LOOKED_AT = 200

DELIBERATE = frozenset({Ended.CLOSE, Ended.CLOSE_RANGE, Ended.REPLACED})
"""Ends that the program brought about itself (not exit, not exec)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One descriptor of an open file, and what its process did with it.

    Attributes:
        uses: event ids of reads, writes and shutdowns through it, in order.
    """

    descriptor: Descriptor
    tgid: int
    uses: Ids

    @property
    def holder(self) -> tuple[int, int]:
        return self.tgid, self.descriptor.fd


def calls_of(session: Session, events: Ids) -> npt.NDArray[np.uint16]:
    """The call number of each event."""
    calls: npt.NDArray[np.uint16] = session.events.records["call"][events]
    return calls


def uses_of(session: Session, events: Ids) -> Ids:
    """Those of the events that use a connection, in the order given."""
    return events[np.isin(calls_of(session, events), _USES)]


def returns_of(session: Session, events: Ids) -> npt.NDArray[np.int64]:
    """What each call returned."""
    returned: npt.NDArray[np.int64] = session.events.records["ret"][events]
    return returned


def payload_moves(session: Session, events: Ids) -> tuple[Ids, Ids]:
    """(reads, writes) that moved at least one byte."""
    calls, moved = calls_of(session, events), returns_of(session, events) > 0
    return events[np.isin(calls, _READS) & moved], events[np.isin(calls, _WRITES) & moved]


def unfinished(session: Session, event: int) -> bool:
    """Whether the call was still in the kernel when the session (or its thread) ended."""
    return bool(int(session.events.records["flags"][event]) & EventFlag.ENTERED_ONLY)


def waits_to_write(session: Session, uses: Ids) -> bool:
    """Whether the last use was a write that found the buffer full, or is still blocked in one."""
    if not len(uses):
        return False
    last = int(uses[-1])
    writes = int(session.events.records["call"][last]) in {int(call) for call in WRITES}
    return writes and (unfinished(session, last) or int(session.events.records["ret"][last]) == _EAGAIN)


def copies(session: Session, open_file: int) -> list[Copy]:
    """Every descriptor that ever named the open file, in order of birth."""
    if open_file < 0:
        return []
    found = (session.descriptors[number] for number in session.open_files[open_file].descriptors)
    return [
        Copy(
            descriptor=one,
            tgid=session.tgid_of_table(one.table),
            uses=uses_of(session, session.events_of_descriptor(one.id)),
        )
        for one in found
    ]


def tcp_connections(session: Session) -> list[Connection]:
    """The target's TCP connections that some process of it has (had) a descriptor for."""
    return [c for c in session.connections if c.protocol is Protocol.TCP and c.open_file >= 0]


def serving_tgid(session: Session, connection: Connection) -> int:
    """The process that opened the connection, or the first that held it; -1 where none did."""
    if connection.opened_event >= 0:
        return int(session.events.records["tgid"][connection.opened_event])
    held = session.open_files[connection.open_file].descriptors if connection.open_file >= 0 else []
    return session.tgid_of_table(session.descriptors[held[0]].table) if held else -1


def held_until(session: Session, copy: Copy) -> int:
    """When the descriptor went, or the end of the session."""
    ended = copy.descriptor.closed_ns
    return session.info.ended_ns if ended is None else ended


def is_standard_stream(copy: Copy) -> bool:
    """A socket put in the place of stdin, stdout or stderr is meant for the process (inetd, CGI)."""
    return copy.descriptor.fd < _STANDARD_STREAMS


def watches(session: Session, copy: Copy) -> bool:
    """Whether the process waits for readiness of this descriptor: by epoll interest, poll or select.

    Where that cannot be seen (a poll that never returned), it is taken to do so.
    """
    events = session.events_of_tgid(copy.tgid)
    waits = events[np.isin(calls_of(session, events), _WAITS)]
    born = copy.descriptor.opened_ns
    waits = waits[session.effective_ns[waits] >= born]
    if not len(waits):
        return False
    if _watches_by_epoll(session, copy, waits):
        return True
    return any(_names(session, int(wait), copy.descriptor.fd) for wait in waits[-_WAITS_LOOKED_AT:])


def _watches_by_epoll(session: Session, copy: Copy, waits: Ids) -> bool:
    waited = {int(number) for number in np.unique(session.event_open_file[waits])}
    return any(
        interest.epoll in waited and interest.open_file == copy.descriptor.open_file and interest.removed_ns is None
        for interest in session.interests
    )


def _names(session: Session, wait: int, fd: int) -> bool:
    call = session.events.call(wait)
    if call in EPOLL_WAITS:
        return False
    if call in (Call.poll, Call.ppoll):
        polled = session.events.section(wait, Section.POLLFDS)
        if polled is None:
            return unfinished(session, wait)
        table = np.frombuffer(polled[: len(polled) // 8 * 8], np.dtype([("fd", "<i4"), ("bits", "<i4")]))
        return bool((table["fd"] == fd).any())
    sets = session.events.section(wait, Section.FDSETS_IN)
    if sets is None:
        return unfinished(session, wait)
    size = len(sets) // 3
    return any(
        fd // 8 < size and sets[at * size + fd // 8] >> fd % 8 & 1
        for at in range(3)  # one bit a descriptor
    )


def exec_after(session: Session, copy: Copy) -> int:
    """The process's first exec that the descriptor survived; -1 for none."""
    process = session.processes.get(copy.tgid)
    born, until = copy.descriptor.opened_ns, held_until(session, copy)
    survived = (e for e in (process.execs if process else ()) if born <= int(session.effective_ns[e]) < until)
    return next(survived, -1)


def came_by(session: Session, copy: Copy) -> str:
    """How the process got its descriptor, in words: `forked at +1.204 s, kept across exec at +1.210 s`."""
    one = copy.descriptor
    at = since_start(session, one.opened_ns)
    words = {
        How.FORK: f"by fork at {at}",
        How.SCM_RIGHTS: f"by SCM_RIGHTS at {at}",
        How.DUP: f"by dup at {at}",
        How.UNSHARE: f"by unshare at {at}",
        How.PIDFD_GETFD: f"by pidfd_getfd at {at}",
        How.ACCEPT: f"by accept at {at}",
        How.SNAPSHOT: "before watching began",
    }.get(one.how, f"at {at}")
    executed = exec_after(session, copy)
    if executed >= 0:
        words += f", and kept it across exec at {since_start(session, int(session.effective_ns[executed]))}"
    return words


def holder_of(session: Session, copy: Copy) -> Holder:
    """The copy as a finding names it."""
    return Holder(tgid=copy.tgid, comm=session.comm(copy.tgid), fd=copy.descriptor.fd)


def holding_evidence(session: Session, copy: Copy) -> list[Evidence]:
    """The events by which the process got the descriptor, and that it has it to the end."""
    one = copy.descriptor
    facts = []
    if one.opened_event >= 0 and one.how is not How.SNAPSHOT:
        facts.append(from_event(session, one.opened_event, f"{who(session, copy.tgid)} gets it as fd {one.fd}"))
    executed = exec_after(session, copy)
    if executed >= 0:
        facts.append(from_event(session, executed, f"fd {one.fd} has no close-on-exec and stays open"))
    until = held_until(session, copy)
    ended = "the end of the session" if one.closed_ns is None else f"its {one.ended.value if one.ended else 'end'}"
    facts.append(from_proc(until, f"{who(session, copy.tgid)} fd {one.fd}: held until {ended}"))
    return facts
