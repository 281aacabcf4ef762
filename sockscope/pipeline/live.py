"""The live view's side of a session: batches become lines, and a slow terminal holds nothing up."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sockscope.analysis.build import build_session
from sockscope.analysis.live.live import LiveNarrator
from sockscope.analysis.narration.architecture import architecture
from sockscope.errors import SockscopeError
from sockscope.model.events import Events
from sockscope.model.info import SessionInfo, SyscallCoverage, Target
from sockscope.model.live import LiveBatch
from sockscope.model.packets import Packets
from sockscope.model.seed import FileKind, Seed
from sockscope.model.sockaddr import Family, from_key
from sockscope.model.sockets import Sockets
from sockscope.model.tcp import TcpState
from sockscope.pipeline import clock
from sockscope.pipeline.record import Watcher
from sockscope.sources.sockets.sock_diag import dump

Show = Callable[[LiveBatch, int], None]
"""Gets lines and the CLOCK_MONOTONIC ns that times are counted from."""

LINES_A_BATCH = 100
QUEUE_BATCHES = 50
_ROWS_LOOKED_AT = 20_000
"""Sockets of a target whose story is worth the wait before the first line."""


class LiveView:
    """Narrates in the recording thread, shows in another, and drops (counted) what that cannot take.

    Args:
        show: prints one batch of lines.
    """

    def __init__(self, show: Show) -> None:
        self._show = show
        self._narrator: LiveNarrator | None = None
        self._started_ns = clock.sample()[0]
        self._left_out_count = 0
        self._queue: queue.Queue[LiveBatch | None] = queue.Queue(QUEUE_BATCHES)
        self._thread = threading.Thread(target=self._print, daemon=True)
        self.watcher = Watcher(on_ready=self._begin, on_events=self._tell)

    def _begin(self, tgids: tuple[int, ...], seed: Seed) -> None:
        rows = _held_sockets(seed)
        self._narrator = LiveNarrator(seed, _labels(rows), rows["inode"][rows["state"] == TcpState.LISTEN].tolist())
        self._put(LiveBatch(known=_known(tgids, seed, rows)))
        self._thread.start()

    def _tell(self, events: Events, complete_ns: int) -> None:
        assert self._narrator is not None
        self._put(self._narrator.feed(events, complete_ns, max_lines=LINES_A_BATCH))

    def _put(self, batch: LiveBatch) -> None:
        left_out = batch.left_out_count + self._left_out_count
        if not batch.lines and not batch.known and not left_out:
            return
        try:
            self._queue.put_nowait(replace(batch, left_out_count=left_out))
            self._left_out_count = 0
        except queue.Full:
            self._left_out_count = left_out + len(batch.lines)

    def finish(self) -> None:
        """Show what was held back; returns when all is shown, or after two seconds of a stuck terminal."""
        if self._narrator is None:
            return
        self._put(self._narrator.finish())
        try:
            self._queue.put(None, timeout=2)
        except queue.Full:
            return
        self._thread.join(2)

    def _print(self) -> None:
        while (batch := self._queue.get()) is not None:
            self._show(batch, self._started_ns)


def _held_sockets(seed: Seed) -> npt.NDArray[np.void]:
    """The kernel's rows of the sockets that the target holds at attach; shape (n,), SOCKET_DTYPE."""
    wanted = seed.fds["inode"][seed.fds["kind"] == FileKind.SOCKET]
    if not len(wanted):
        return Sockets.empty().records
    try:
        rows = dump(time_ns=clock.sample()[0], snapshot=0, tcp_info=False)
    except SockscopeError:
        return Sockets.empty().records
    return rows[np.isin(rows["inode"], wanted)]


def _labels(rows: npt.NDArray[np.void]) -> dict[int, str]:
    """Socket inode → peer, for the connections and the unix listeners that are there at attach."""
    inet = rows[(rows["state"] != TcpState.LISTEN) & (rows["peer_port"] > 0)]
    unix = rows[(rows["family"] == Family.UNIX) & (rows["path"] != b"") & (rows["path"] != b"*")]
    labels = {int(row["inode"]): str(from_key(row["peer"].tobytes(), int(row["peer_port"]))) for row in inet}
    # A connection that was accepted has its listener's name.
    named = {int(row["inode"]): f"client of {row['path'].decode('utf-8', 'backslashreplace')}" for row in unix}
    return labels | named


def _known(tgids: tuple[int, ...], seed: Seed, rows: npt.NDArray[np.void]) -> tuple[str, ...]:
    """What the server is, as far as it shows before the first call: who has which listener, and waits for it where."""
    if not len(rows) or len(rows) > _ROWS_LOOKED_AT:
        return ()
    now_ns, realtime_ns = clock.sample()
    session = build_session(
        info=SessionInfo(
            target=Target(pids=tgids),
            started_realtime_ns=realtime_ns,
            started_ns=now_ns,
            ended_ns=now_ns,
            syscalls=SyscallCoverage(engine="seed"),
        ),
        seed=seed,
        events=Events.empty(),
        packets=Packets.empty(),
        sockets=Sockets(records=rows, owners=Sockets.empty().owners),
    )
    return architecture(session)
