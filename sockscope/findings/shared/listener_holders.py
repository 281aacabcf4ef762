"""Processes that hold a listening socket and have no use for it: two rules tell of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.accept_queue import ACCEPTS
from sockscope.findings.shared.binding import INET, SOCK_STREAM, bound_to, refused_addresses
from sockscope.findings.shared.evidence import GRACE_NS, program
from sockscope.findings.shared.holding import Copy, Holdings, exec_after, handed_on, is_standard_stream
from sockscope.model.descriptors import How, OpenFile
from sockscope.model.seed import FileKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A listener that outsiders hold.

    Attributes:
        owner: the server's descriptor of it.
        holders: those of processes that never accept from it, longest first.
        gone_ns: when the last descriptor of all others went; None while the server still has it.
        refused: binds to its address that failed meanwhile (event ids, in order).
    """

    file: OpenFile
    owner: Copy
    holders: tuple[Copy, ...]
    gone_ns: int | None
    refused: Ids


def held_listeners(session: Session) -> list[Held]:
    """Every listener of the target that a child holds which has no use for it."""
    shared = [file for file in session.open_files if file.listening and len(file.descriptors) > 1 and _is_tcp(file)]
    suspects = [
        (file, accepting) for file in shared if _is_suspect(session, file, accepting := _accepting(session, file))
    ]
    if not suspects:
        return []
    holdings = Holdings(session)
    found = (_held(session, holdings, file, accepting) for file, accepting in suspects)
    return [one for one in found if one is not None]


def _is_suspect(session: Session, file: OpenFile, accepting: set[int]) -> bool:
    """Whether somebody has it who inherited it and does not accept (cheap: asked of every listener)."""
    for one in map(session.descriptors.__getitem__, file.descriptors):
        tgid = session.tgid_of_table(one.table)
        process = session.processes.get(tgid)
        other = process is not None and program(session, process.parent) != process.exe
        if tgid not in accepting and (one.how is How.FORK or (one.how is How.SNAPSHOT and other)):
            return True
    return False


def _is_tcp(file: OpenFile) -> bool:
    return file.kind is FileKind.SOCKET and file.family in (0, *INET) and file.socket_type in (0, SOCK_STREAM)


def _held(session: Session, holdings: Holdings, file: OpenFile, accepting: set[int]) -> Held | None:
    every = {copy.descriptor.id: copy for copy in holdings.copies(file.id)}
    idle: list[tuple[Copy, Copy]] = []
    for copy in every.values():
        owner = _owner_of(session, copy, every)
        if owner is not None and copy.tgid not in accepting and not copy.given_up and not handed_on(session, copy):
            idle.append((copy, owner))
    if not idle:
        return None
    waiting = {one.tgid for one in every.values() if is_standard_stream(one) or holdings.watches(one)}
    users = _with_ancestors(session, accepting | waiting)
    idle = [(copy, owner) for copy, owner in idle if copy.tgid not in users]
    children = {copy.descriptor.id for copy, _ in idle}
    others = [copy for number, copy in every.items() if number not in children]
    ends = [copy.descriptor.closed_ns for copy in others]
    gone = max((at for at in ends if at is not None), default=None) if all(at is not None for at in ends) else None
    holders = [(copy, owner) for copy, owner in idle if _keeps(session, copy, gone)]
    if not holders:
        return None
    holders.sort(key=lambda pair: pair[0].descriptor.opened_ns)
    until = max(copy.until_ns for copy, _ in holders)
    if gone is not None and until - gone < GRACE_NS:
        gone = None  # it ended with the server
    return Held(
        file=file,
        owner=holders[0][1],
        holders=tuple(copy for copy, _ in holders),
        gone_ns=gone,
        refused=_refused(session, file, gone, until),
    )


def _accepting(session: Session, file: OpenFile) -> set[int]:
    events = session.events_of_open_file(file.id)
    accepts = np.isin(session.events.records["call"][events], ACCEPTS)
    return set(np.unique(session.events.records["tgid"][events[accepts]]).tolist())


def _with_ancestors(session: Session, tgids: set[int]) -> set[int]:
    """The ancestors of those that use it may have it for their sake."""
    users = set(tgids)
    for tgid in tgids:
        process = session.processes.get(tgid)
        while process is not None and process.parent in session.processes and process.parent not in users:
            users.add(process.parent)
            process = session.processes.get(process.parent)
    return users


def _owner_of(session: Session, copy: Copy, every: dict[int, Copy]) -> Copy | None:
    """The server's own descriptor, from which this one was inherited; None where it was not, as far as is known."""
    one = copy.descriptor
    if one.how is How.FORK:
        source = every.get(one.source)
        if source is None or source.tgid == copy.tgid:
            return None
        return _owner_of(session, source, every) or source
    process = session.processes.get(copy.tgid)
    if one.how is not How.SNAPSHOT or process is None or not process.exe:
        return None
    parent = next((other for other in every.values() if other.tgid == process.parent), None)
    if parent is None:
        return None
    above = _owner_of(session, parent, every) if parent.tgid != copy.tgid else None
    if above is not None:
        return above
    return parent if program(session, parent.tgid) != process.exe else None


def _runs_another(session: Session, copy: Copy) -> bool:
    """Whether the holder runs another program than the server (exec of the same one is a graceful upgrade)."""
    if copy.descriptor.how is How.SNAPSHOT:
        return True
    if exec_after(session, copy) < 0:
        return False
    source = session.descriptors[copy.descriptor.source]
    server = session.processes.get(session.tgid_of_table(source.table))
    holder = session.processes.get(copy.tgid)
    return server is None or holder is None or server.exe != holder.exe


def _keeps(session: Session, copy: Copy, gone_ns: int | None) -> bool:
    """Whether it has held the listener for long enough to be no passing state."""
    if gone_ns is not None and copy.until_ns - gone_ns >= GRACE_NS:
        return True
    executed = exec_after(session, copy)
    since = copy.descriptor.opened_ns if executed < 0 else int(session.effective_ns[executed])
    return _runs_another(session, copy) and copy.until_ns - since >= GRACE_NS


def _refused(session: Session, file: OpenFile, gone_ns: int | None, until_ns: int) -> Ids:
    fits: list[int] = []
    if gone_ns is None or file.local is None:
        return np.array(fits, np.int64)
    for event in refused_addresses(session).tolist():
        address = bound_to(session, event)
        same = address is not None and address.family in INET and address.port == file.local.port
        if same and gone_ns <= int(session.effective_ns[event]) <= until_ns:
            fits.append(event)
    return np.array(fits, np.int64)
