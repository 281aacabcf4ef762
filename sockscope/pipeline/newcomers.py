"""Processes that come under watch while it goes on: who serves the port now, and who has a history to read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sockscope.model.calls import FIRST_TASK_EVENT, Call
from sockscope.model.events import Events
from sockscope.model.seed import Seed
from sockscope.sources.sockets.port_watch import PortWatch
from sockscope.sources.sockets.seed import descendants, read_seed

OFFERS_MAX = 3
"""A tracer may end just when it is told to follow one more; what three could not follow nobody can."""

CAME_BY_ITSELF = 1
"""args[0] of a task_attach: the kernel saw it bind the port."""


class Newcomers:
    """Keeps account of who is followed.

    Args:
        port: who begins to serve it is to be followed, too; None: only what the engine finds.
        tgids: those followed from the start; their descriptors are read already.
    """

    def __init__(self, port: int | None, tgids: Sequence[int]) -> None:
        self._port = port
        self._followed = set(tgids)
        self._seeded = set(tgids)
        self._came: dict[int, None] = {}
        self._looked: frozenset[int] = frozenset()
        self._offers: dict[int, int] = {}
        self._refused: set[int] = set()
        self._watch = PortWatch(port, tgids) if port is not None else None
        if self._watch is not None:
            self._watch.start()

    def offers(self) -> list[int]:
        """Processes for the engine to adopt: they serve the port, and are not followed. Each look's are told once."""
        servers = self._watch.servers() if self._watch is not None else self._looked
        if servers is self._looked:
            return []
        self._looked = servers
        # Those that are gone by the next look are forgotten with it.
        self._offers = {tgid: self._offers.get(tgid, 0) + 1 for tgid in sorted(servers - self._followed)}
        self._refused.update(tgid for tgid, count in self._offers.items() if count > OFFERS_MAX)
        return [tgid for tgid, count in self._offers.items() if count <= OFFERS_MAX]

    def meet(self, events: Events) -> Seed | None:
        """Who came under watch by these events with a history, as found now; None: nobody."""
        calls = events.records["call"]
        tasks = events.records[(calls >= FIRST_TASK_EVENT) & (calls <= Call.task_detach)]
        if not len(tasks):
            return None
        call = tasks["call"]
        self._followed.update(tasks["args"][call == Call.task_new, 1].tolist())
        attached = tasks[call == Call.task_attach]
        fresh = set(attached["tgid"].tolist()) - self._followed
        self._followed |= fresh
        self._leave(tasks)
        if not fresh:
            return None
        # Others are children that were born while their parents came under watch.
        by_themselves = set(attached["tgid"][attached["args"][:, 0] == CAME_BY_ITSELF].tolist())
        self._came.update(dict.fromkeys(sorted(fresh & (by_themselves | self._offers.keys()))))
        # Its children, too: they got their descriptors from it before anybody looked.
        unread = [tgid for tgid in [*fresh, *descendants(fresh)] if tgid not in self._seeded]
        self._seeded.update(unread)
        return read_seed(unread) if unread else None

    def _leave(self, tasks: npt.NDArray[np.void]) -> None:
        """The leader's end is the process's, but where another thread has executed a program: it goes on as that."""
        executed = tasks[tasks["call"] == Call.task_exec]
        executed_ns = dict(zip(executed["tgid"].tolist(), executed["exit_ns"].tolist(), strict=True))
        self._followed.update(executed_ns)
        ended = tasks[(tasks["call"] == Call.task_exit) & (tasks["tid"] == tasks["tgid"])]
        for tgid, ended_ns in zip(ended["tgid"].tolist(), ended["exit_ns"].tolist(), strict=True):
            if ended_ns > executed_ns.get(tgid, -1):
                self._followed.discard(tgid)

    def notes(self) -> list[str]:
        """What the reader should know of it, a line each."""
        if self._port is None:
            return []
        out = []
        if self._came:
            many = "process" if len(self._came) == 1 else "processes"
            began = f"began to serve port {self._port} while it was watched"
            out.append(f"{many} {_some(list(self._came))} {began}; what was open before was read then")
        if self._refused:
            who = _some(sorted(self._refused))
            out.append(f"port {self._port} was also served by process {who}, which could not be followed")
        if not self._followed:
            out.append(f"at the end none of the watched processes was left to serve port {self._port}")
        return out

    def stop(self) -> None:
        """Safe to call twice."""
        if self._watch is not None:
            self._watch.stop()


def _some(tgids: list[int]) -> str:
    return ", ".join(map(str, tgids[:5])) + (" …" if len(tgids) > 5 else "")
