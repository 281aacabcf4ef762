"""Live lines of what the kernel did to the target's connections: only what a program would not notice by itself."""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np

from sockscope.analysis.joining.kernel_events import decode_kernel_events
from sockscope.analysis.narration.kernel_story import event_words
from sockscope.analysis.replay.control import IS_KERNEL
from sockscope.analysis.session import Ids
from sockscope.model.calls import Call
from sockscope.model.events import Events
from sockscope.model.live import LineKind, LiveLine
from sockscope.model.sockaddr import from_key
from sockscope.model.tcp import TcpState

_PEERS_KEPT: Final = 4096
"""Connections of which the kernel's doings are told: those shown last."""
_RETRANSMITS_NS: Final = 1_000_000_000
"""A connection's retransmissions are told once in so long."""


def kernel_rows(events: Events) -> Ids:
    """Rows of a table that are kernel events."""
    rows: Ids = np.flatnonzero(IS_KERNEL[events.records["call"]])
    return rows


def in_their_places(lines: list[LiveLine], told: list[LiveLine]) -> list[LiveLine]:
    """Kernel lines put among the others, which keep their order: before the first call that ended later."""
    out = []
    waiting = deque(told)
    for line in lines:
        while waiting and waiting[0].time_ns <= line.time_ns + max(line.duration_ns, 0):
            out.append(waiting.popleft())
        out.append(line)
    return [*out, *waiting]


class KernelLines:
    """Tells FIN, RST and retransmissions of connections that have been shown.

    Both ends of a loopback connection are told of by the kernel; the target's is the one whose peer has been seen.
    """

    def __init__(self) -> None:
        self._peers: dict[str, int] = {}

    def saw(self, label: str) -> None:
        """A connection with this peer has been shown."""
        if label in self._peers:
            return
        self._peers[label] = 0
        if len(self._peers) > _PEERS_KEPT:
            del self._peers[next(iter(self._peers))]

    def lines(self, events: Events, rows: Ids) -> list[LiveLine]:
        """What is worth a line of these kernel events, in time."""
        if not len(rows):
            return []
        told = decode_kernel_events(events, rows)
        fin = (told["old"] == TcpState.ESTABLISHED) & (told["new"] == TcpState.CLOSE_WAIT)
        telling = told[(told["call"] != Call.sock_state) | fin]
        found = []
        for row in telling:
            line = self._line(row)
            if line is not None:
                found.append(line)
        return found

    def _line(self, row: np.void) -> LiveLine | None:
        label = str(from_key(row["peer"].tobytes(), int(row["peer_port"])))
        last_ns = self._peers.get(label)
        if last_ns is None:
            return None
        time_ns, call = int(row["time_ns"]), int(row["call"])
        if call == Call.tcp_retransmit:
            if last_ns and time_ns - last_ns < _RETRANSMITS_NS:
                return None
            self._peers[label] = time_ns
        _, text, words = event_words(call, int(row["old"]), int(row["new"]))
        if call == Call.sock_state:
            text, words = "peer closed (FIN) → CLOSE_WAIT", "the program has yet to close its side"
        return LiveLine(
            time_ns=time_ns,
            duration_ns=0,
            tgid=0,
            tid=0,
            comm="kernel",
            connection=label,
            text=text.removeprefix("kernel: "),
            words=words,
            kind=LineKind.KERNEL,
        )
