"""Data goes through shared memory: the socket beside it is only for the beginning and the end.

What it reports:
    Unix connections that are accepted (or made) and closed and carry no data, or a few bytes of signalling, while both
    ends have the same shared segment: a System V one, or a file of /dev/shm. A library preloaded into a server does
    that. Told apart from it: segments that the target made and left behind.

Why it matters:
    What the connections are for never passes a system call: timelines, byte counts and captures of such a server are
    empty, and must not be read as "nothing was sent". That is worth knowing and no fault: an info. A segment that is
    left behind stays until the machine is restarted, and is a fault: a warning.

Evidence:
    The connections and what they carried; shmat and shmdt, or mmap of a file in /dev/shm, between accept and close, or
    /proc/PID/maps of both ends. Certain where the other end is known to have the segment, or somebody else than
    the process and its kin has; likely where only the attachments come and go with the connections, or where three or
    more connections and no other came and went without a byte while a stranger has what the process has. For what
    is left: /proc/sysvipc/shm and /dev/shm at the end of the watching.

Example:
    `accept(3) = 4`, `shmat(5) = 0x7f…`, `shmdt(0x7f…)`, `close(4)`: 12 connections, 0 bytes.

Mend:
    To see the data, watch a run without the preloaded library (or look into the segment). What is left behind: shmctl
    IPC_RMID right after the last shmat that is needed, or shm_unlink after both ends have mapped it: either goes away
    with its last user. `ipcrm -m ID` and `rm /dev/shm/NAME` remove what lies there.

False positives:
    Shared memory among a process and its own children (a scoreboard) explains no connection, nor does a segment that
    was attached before and that the other end does not have, as long as one connection of the process speaks.
    Connections from before the watching, and those on which more than 64 bytes passed, are left out. Left behind is
    only what the target made in this session and nobody has attached, and whose users have all ended; of those who
    still run, only segments made with IPC_PRIVATE, which nobody can find again (likely). Semaphores are another
    matter.

References:
    shmget(2), shmat(2), shmctl(2), shm_overview(7), unix(7), ld.so(8) LD_PRELOAD.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sockscope.analysis.joining.unix_ends import UnixEnds, listener_path
from sockscope.analysis.session import Session
from sockscope.findings.shared.evidence import (
    GRACE_NS,
    from_event,
    from_proc,
    kept,
    listed,
    plural,
    share,
    since_start,
    who,
)
from sockscope.findings.shared.shared_segments import Segment, Segments, Use
from sockscope.model.calls import USUAL_GROUPS, CallGroup
from sockscope.model.connections import Connection, Protocol
from sockscope.model.facts import SegmentKind
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip

RULE = Rule(
    slug="shared-memory-bypass",
    severity=Severity.INFO,
    summary="a unix socket carries no data: it goes through a shared segment that syscalls don't show",
    groups=USUAL_GROUPS | {CallGroup.MEMORY},
    bears_loss=True,
)

_SIGNALLING_BYTES = 64
"""What a connection may carry and still be one that carries no data."""
_ALL_QUIET = 3
"""So many connections, none of which said a word, are no accident."""
_FEW = 64
"""Segments of one process held against one connection."""


@dataclass(slots=True, kw_only=True)
class _Bypass:
    """One process, and those of its connections that go another way.

    Attributes:
        kin: the process, its parents and its children.
        silent: connection → the segment that goes with it.
        quiet: those that came and went without a byte, with no segment of their own.
        proven: the other end has it, or somebody who is no kin.
        whole: all its unix connections that were seen from their beginning.
    """

    tgid: int
    kin: set[int]
    silent: dict[int, Segment] = field(default_factory=dict)
    quiet: list[int] = field(default_factory=list)
    proven: bool = False
    whole: int = 0


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a process with such connections, and one for each that left segments behind."""
    segments = Segments(session)
    every = list(segments.all())
    if not every:
        return
    yield from _bypasses(session, [segment for segment in every if segment.uses])
    yield from _left_behind(session, every)


def _bypasses(session: Session, used: list[Segment]) -> Iterator[Finding]:
    if not used:
        return
    index, ends = _Index(used), UnixEnds(session)
    found: dict[int, _Bypass] = {}
    for connection in session.connections:
        if connection.protocol is not Protocol.UNIX or not connection.witnessed or connection.open_file < 0:
            continue
        holders = _holders(session, connection)
        if not holders:
            continue
        bypass = found.get(holders[0])
        if bypass is None:
            bypass = found[holders[0]] = _Bypass(tgid=holders[0], kin=_kin(session, holders[0]))
        bypass.whole += 1
        if connection.read_bytes + connection.written_bytes <= _SIGNALLING_BYTES:
            _explain(session, bypass, connection, holders, index, ends)
    for bypass in found.values():
        if not bypass.silent and bypass.whole == len(bypass.quiet) >= _ALL_QUIET:
            # Who came is not known, but nobody ever said a word, and a stranger has what this process has.
            common = next((one for one in index.had_by(bypass.tgid) if one.users() - bypass.kin), None)
            bypass.silent = dict.fromkeys(bypass.quiet, common) if common is not None else {}
        if bypass.silent:
            yield _bypass_finding(session, bypass)


class _Index:
    """The segments by who attached them, in time, so that each of very many connections finds its own."""

    def __init__(self, used: list[Segment]) -> None:
        self._attached: dict[int, list[tuple[int, int]]] = {}
        self._users: dict[int, list[int]] = {}
        self._segments = used
        for number, segment in enumerate(used):
            for tgid in segment.users():
                self._users.setdefault(tgid, []).append(number)
            for use in segment.uses:
                if use.event >= 0:
                    self._attached.setdefault(use.tgid, []).append((use.since_ns, number))
        for times in self._attached.values():
            times.sort()

    def attached_in(self, tgid: int, since_ns: int, until_ns: int) -> Segment | None:
        """The first one that the process attached in that time."""
        times = self._attached.get(tgid, [])
        at = bisect_left(times, (since_ns, 0))
        return self._segments[times[at][1]] if at < len(times) and times[at][0] <= until_ns else None

    def had_by(self, tgid: int) -> Iterator[Segment]:
        """Those that the process had at any time, a few of them."""
        return (self._segments[number] for number in self._users.get(tgid, ())[:_FEW])


def _holders(session: Session, connection: Connection) -> list[int]:
    """Who had the connection: the one that opened it, and those it went to."""
    file = session.open_files[connection.open_file]
    return list(dict.fromkeys(session.tgid_of_table(session.descriptors[d].table) for d in file.descriptors))


def _explain(
    session: Session, bypass: _Bypass, connection: Connection, holders: list[int], index: _Index, ends: UnixEnds
) -> None:
    """Note the segment that the connection's data can go through, if there is one."""
    file = session.open_files[connection.open_file]
    over_ns = file.released_ns if file.released_ns is not None else session.info.ended_ns
    # Attached for this connection: after it came, before it went.
    own = (index.attached_in(tgid, connection.first_ns, over_ns) for tgid in holders)
    segment = next((one for one in own if one is not None), None)
    if segment is not None:
        bypass.silent[connection.id] = segment
        bypass.proven |= bool(segment.users() - bypass.kin) or segment.attach_count > len(segment.users())
        return
    common = [one for tgid in holders for one in index.had_by(tgid) if one.users() - bypass.kin]
    peer = ends.peer(connection) if common else None
    with_peer = next((one for one in common if peer is not None and peer.tgid in one.users() - bypass.kin), None)
    if with_peer is not None:
        bypass.silent[connection.id] = with_peer
        bypass.proven = True
    elif not connection.read_bytes + connection.written_bytes and file.released_ns is not None:
        bypass.quiet.append(connection.id)


def _kin(session: Session, tgid: int) -> set[int]:
    """The process, its parents and its children among the target: they share by fork."""
    kin, parent = set[int](), tgid
    while parent in session.processes and parent not in kin:
        kin.add(parent)
        parent = session.processes[parent].parent
    below, seen = [tgid], {tgid}
    while below:
        one = below.pop()
        more = [p.tgid for p in session.processes.values() if p.parent == one and p.tgid not in seen]
        seen.update(more)
        below += more
    return kin | seen


def _bypass_finding(session: Session, bypass: _Bypass) -> Finding:
    connections = [session.connections[number] for number in bypass.silent]
    segments = list({segment.name: segment for segment in bypass.silent.values()}.values())
    moved = sum(connection.read_bytes + connection.written_bytes for connection in connections)
    count = len(connections)
    path = listener_path(session, connections[0])
    carried = f"{plural(moved, 'byte')} in all" if moved else "no byte"
    own = [use for segment in segments for use in segment.uses if use.tgid == bypass.tgid]
    heirs = sorted({use.tgid for segment in segments for use in segment.uses if use.inherited})
    others = sorted({tgid for segment in segments for tgid in segment.users()} - bypass.kin)
    shown = [f"{one.name} ({_size(one)})" if one.size_bytes else one.name for one in segments]
    attached = sum(use.event >= 0 for use in own)
    detached = sum(use.until_ns is not None for use in own)
    known = [f"{plural(attached, 'attachment')} seen, {detached} of them ended"] if attached else []
    known += [f"{listed(_named(session, tgid) for tgid in others)} {_has(others)} it too"] if others else []
    known += [f"{plural(len(heirs), 'child', 'children')} inherited it by fork"] if heirs else []
    about = f" ({'; '.join(known)})" if known else ""
    return Finding(
        rule=RULE.slug,
        severity=Severity.INFO,
        confidence=Confidence.CERTAIN if bypass.proven else Confidence.LIKELY,
        title=f"{plural(count, 'connection')} of {path or 'a unix socket'} carried no data: shared memory does",
        tgid=bypass.tgid,
        comm=session.comm(bypass.tgid),
        connections=tuple(sorted(bypass.silent)),
        count=count,
        worst=connections[0].id,
        explanation=(
            f"While {who(session, bypass.tgid)} had {listed(shown, 4)} attached{about}, "
            f"{share(count, bypass.whole)} carried {carried}. What passes there makes no system call: no "
            "timeline and no capture shows it, and quiet connections say nothing about how busy the server is."
        ),
        remedy=(
            "Nothing to mend. To see the data, run the server without the library that diverts it (LD_PRELOAD, "
            "/etc/ld.so.preload), and watch again."
        ),
        evidence=kept(_bypass_evidence(session, bypass, connections[0])),
    )


def _named(session: Session, tgid: int) -> str:
    return who(session, tgid) if session.comm(tgid) != "?" else f"process {tgid}"


def _has(others: list[int]) -> str:
    return "has" if len(others) == 1 else "have"


def _size(segment: Segment) -> str:
    whole, unit = segment.size_bytes, "bytes"
    if whole >= 1024 and whole % 1024 == 0:
        whole, unit = whole // 1024, "KiB"
    return f"{whole} {unit}"


def _bypass_evidence(session: Session, bypass: _Bypass, connection: Connection) -> Iterator[Evidence]:
    segment = bypass.silent[connection.id]
    if connection.opened_event >= 0:
        yield from_event(session, connection.opened_event, "the connection begins")
    for use in segment.uses:
        if use.event >= 0:
            yield from_event(session, use.event, f"{segment.name} is attached")
        elif not use.inherited:
            yield from_proc(use.since_ns, f"/proc/{use.tgid}/maps: {_named(session, use.tgid)} has {segment.name}")
    file = session.open_files[connection.open_file]
    for number in file.descriptors:
        ended = session.descriptors[number].closed_event
        if ended >= 0:
            carried = connection.read_bytes + connection.written_bytes
            yield from_event(session, ended, f"and ends; {plural(carried, 'byte')} went through it")


# --- left behind --------------------------------------------------------------------------------------------


def _left_behind(session: Session, every: list[Segment]) -> Iterator[Finding]:
    """One finding a process that made what nobody removed."""
    rows = session.facts.segments
    if not len(rows):
        return
    final_ns, first_ns = int(rows["time_ns"].max()), int(rows["time_ns"].min())
    if first_ns == final_ns:
        # One look alone does not tell what was there before.
        return
    left: dict[tuple[int, bool], list[Segment]] = {}
    for segment in every:
        if segment.creator not in session.processes or segment.removed or not _lies(session, segment, final_ns):
            continue
        made_ns = int(session.effective_ns[segment.created]) if segment.created >= 0 else final_ns
        # O_CREAT and IPC_CREAT find what is there, too; of System V the kernel says who made it. A look takes its time
        # and carries that of its beginning, so that it may show what was made meanwhile: O_EXCL says so.
        found = not (segment.system_v or segment.new)
        if found and len(_rows(session, segment, first_ns)) and made_ns > first_ns:
            continue
        over = _over(session, segment, final_ns)
        if over is not None:
            left.setdefault((segment.creator, over), []).append(segment)
    for (tgid, over), segments in left.items():
        yield _left_finding(session, tgid, segments, final_ns, ended=over)


def _rows(session: Session, segment: Segment, when_ns: int) -> npt.NDArray[np.void]:
    """What that look showed of it."""
    rows = session.facts.segments
    same = (rows["id"] == segment.id) if segment.system_v else (rows["path"] == segment.name.encode())
    found: npt.NDArray[np.void] = rows[
        (rows["time_ns"] == when_ns) & same & ((rows["kind"] == SegmentKind.SYSTEM_V) == segment.system_v)
    ]
    return found


def _lies(session: Session, segment: Segment, when_ns: int) -> bool:
    """Whether that look showed it there, and nobody who has it attached."""
    rows = _rows(session, segment, when_ns)
    free = (rows["tgid"] < 0).all() and (rows["attach_count"] <= 0).all() and not rows["removed"].any()
    return bool(len(rows)) and bool(free)


def _over(session: Session, segment: Segment, final_ns: int) -> bool | None:
    """True: all who had it have ended. False: they run, but none can find it any more. None: neither."""
    users = {tgid for tgid in segment.users() | {segment.creator} if tgid in session.processes}
    if all(session.processes[tgid].exited_ns is not None for tgid in users):
        return True
    ends = [use.until_ns for use in segment.uses if use.until_ns is not None]
    if segment.private and len(ends) == len(segment.uses) and ends and final_ns - max(ends) >= GRACE_NS:
        return False
    return None


def _left_finding(session: Session, tgid: int, segments: list[Segment], final_ns: int, *, ended: bool) -> Finding:
    total = sum(segment.size_bytes for segment in segments)
    names = listed((segment.name for segment in segments), 4)
    files = [segment for segment in segments if not segment.system_v]
    how = "shm_unlink" if files else "shmctl IPC_RMID"
    by_hand = f"rm {files[0].name}" if files else f"ipcrm -m {segments[0].name.removeprefix('shmid ')}"
    state = (
        "every process that had attached it has ended"
        if ended
        else "its users have detached it, and made with IPC_PRIVATE it cannot be found again"
    )
    return Finding(
        rule=RULE.slug,
        severity=Severity.WARNING,
        confidence=Confidence.CERTAIN if ended else Confidence.LIKELY,
        title=f"{plural(len(segments), 'shared memory segment')} left behind ({total} bytes)",
        tgid=tgid,
        comm=session.comm(tgid),
        count=len(segments),
        explanation=(
            f"{who(session, tgid)} made {names} in this session and nobody removed it: {state}, and it was still there "
            f"at {since_start(session, final_ns)}. Shared memory with a name outlives its processes: it takes "
            f"{plural(total, 'byte')} until the machine is restarted."
        ),
        remedy=(
            f"Call {how} as soon as both ends have it attached: it goes with its last user, however that ends. "
            f"By hand: {by_hand}."
        ),
        evidence=kept(_left_evidence(session, segments, final_ns)),
    )


def _left_evidence(session: Session, segments: list[Segment], final_ns: int) -> Iterator[Evidence]:
    first = segments[0]
    place = "/proc/sysvipc/shm" if first.system_v else "/dev/shm"
    yield from_proc(final_ns, f"{place}: {first.name}, {_size(first)}, attached by nobody, not removed")
    if first.created >= 0:
        yield from_event(session, first.created, "made")
    for use in first.uses:
        yield from _ends(session, use)


def _ends(session: Session, use: Use) -> Iterator[Evidence]:
    process = session.processes.get(use.tgid)
    if use.until_ns is not None:
        yield from_proc(use.until_ns, f"{who(session, use.tgid)} has it no longer")
    elif process is not None and process.exited_ns is not None:
        yield from_proc(process.exited_ns, f"{who(session, use.tgid)} ended")
