"""Shared memory with a name, and which process had it when: from its calls, from fork, and from /proc."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sockscope.analysis.replay.control import by_call
from sockscope.analysis.replay.decode import text_of
from sockscope.analysis.session import Session
from sockscope.findings.shared.shared_files import SEMAPHORES, SHARED, made_anew, opened
from sockscope.model.calls import Call
from sockscope.model.events import Section
from sockscope.model.facts import SegmentKind
from sockscope.model.ids import NO_ID
from sockscope.model.seed import FileKind

_CALLS = by_call([Call.shmget, Call.shmat, Call.shmdt, Call.shmctl, Call.mmap])
_IPC_RMID, _IPC_CREAT = 0, 0o1000
_HELD = 256
"""Attachments of a parent that are looked at, the latest, when it forks."""
_COMMAND = 0xFF
"""Of shmctl's second argument: glibc adds IPC_64."""


@dataclass(slots=True, kw_only=True)
class Use:
    """One process's use of a segment.

    Attributes:
        since_ns: CLOCK_MONOTONIC when it was attached, or first seen to be.
        until_ns: when it was detached, or its process ended; None: not seen.
        event: the shmat or mmap; -1: inherited by fork, or only /proc tells.
        inherited: by fork.
    """

    tgid: int
    since_ns: int
    until_ns: int | None = None
    event: int = NO_ID
    inherited: bool = False


@dataclass(slots=True, kw_only=True)
class Segment:
    """One segment.

    Attributes:
        name: as it is told: `shmid 5`, or the path.
        id: the shmid; -1 for files.
        created: the call that made it, -1 where none was seen; creator: its process, -1 unknown.
        new: `created` cannot have found it there.
        private: made with IPC_PRIVATE: found by its number alone.
        removed: it was marked for removal, or unlinked.
        attach_count: the most that /proc showed; -1 unknown.
    """

    name: str
    id: int = NO_ID
    size_bytes: int = 0
    created: int = NO_ID
    creator: int = NO_ID
    new: bool = False
    private: bool = False
    removed: bool = False
    attach_count: int = -1
    uses: list[Use] = field(default_factory=list)

    @property
    def system_v(self) -> bool:
        return self.id >= 0

    def users(self) -> set[int]:
        return {use.tgid for use in self.uses}


class Segments:
    """Every segment that the session tells of."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.by_id: dict[int, Segment] = {}
        self.by_path: dict[str, Segment] = {}
        self._files = [file for file in session.open_files if file.kind == FileKind.SHARED_MEMORY]
        self._from_calls()
        self._from_forks()
        self._from_proc()

    def all(self) -> Iterator[Segment]:
        yield from self.by_id.values()
        yield from self.by_path.values()

    def _system_v(self, number: int) -> Segment:
        return self.by_id.setdefault(number, Segment(name=f"shmid {number}", id=number))

    def _file(self, path: str) -> Segment:
        return self.by_path.setdefault(path, Segment(name=path))

    def _from_calls(self) -> None:
        session = self._session
        records = session.events.records
        rows = session.order[_CALLS[session.event_call[session.order]]]
        attached: dict[tuple[int, int], tuple[Segment, Use]] = {}
        for event in rows.tolist():
            row = records[event]
            ret, tgid, args = int(row["ret"]), int(row["tgid"]), row["args"].tolist()
            now, call = int(session.effective_ns[event]), int(row["call"])
            if ret < 0:
                continue
            if call == Call.shmget:
                self._made(event, ret, args, tgid)
            elif call == Call.shmat:
                segment = self._system_v(args[0])
                use = Use(tgid=tgid, since_ns=now, event=event)
                segment.uses.append(use)
                attached[tgid, ret] = segment, use
            elif call == Call.shmdt and (tgid, args[0]) in attached:
                attached.pop((tgid, args[0]))[1].until_ns = now
            elif call == Call.shmctl and args[1] & _COMMAND == _IPC_RMID:
                self._system_v(args[0]).removed = True
            elif call == Call.mmap:
                self._mapped(event, now, tgid, args)
        for path, events in opened(session, SHARED, created=True).items() if self.by_path else ():
            if path in self.by_path:
                self.by_path[path].created, self.by_path[path].creator = events[0], int(records["tgid"][events[0]])
                self.by_path[path].new = made_anew(session, events[0])

    def _made(self, event: int, number: int, args: list[int], tgid: int) -> None:
        segment = self._system_v(number)
        segment.size_bytes = segment.size_bytes or args[1]
        key = args[0] & 0xFFFF_FFFF
        if segment.created < 0 and (key == 0 or args[2] & _IPC_CREAT):
            segment.created, segment.creator, segment.private = event, tgid, key == 0

    def _mapped(self, event: int, now: int, tgid: int, args: list[int]) -> None:
        path = self._path_of(event, now, args[4] & 0xFFFF_FFFF)
        if path.startswith(SHARED) and not path.startswith(SEMAPHORES):
            segment = self._file(path)
            segment.size_bytes = max(segment.size_bytes, args[1])
            segment.uses.append(Use(tgid=tgid, since_ns=now, event=event))

    def _path_of(self, event: int, now: int, fd: int) -> str:
        """The path under which the mapped descriptor was opened."""
        session = self._session
        table = int(session.event_table[event])
        for file in self._files:
            for number in file.descriptors:
                one = session.descriptors[number]
                alive = one.opened_ns <= now and (one.closed_ns is None or one.closed_ns >= now)
                if alive and one.fd == fd and one.table == table and file.created_event >= 0:
                    return text_of(session.events.blob_of(file.created_event), Section.PATH)
        return ""

    def _from_forks(self) -> None:
        """A child has what its parent had attached; exec lets go of all."""
        session = self._session
        held: dict[int, list[tuple[Segment, Use]]] = {}
        for segment in self.all():
            for use in segment.uses:
                held.setdefault(use.tgid, []).append((segment, use))
        children = [p for p in session.processes.values() if p.started_ns is not None and p.parent in session.processes]
        for child in sorted(children, key=lambda one: one.started_ns or 0) if held else ():
            born = child.started_ns or 0
            execs = [int(session.effective_ns[event]) for event in child.execs]
            for segment, had in held.get(child.parent, ())[-_HELD:]:
                if had.since_ns < born and (had.until_ns is None or had.until_ns > born):
                    heir = Use(tgid=child.tgid, since_ns=born, until_ns=min(execs, default=None), inherited=True)
                    segment.uses.append(heir)
                    held.setdefault(child.tgid, []).append((segment, heir))

    def _from_proc(self) -> None:
        for row in self._session.facts.segments:
            if row["kind"] == SegmentKind.SEMAPHORE:
                continue
            tgid, now = int(row["tgid"]), int(row["time_ns"])
            if row["kind"] == SegmentKind.SYSTEM_V:
                segment = self._system_v(int(row["id"]))
            else:
                segment = self._file(row["path"].decode("utf-8", "backslashreplace"))
            segment.size_bytes = int(row["size_bytes"]) or segment.size_bytes
            segment.removed |= bool(row["removed"])
            segment.attach_count = max(segment.attach_count, int(row["attach_count"]))
            if row["creator"] >= 0:
                # shmget with IPC_CREAT may have found what another one made.
                segment.creator = int(row["creator"])
            if tgid >= 0 and tgid not in segment.users():
                segment.uses.append(Use(tgid=tgid, since_ns=now))
