"""Who has a connection, in words: how a descriptor was handed on, and what a close leaves behind.

One open file, several descriptors in several processes: the story of a connection goes on in another process after
SCM_RIGHTS or fork, and its FIN belongs to the last close (unix(7), close(2)).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from sockscope.model.calls import Call
from sockscope.model.descriptors import Descriptor, Ended, FilesTable, How, OpenFile, Process
from sockscope.model.ids import NO_ID

_NAMED: Final = 2
FORKS: Final = frozenset({Call.clone, Call.clone3, Call.fork, Call.vfork, Call.task_new})


class World(Protocol):
    """What both the session and the live replay have."""

    @property
    def descriptors(self) -> Sequence[Descriptor]: ...
    @property
    def tables(self) -> Sequence[FilesTable]: ...
    @property
    def processes(self) -> Mapping[int, Process]: ...


class Hands:
    """The descriptors of one open file, and what events did to them.

    Args:
        world: where the descriptors are.
        file: the connection's open file.
    """

    def __init__(self, world: World, file: OpenFile) -> None:
        self._world = world
        self._file = file
        self._all = [one for number in file.descriptors if (one := self._of(number)) is not None]

    def _of(self, number: int) -> Descriptor | None:
        try:
            return self._world.descriptors[number]
        except KeyError:
            # The live view forgets what has ended a while ago.
            return None

    def owner(self, one: Descriptor) -> str:
        """`worker[123]`: the process whose files table it is in."""
        tgid = self._world.tables[one.table].tgids[-1]
        process = self._world.processes.get(tgid)
        return f"{process.comm if process else '?'}[{tgid}]"

    def _holders(self, held: Iterable[Descriptor]) -> str:
        named = [f"{self.owner(one)} has it as fd {one.fd}" for one in held]
        more = f" and {len(named) - _NAMED} more do" if len(named) > _NAMED else ""
        return f"{' and '.join(named[:_NAMED])}{more}"

    def sending(self, event: int, *, final: bool = True) -> str:
        """Of a sendmsg that passed it on; `final`: what has not been received so far has not been at all."""
        if event not in self._file.sent_events:
            return ""
        got = [one for one in self._all if one.sent_event == event]
        if not got:
            return f"hands this connection on (SCM_RIGHTS){'; nobody has received it yet' if final else ''}"
        return f"hands this connection on (SCM_RIGHTS) to {self.owner(got[0])}, which has it as fd {got[0].fd}"

    def arriving(self, event: int) -> str:
        """Of a recvmsg, a fork, a dup: what made one of its descriptors beyond the first."""
        made = [one for one in self._all if one.opened_event == event and one.source != NO_ID]
        if not made:
            return ""
        one = made[0]
        if one.how is How.SCM_RIGHTS:
            source = self._of(one.source)
            origin = f" from {self.owner(source)} (fd {source.fd} there)" if source is not None else ""
            return f"receives this connection as fd {one.fd}{origin}"
        if one.how is How.FORK:
            return f"{self.owner(one)} gets it as fd {one.fd}"
        return ""

    @property
    def received(self) -> list[int]:
        """The recvmsg calls that brought it."""
        return [one.opened_event for one in self._all if one.how is How.SCM_RIGHTS]

    def closing(self, event: int, ns: int, *, stream: bool) -> str:
        """Of a close: who still has it, or that this was the last."""
        ended = [one for one in self._all if one.closed_event == event]
        if not ended:
            return ""
        left = [
            one
            for one in self._all
            if one.opened_ns <= ns and (one.closed_ns is None or one.closed_ns > ns) and one.closed_event != event
        ]
        copy = "closes its copy" if ended[0].ended is not Ended.EXIT else "its copy goes with it"
        if left:
            return f"{copy}: {self._holders(left)}, so the connection stays open"
        on_its_way = [one for one in self._all if one.how is How.SCM_RIGHTS and one.opened_ns > ns]
        if on_its_way or self._file.in_flight:
            return f"{copy}: the message that carries the connection keeps it open"
        if self._file.copied:
            return "closes the last copy" + (": only now the connection ends (FIN)" if stream else "")
        return "done with it: this side of the connection ends" if stream else ""
