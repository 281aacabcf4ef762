"""Socket rows whose time does not quite fit the connection they show.

A snapshot carries the time at which it began, and on a busy machine it comes by a socket only later: an accepted and
closed connection may so be shown, in FIN_WAIT2, before its accept. A close is told when it was asked for, an exit when
it began, and the kernel lets go of the socket after that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from sockscope.analysis.joining.socket_rows import EndKey, SocketGroups, end_key
from sockscope.model.connections import Connection, Protocol
from sockscope.model.descriptors import OpenFile
from sockscope.model.sockets import STAND_IN_INODE

_SLACK_NS: Final = 1_000_000_000
"""How far off the times may be."""


class LateRows:
    """Gives what no open file has claimed by its times to one that has nothing, has these ends, and lived just then.

    Args:
        connections: those of open files.
        taken: ids of the connections that have a socket already.
    """

    def __init__(
        self, connections: Iterable[Connection], files: Sequence[OpenFile], groups: SocketGroups, taken: set[int]
    ) -> None:
        self._files = files
        self._groups = groups
        self._by_ends: dict[EndKey, list[Connection]] = {}
        for made in connections:
            ends = made.protocol == Protocol.TCP and made.peer is not None and made.local is not None
            if ends and made.open_file >= 0 and made.id not in taken:
                assert made.peer is not None
                assert made.local is not None
                self._by_ends.setdefault(end_key(made.peer, made.local.port), []).append(made)

    def take(self, group: int) -> Connection | None:
        """The connection that the group shows; it is not given again."""
        local, peer = self._groups.local(group), self._groups.peer(group)
        if local is None or peer is None:
            return None
        same = self._by_ends.get(end_key(peer, local.port), [])
        for at, made in enumerate(same):
            if made.local is not None and any(made.local.packed) and made.local != local:
                continue
            if self._near(self._files[made.open_file], group):
                return same.pop(at)
        return None

    def _near(self, file: OpenFile, group: int) -> bool:
        of = self._groups.of
        known = file.inode and of.inode[group] and max(file.inode, of.inode[group]) < STAND_IN_INODE
        if known and file.inode != of.inode[group]:
            return False
        begun = file.created_ns <= of.last_ns[group] + _SLACK_NS
        return begun and (file.released_ns is None or of.first_ns[group] <= file.released_ns + _SLACK_NS)
