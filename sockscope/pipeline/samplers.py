"""What looks again and again while the engine traces: socket states, and facts of /proc."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sockscope.errors import CannotObserveError
from sockscope.model.calls import Call
from sockscope.model.events import Events, Section
from sockscope.model.facts import Facts
from sockscope.model.sockets import Sockets
from sockscope.sources.processes.look import Looker
from sockscope.sources.processes.sampler import FactSampler
from sockscope.sources.sockets.sampler import Sampler

_ENDING = (1, 2, 3, 15)
"""SIGHUP, SIGINT, SIGQUIT, SIGTERM."""


_SOL_SOCKET, _SO_PEERCRED = 1, 17
_PEERS_MAX = 1000
"""Clients whose names are looked up, of all that ever come."""


class Sink(Protocol):
    """Where the rows go: a recording being written, or the flight recorder."""

    def write_sockets(self, records: npt.NDArray[np.void]) -> None:
        """One snapshot's rows."""
        ...

    def write_facts(self, facts: Facts) -> None:
        """What /proc said since the last call."""
        ...


class Samplers:
    """Both of them, started together and stopped together.

    Args:
        tgids: the target's processes.
        ports: its ports, as far as they are known; None: no socket states are wanted.
        netns_pid: socket states are read in this process's network namespace; None: ours.
    """

    def __init__(
        self, tgids: Collection[int], ports: Collection[int] | None, netns_pid: int | None, sink: Sink
    ) -> None:
        self._sink = sink
        self._tgids = set(tgids)
        self._peers: set[int] = set()
        self._facts: FactSampler | None = FactSampler(tgids)
        self._sockets: Sampler | None = None
        if ports is not None:
            self._sockets = Sampler(ports=ports, tgids=tgids, netns_pid=netns_pid)
        self.snapshot_count = 0

    def start(self) -> str:
        """Take the first looks, and go on in the background.

        Returns:
            Why there are no socket states, for the notes; empty: there are, or none are wanted.
        """
        assert self._facts is not None
        self._facts.start()
        if self._sockets is None:
            return ""
        try:
            self._sockets.start()
        except CannotObserveError as error:
            self._sockets = None
            return f"no socket states: {error.message}"
        return ""

    def add_tgids(self, tgids: Collection[int]) -> None:
        """Processes that are followed since."""
        self._tgids.update(tgids)
        if self._facts is not None:
            self._facts.add_tgids(tgids)
        if self._sockets is not None:
            self._sockets.add_tgids(tgids)

    def set_tgids(self, tgids: Collection[int]) -> None:
        """These alone from now on: the others have ended."""
        if self._sockets is not None:
            self._sockets.set_tgids(tgids)

    def add_ports(self, ports: Collection[int]) -> None:
        """Ports that the target serves or calls since."""
        if self._sockets is not None:
            self._sockets.add_ports(ports)

    def hear(self, events: Events) -> None:
        """Such a signal may be the beginning of the end: who stands how is looked at now, not in a second."""
        signals = np.flatnonzero(events.records["call"] == Call.task_signal)
        if self._facts is not None and bool(np.isin(events.records["args"][signals, 0], _ENDING).any()):
            self._facts.look_soon()
        self._look_at_peers(set(_credentials(events)))

    def _look_at_peers(self, tgids: set[int]) -> None:
        """Who is at the other end of a unix connection has no address: only its name tells who it is."""
        strangers = tgids - self._tgids - self._peers
        if strangers and len(self._peers) < _PEERS_MAX:
            self._peers |= strangers
            self._sink.write_facts(Facts(processes=Looker().peers(strangers)))

    def drain(self) -> None:
        """What was seen since the last call goes to the sink."""
        if self._facts is not None:
            self._sink.write_facts(self._facts.drain())
        if self._sockets is not None:
            for records in self._sockets.drain():
                self._sink.write_sockets(records)
                self.snapshot_count += 1

    def finish(self) -> Sockets | None:
        """Stop, with a last look that goes to the sink, too.

        Returns:
            The last snapshot with the owners of its sockets; None: there are no socket states.
        """
        if self._facts is not None:
            facts, self._facts = self._facts, None
            self._sink.write_facts(facts.stop())
        if self._sockets is None:
            return None
        sampler, self._sockets = self._sockets, None
        sockets = sampler.stop()
        for records in sampler.drain():
            self._sink.write_sockets(records)
        self._sink.write_sockets(sockets.records)
        self.snapshot_count = sampler.snapshot_count
        self._look_at_peers(set(sockets.owners["tgid"].tolist()))
        return sockets

    def stop(self) -> None:
        """Without a last word. Safe to call at any time, and again."""
        if self._facts is not None:
            self._facts.stop()
            self._facts = None
        if self._sockets is not None:
            self._sockets.stop()
            self._sockets = None


def _credentials(events: Events) -> Iterator[int]:
    """Who connected, where the program asked for it by SO_PEERCRED. Source: unix(7), struct ucred."""
    records = events.records
    asked = np.flatnonzero((records["call"] == Call.getsockopt) & (records["ret"] == 0))
    options = records["args"][asked, 1:3]
    for event in asked[(options == (_SOL_SOCKET, _SO_PEERCRED)).all(axis=1)].tolist():
        value = events.section(event, Section.OPTION)
        if value is not None and len(value) >= 4:
            yield int.from_bytes(value[:4], "little", signed=True)
