"""Connections over a path between two hosts, as a capture on either sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sockscope.analysis.alignment.clocks import Clocks, Files, Strand
from sockscope.analysis.build import build_session
from sockscope.analysis.session import Session
from sockscope.model.events import Events
from sockscope.model.info import PacketCoverage, SessionInfo, Target
from sockscope.model.packets import PACKET_DTYPE, Packets
from sockscope.model.seed import Seed
from sockscope.model.sockets import Sockets
from sockscope.model.tcp import TcpFlag
from tests.analysis.wire.dialogue import key

MS = 1_000_000
SECOND = 1_000_000_000
BEGIN = 1_700_000_000 * SECOND
CLIENT, SERVER = "client.pcap", "server.pcap"
SYN, ACK, FIN, DATA = TcpFlag.SYN, TcpFlag.ACK, TcpFlag.FIN, TcpFlag.ACK | TcpFlag.PSH
_TIMEOUT_NS = 200 * MS

Records = npt.NDArray[np.void]


class Path:
    """A client, a server, and between them a path that delays, and loses what is then sent again.

    Args:
        seed: of the random numbers.
        delay_ns: one way; each segment takes up to a tenth more.
        loss: share of segments.
        spacing_ns: between two connections.
    """

    def __init__(self, seed: int = 0, *, delay_ns: int = 20 * MS, loss: float = 0.0, spacing_ns: int = 30 * MS) -> None:
        self.random = np.random.default_rng(seed)
        self.delay_ns, self.loss, self.spacing_ns = delay_ns, loss, spacing_ns
        self.rows: tuple[list[tuple[object, ...]], list[tuple[object, ...]]] = ([], [])
        self.lost = [0, 0]
        """Segments of the client and of the server that did not arrive."""
        self.began = BEGIN

    def connections(self, count: int, *, requests: int = 2, first: int = 0) -> Path:
        for number in range(first, first + count):
            self.connection(number, requests=requests)
        return self

    def connection(self, number: int, *, requests: int = 2) -> None:
        """Handshake, requests and answers, and the end."""
        self.began += int(self.random.exponential(self.spacing_ns))
        self.now, self.port = self.began, 20_000 + number
        at = [int(self.random.integers(2**32)), int(self.random.integers(2**32))]
        self.send(0, SYN, at[0], 0)
        self.send(1, SYN | ACK, at[1], at[0] + 1)
        at = [at[0] + 1, at[1] + 1]
        self.send(0, ACK, *at)
        for _ in range(requests):
            for side, size in ((0, int(self.random.integers(40, 400))), (1, int(self.random.integers(100, 1400)))):
                self.now += int(self.random.exponential(MS))
                self.send(side, DATA, at[side], at[1 - side], size)
                at[side] += size
                self.send(1 - side, ACK, at[1 - side], at[side])
        for side in (1, 0):
            self.send(side, FIN | ACK, at[side], at[1 - side])
            at[side] += 1
        self.send(1, ACK, at[1], at[0])

    def send(self, side: int, flags: int, seq: int, ack: int, size: int = 0) -> None:
        """One segment, again until it arrives; an ACK alone is not sent again."""
        while True:
            self._seen(side, side, flags, seq, ack, size)
            arrives = self.random.random() >= self.loss
            if arrives:
                self.now += int(self.delay_ns * (1 + self.random.random() / 10)) + 1
                self._seen(1 - side, side, flags, seq, ack, size)
                return
            self.lost[side] += 1
            if flags == ACK and not size:
                return
            self.now += _TIMEOUT_NS

    def datagram(self, side: int, size: int) -> None:
        self._seen(side, side, 0, 0, 0, size, protocol=17)
        self.now += self.delay_ns
        self._seen(1 - side, side, 0, 0, 0, size, protocol=17)

    def _seen(self, place: int, side: int, flags: int, seq: int, ack: int, size: int, protocol: int = 6) -> None:
        ends = (("10.0.0.1", self.port), ("10.0.0.2", 80))
        (src, sport), (dst, dport) = ends[side], ends[1 - side]
        numbers = (seq % 2**32, ack % 2**32, 500, flags, protocol, size, size + 54, 0, 0, 0, -1, 0)
        self.rows[place].append((self.now, key(src), key(dst), sport, dport, *numbers))

    def capture(self, place: int, *, ahead_ns: int = 0, ppm: float = 0.0) -> Records:
        """What was captured there, by a clock that runs ahead."""
        records = np.array(self.rows[place], PACKET_DTYPE)
        records = records[np.argsort(records["time_ns"], kind="stable")]
        records["time_ns"] += ahead_ns + np.rint((records["time_ns"] - BEGIN) * ppm / 1e6).astype(np.int64)
        return records

    def both(self, *, ahead_ns: int = 0, ppm: float = 0.0) -> dict[str, Records]:
        """The client's capture, whose clock is the odd one, and the server's."""
        return {CLIENT: self.capture(0, ahead_ns=ahead_ns, ppm=ppm), SERVER: self.capture(1)}


def tables(captures: dict[str, Records], whole: Sequence[bool] = ()) -> tuple[Packets, Files]:
    """As files are read: all together by their times as they stand."""
    number = np.repeat(np.arange(len(captures)), [len(one) for one in captures.values()]).astype(np.uint16)
    records = np.concatenate(list(captures.values()))
    order = np.argsort(records["time_ns"], kind="stable")
    files = Files(names=tuple(captures), whole=tuple(whole) or (True,) * len(captures), number=number[order])
    return Packets(records=records[order], raw=np.zeros(0, np.uint8)), files


def session(captures: dict[str, Records], whole: Sequence[bool] = ()) -> Session:
    """Of captures alone."""
    packets, files = tables(captures, whole)
    first, last = int(packets.records["time_ns"].min()), int(packets.records["time_ns"].max())
    return build_session(
        info=SessionInfo(
            target=Target(),
            started_realtime_ns=first,
            started_ns=first,
            ended_ns=last,
            clock_samples=((first, first),),
            packets=PacketCoverage(available=True),
        ),
        seed=Seed.empty(),
        events=Events.empty(),
        packets=packets,
        sockets=Sockets.empty(),
        clocks=Clocks(
            packets=(Strand(source="all", start=0, stop=len(packets)),), files=files if len(captures) > 1 else None
        ),
    )


def told(one: Session) -> list[tuple[int, ...]]:
    """What is said of each segment of a connection, and when it was."""
    rows = np.flatnonzero(one.packet_flow >= 0)
    records = one.packets.records[rows]
    columns = [records[name] for name in ("sport", "seq", "ack", "flags", "payload_bytes")]
    table = np.stack([*columns, one.packet_marks[rows], one.packet_ns[rows]], axis=1, dtype=np.int64, casting="unsafe")
    return sorted(map(tuple, table.tolist()))
