"""Which processes serve, and what stands above and below them."""

from __future__ import annotations

from collections import defaultdict

from sockscope.analysis.session import Session
from sockscope.model.connections import Protocol, Role
from sockscope.model.descriptors import Descriptor
from sockscope.model.ids import NO_ID


class Serving:
    """Listeners and connections of each process, by time. Looked up when first asked for: most sessions never do."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._held: dict[int, list[Descriptor]] | None = None

    def at(self, tgid: int, time_ns: int) -> bool:
        """Whether it held a listener, or a client's connection, then."""
        return any(_open_at(one, time_ns) for one in self.held(tgid))

    def connections(self, tgid: int, time_ns: int) -> list[int]:
        """Clients' connections that it held then, or until then; ids, ascending."""
        files = self._session.open_files
        return sorted(
            {
                files[one.open_file].connection
                for one in self.held(tgid)
                if files[one.open_file].connection != NO_ID and _open_at(one, time_ns)
            }
        )

    def held(self, tgid: int) -> list[Descriptor]:
        """Its descriptors of listeners and of clients' connections, at any time."""
        if self._held is None:
            self._held = self._look()
        return self._held.get(tgid, [])

    def _look(self) -> dict[int, list[Descriptor]]:
        session = self._session
        held: defaultdict[int, list[Descriptor]] = defaultdict(list)
        for file in session.open_files:
            if not (file.listening or is_of_client(session, file.connection)):
                continue
            for number in file.descriptors:
                descriptor = session.descriptors[number]
                for tgid in session.tables[descriptor.table].tgids:
                    held[tgid].append(descriptor)
        return dict(held)


def is_of_client(session: Session, connection: int) -> bool:
    """Whether a connection (an id, or NO_ID) is one that a client made: not an outgoing one, nor a channel between
    processes of the server (socketpair)."""
    if connection == NO_ID:
        return False
    one = session.connections[connection]
    return one.role is Role.SERVER or (one.role is Role.UNKNOWN and one.protocol is not Protocol.UNIX)


def _open_at(descriptor: Descriptor, time_ns: int) -> bool:
    return descriptor.opened_ns <= time_ns and (descriptor.closed_ns is None or descriptor.closed_ns >= time_ns)


def below(session: Session, tgid: int) -> list[int]:
    """All that descend from a process, nearest first; those known only from /proc included."""
    children: defaultdict[int, set[int]] = defaultdict(set)
    for process in session.processes.values():
        children[process.parent].add(process.tgid)
    facts = session.facts.processes
    for child, parent in set(zip(facts["tgid"].tolist(), facts["ppid"].tolist(), strict=True)):
        children[parent].add(child)
    found: dict[int, None] = {}
    waiting = [tgid]
    while waiting:
        for child in sorted(children.get(waiting.pop(0), ())):
            if child not in found and child != tgid:
                found[child] = None
                waiting.append(child)
    return list(found)
