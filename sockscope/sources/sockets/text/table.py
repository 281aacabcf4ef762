"""Builds socket rows from text: column by column, for a structured array is slow to fill row by row."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from sockscope.model.sockets import SOCKET_DTYPE

UNTOLD_INODE = (1 << 64) - 1
"""While reading: the text says nothing of this row's inode."""

MOST_ROWS = 2_000_000
"""Beyond that no listing is honest, and memory ends."""

_BLOCK_ROWS = 16_384
_MOST = (1 << 31) - 1
"""No process and no descriptor has a higher number."""
_LIMITS = {
    name: (1 << 8 * kind.itemsize) - 1
    for name, (kind, *_) in (SOCKET_DTYPE.fields or {}).items()
    if kind.kind == "u" and not kind.shape
}


class SocketTable:
    """Rows in the order of the text.

    Attributes:
        comms: tgid → name, as `users:` and `PID/Program name` tell.
    """

    def __init__(self) -> None:
        self.comms: dict[int, str] = {}
        self._blocks: list[npt.NDArray[np.void]] = []
        self._before = 0
        self._holders = (array("q"), array("q"), array("q"))
        self._begin()

    def __len__(self) -> int:
        return self._before + len(self._states)

    @property
    def full(self) -> bool:
        return len(self) >= MOST_ROWS

    def _begin(self) -> None:
        self._states: list[int] = []
        self._kinds: list[int] = []
        self._queues: list[int] = []
        self._locals: list[bytes] = []
        self._peers: list[bytes] = []
        self._ports: list[int] = []
        self._rare: dict[str, tuple[list[int], list[int]]] = {}
        self._paths: tuple[list[int], list[bytes]] = ([], [])

    def add(
        self,
        *,
        state: int,
        kind: tuple[int, int, int],
        queues: tuple[int, int],
        local: tuple[bytes, int],
        peer: tuple[bytes, int],
    ) -> None:
        """One more row.

        Args:
            kind: family, protocol, type.
            queues: Recv-Q, Send-Q.
            local, peer: 16 bytes and the port.
        """
        if len(self._states) >= _BLOCK_ROWS:
            self._end_block()
        self._states.append(state)
        self._kinds.extend(kind)
        self._queues.extend(queues)
        self._locals.append(local[0])
        self._peers.append(peer[0])
        self._ports.append(local[1])
        self._ports.append(peer[1])

    def put(self, name: str, value: int) -> None:
        """A column of the last row that most rows have not."""
        known = self._rare.get(name)
        if known is None:
            known = self._rare[name] = ([], [])
        known[0].append(len(self._states) - 1)
        known[1].append(value)

    def put_path(self, path: str) -> None:
        self._paths[0].append(len(self._states) - 1)
        self._paths[1].append(path.encode("utf-8", "replace")[:108])

    def hold(self, tgid: int, fd: int, comm: str) -> None:
        """A process holds the last row's socket."""
        tgid, fd = min(tgid, _MOST), min(fd, _MOST)
        self.comms[tgid] = comm
        for column, value in zip(self._holders, (len(self) - 1, tgid, fd), strict=True):
            column.append(value)

    def records(self) -> npt.NDArray[np.void]:
        """All rows, SOCKET_DTYPE; to be asked once, at the end. Inode `UNTOLD_INODE` where the text has none."""
        if self._states:
            self._end_block()
        blocks, self._blocks = self._blocks, []
        return np.concatenate(blocks) if blocks else np.zeros(0, SOCKET_DTYPE)

    def holders(self) -> npt.NDArray[np.int64]:
        """Shape (m, 3): row, tgid, fd."""
        return np.stack([np.frombuffer(column, np.int64) for column in self._holders], axis=1)

    def _end_block(self) -> None:
        count = len(self._states)
        block = np.zeros(count, SOCKET_DTYPE)
        block["state"] = self._states
        kinds = np.array(self._kinds, np.uint8).reshape(count, 3)
        block["family"], block["protocol"], block["type"] = kinds.T
        queues = np.minimum(np.array(self._queues, np.uint64), np.uint64(_LIMITS["recv_q"])).reshape(count, 2)
        block["recv_q"], block["send_q"] = queues.T
        ports = np.array(self._ports, np.uint16).reshape(count, 2)
        block["local_port"], block["peer_port"] = ports.T
        block["local"] = _addresses(self._locals)
        block["peer"] = _addresses(self._peers)
        block["inode"] = UNTOLD_INODE
        for name, (rows, values) in self._rare.items():
            block[name][rows] = np.minimum(np.array(values, np.uint64), np.uint64(_LIMITS[name]))
        block["path"][self._paths[0]] = self._paths[1]
        self._blocks.append(block)
        self._before += count
        self._begin()


def _addresses(packed: Iterable[bytes]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(b"".join(packed), np.uint8).reshape(-1, 16)


def number(text: str) -> int | None:
    """A count as text; None where it is none, or beyond 64 bits."""
    return int(text) if text.isdecimal() and text.isascii() and len(text) <= 19 else None
