"""Logs and captures of the same server, made by columns: what a real one would give, with a clock apart."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from sockscope.analysis.alignment.clocks import Clocks, Files
from sockscope.analysis.build import build_session
from sockscope.analysis.session import Session
from sockscope.model.calls import Call
from sockscope.model.events import Events
from sockscope.model.packets import Packets
from sockscope.model.sockets import Sockets
from sockscope.model.tcp import TcpFlag
from tests.analysis.builders import REALTIME_OFFSET_NS, START_NS, Script, address

A = 100
SERVER = address("10.0.0.1", 80)
DATA = TcpFlag.PSH | TcpFlag.ACK
ACK = TcpFlag.ACK
SECOND = 1_000_000_000


@dataclass
class Evidence:
    """A server's log and a capture beside it. Delays are random: a few µs to some hundred.

    Args:
        seed: of the random numbers.
        addresses: accept asks for the peer.
        spacing_ns: between two connections.
        ports: client ports go round in so many.
    """

    seed: int = 0
    addresses: bool = True
    spacing_ns: int = 5_000_000
    ports: int = 20_000
    script: Script = field(default_factory=lambda: Script(ports=(80,)).process(A))
    _at: int = 0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.script.event(A, A, Call.socket, 2, 1, 0, ret=3, at=1_000)
        self.script.event(A, A, Call.bind, fd=3, sockaddr=address("0.0.0.0", 80), at=2_000)
        self.script.event(A, A, Call.listen, fd=3, at=3_000)
        self._at = 10_000_000

    def delay(self, most: int = 200_000) -> int:
        return int(3_000 + self.random.exponential(most / 4))

    def connections(self, count: int, *, requests: int = 1, first: int = 0) -> Evidence:
        for number in range(first, first + count):
            self.connection(number, requests=requests)
        return self

    def connection(
        self,
        number: int,
        *,
        requests: int = 1,
        logged: bool = True,
        captured: bool = True,
        known: bool = True,
        ended: bool = True,
        one_sided: bool = False,
    ) -> None:
        """One connection from handshake to close; `known`: with its beginning."""
        script, peer = self.script, address("10.0.0.9", 20_000 + number % self.ports)
        fd = 7 + number % 500
        now = self._at + int(self.random.exponential(self.spacing_ns))
        self._at = now

        def wire(source: bool, flags: int, seq: int, ack: int, payload: bytes = b"") -> None:
            nonlocal now
            now += self.delay(40_000)
            if captured and not (one_sided and not source):
                ends = (peer, SERVER) if source else (SERVER, peer)
                script.packet(*ends, flags, seq=seq, ack=ack, payload=payload, at=now)

        def call(which: Call, *args: int, **more: object) -> None:
            nonlocal now
            took = self.delay(20_000)
            now += self.delay()
            if logged:
                script.event(A, A, which, *args, at=now, took=took, **more)  # type: ignore[arg-type]
            self._took = took

        isn = 1000 * (number % 100_000) * 7
        if known:
            wire(True, TcpFlag.SYN, isn, 0)
            wire(False, TcpFlag.SYN | ACK, 5000, isn + 1)
            wire(True, ACK, isn + 1, 5001)
            if self.addresses:
                call(Call.accept4, 3, ret=fd, sockaddr=peer)
            else:
                call(Call.accept4, 3, ret=fd)
            now += self._took
        elif logged:
            script.event(A, A, Call.getpeername, fd, ret=0, sockaddr=peer, at=now)
            script.event(A, A, Call.getsockname, fd, ret=0, sockaddr=SERVER, at=now + 10)
        ours, theirs = isn + 1, 5001
        for _ in range(requests):
            size, answer = int(self.random.integers(40, 400)), int(self.random.integers(100, 1400))
            wire(True, DATA, ours, theirs, bytes(size))
            ours += size
            call(Call.recvfrom, fd, 0, 4096, ret=size)
            now += self._took
            call(Call.sendto, fd, ret=answer)
            wire(False, DATA, theirs, ours, bytes(answer))
            theirs += answer
            now += self.delay(2_000_000)
        if ended:
            call(Call.close, fd)
            wire(False, TcpFlag.FIN | ACK, theirs, ours)
            wire(True, TcpFlag.FIN | ACK, ours, theirs + 1)
            wire(False, ACK, theirs + 1, ours + 1)

    # --- tables ---------------------------------------------------------------------------------------------

    def packets(self, ahead_ns: int = 0, *, ppm: float = 0.0, wrong: int = 0) -> Packets:
        """The capture, by a clock that runs ahead; in order of time."""
        made = self.script.packets()
        records = made.records[np.argsort(made.records["time_ns"], kind="stable")].copy()
        since = records["time_ns"] - (START_NS + REALTIME_OFFSET_NS)
        records["time_ns"] += ahead_ns + np.rint(since * ppm / 1e6).astype(np.int64)
        return Packets(records=records, raw=made.raw)

    def session(
        self,
        ahead_ns: int = 0,
        *,
        ppm: float = 0.0,
        packets: Packets | None = None,
        files: Files | None = None,
        resolution_ns: int = 1,
    ) -> Session:
        """Joined; `resolution_ns`: of the log's times, 0: it has none, and its lines are 1 µs apart.

        `files`: of which these packets are.
        """
        packets = self.packets(ahead_ns, ppm=ppm) if packets is None else packets
        info, events = self.script.info(), self.script.events()
        records = events.records.copy()
        order = np.argsort(records["enter_ns"], kind="stable")
        if not resolution_ns:
            records["enter_ns"][order] = records["exit_ns"][order] = START_NS + np.arange(len(order)) * 1000
        elif resolution_ns > 1:
            records["enter_ns"] //= resolution_ns
            records["enter_ns"] *= resolution_ns
            # Lines of one moment are kept apart, as the reader does.
            records["enter_ns"][order] += np.arange(len(order))
            records["exit_ns"] = records["enter_ns"]
        return build_session(
            info=replace(info, syscalls=replace(info.syscalls, resolution_ns=resolution_ns)),
            seed=self.script.seed(),
            events=Events(records=records, blob=events.blob),
            packets=packets,
            sockets=Sockets.empty(),
            clocks=replace(Clocks.foreign(packets=packets), files=files),
        )
