"""Watches a target into a recording: engine, capture and sampler side by side."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sockscope.errors import CannotObserveError
from sockscope.model.calls import Call
from sockscope.model.events import Events, Section
from sockscope.model.info import PacketCoverage, SessionInfo, SocketCoverage, Target
from sockscope.model.redact import redact_events
from sockscope.model.seed import Seed
from sockscope.model.sockaddr import Family, decode_sockaddr
from sockscope.pipeline import clock
from sockscope.pipeline.newcomers import Newcomers
from sockscope.pipeline.options import RecordOptions
from sockscope.pipeline.samplers import Samplers
from sockscope.pipeline.targets import choose_engine, netns_of, resolve, stopped_notes
from sockscope.recording.writer import Writer
from sockscope.sources.packets.live import Capture
from sockscope.sources.sockets.seed import listening_ports, read_seed
from sockscope.sources.syscalls.engine import Engine

if TYPE_CHECKING:
    from sockscope.pipeline.flight import FlightRecorder

HEADER_BYTES = 14 + 40 + 60
"""Ethernet, IPv6 and the longest TCP header: the snap length without payload."""

CLOCK_PERIOD_S = 1.0

SETTLED_S = 3.0
"""A target whose ports are not known is captured with all others', until it has named no new one for so long:
the first packets of a port may come before its bind is heard of here."""


MOST_ENDED = 1000
"""Above so many processes, those that have ended are forgotten (by the flight recorder)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a running session stands, for whoever shows it."""

    elapsed_s: float
    event_count: int
    lost_count: int
    process_count: int
    snapshot_count: int


@dataclass(kw_only=True)
class Watcher:
    """What a caller may hook into. All run in the recording thread unless said otherwise.

    Attributes:
        on_ready: the target is under trace; gets its tgids.
        on_events: every batch, already redacted, and up to when (CLOCK_MONOTONIC ns) nothing more will come.
        on_progress: about ten times a second.
        on_note: what the user should know now, a line each; the session's notes have it, too.
        stop: set it (from anywhere) to end the session.
        dump: with the flight recorder: set it (from anywhere) to have a recording written now.
    """

    on_ready: Callable[[tuple[int, ...], Seed], None] = lambda tgids, seed: None
    on_events: Callable[[Events, int], None] = lambda events, complete_ns: None
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_note: Callable[[str], None] = lambda note: None
    stop: threading.Event = field(default_factory=threading.Event)
    dump: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    folder: Path
    info: SessionInfo
    exit_status: int | None
    """Wait status of a launched command; None for attach, or while it runs."""
    fired_count: int = 0
    """Flight recorder: findings that fired while it went on."""


def record(options: RecordOptions, folder: Path, watcher: Watcher | None = None) -> Recorded:
    """Watch the target until its end, the duration's, or `watcher.stop`.

    Args:
        options: the target and how to watch it.
        folder: where the recording goes; made if missing, must be empty.

    Raises:
        UsageError: the options or the folder cannot be.
        CannotObserveError: the target cannot be watched.
    """
    session = _Recording(options, folder, watcher or Watcher())
    try:
        return session.run()
    finally:
        session.close()


class _Recording:
    def __init__(self, options: RecordOptions, folder: Path, watcher: Watcher) -> None:
        self._options = options
        self._watcher = watcher
        self._tgids = () if options.command else resolve(options)
        chosen = choose_engine(options, self._tgids)
        self._engine: Engine = chosen.engine
        try:
            self._flight = self._make_flight(folder)
            self._writer: Writer | FlightRecorder = self._flight or Writer(folder)
        except BaseException:
            self._engine.close()
            raise
        self._newcomers: Newcomers | None = None
        self._capture: Capture | None = None
        self._samplers: Samplers | None = None
        self._notes: list[str] = [chosen.note] if chosen.note else []
        # 0: what the kernel did, no process.
        self._seen_tgids = {0, *self._tgids}
        self._ports: set[int] = set()
        self._everything_until: float | None = None
        self._event_count = 0
        self._clocks = [clock.sample()]
        # Where the capture and the sampler are: the first target's.
        self._netns = netns_of(self._tgids[0]) if self._tgids else netns_of()
        self._strays: list[int] = []

    def run(self) -> Recorded:
        for note in self._notes:
            self._watcher.on_note(note)
        if self._options.command:
            # Capture and sampler first: a launched server may serve at once.
            self._start_capture()
            self._tgids = (self._engine.launch(self._options.command),)
            self._seen_tgids.update(self._tgids)
            seed = Seed.empty()
        else:
            self._ports = set(listening_ports(self._tgids))
            if self._options.port is not None:
                self._ports.add(self._options.port)
            self._start_capture()
            self._notes.extend(stopped_notes(self._tgids))
            self._engine.add_ports(sorted(self._ports))
            self._engine.attach(self._tgids)
            seed = read_seed(self._tgids)
        self._start_samplers()
        self._writer.begin(self._info(complete=False), seed)
        self._newcomers = Newcomers(self._options.port, self._tgids)
        self._watcher.on_ready(self._tgids, seed)
        self._loop()
        return self._finish()

    def _make_flight(self, folder: Path) -> FlightRecorder | None:
        options = self._options
        if options.keep_s is None:
            return None
        from sockscope.pipeline.flight import FlightRecorder

        return FlightRecorder(folder, options.keep_s, options.alarm, self._watcher.on_note)

    def close(self) -> None:
        if self._newcomers is not None:
            self._newcomers.stop()
        self._engine.close()
        if self._samplers is not None:
            self._samplers.stop()
        if self._capture is not None:
            self._capture.stop()
        if self._flight is not None:
            self._flight.close()

    def _start_capture(self) -> None:
        if not self._options.packets:
            return
        capture = Capture(
            interfaces=(),
            ports=sorted(self._ports),
            path=self._writer.packets_path,
            snap_bytes=HEADER_BYTES + self._options.payload_bytes,
            netns_pid=self._foreign_netns(),
            redact=self._options.redact,
            keep_s=self._options.keep_s,
        )
        try:
            capture.start()
        except CannotObserveError as error:
            mend = f" ({error.help_text})" if error.help_text else ""
            self._notes.append(f"no packets: {error.message}{mend}")
            return
        self._capture = capture
        if not self._ports:
            self._everything_until = time.monotonic() + SETTLED_S

    def _foreign_netns(self) -> int | None:
        """A target pid, where the target's network namespace is not ours."""
        if not self._tgids:
            return None
        theirs = netns_of(self._tgids[0])
        return None if theirs is None or theirs == netns_of() else self._tgids[0]

    def _look_for_strays(self) -> None:
        """Packets and states are taken in one network namespace; a server may go into another (ip netns exec)."""
        for tgid in self._tgids:
            if tgid not in self._strays and netns_of(tgid) not in (None, self._netns):
                self._strays.append(tgid)

    def _stray_notes(self) -> list[str]:
        if not self._strays or not (self._options.packets or self._options.sockets):
            return []
        some = ", ".join(map(str, self._strays[:5])) + (" …" if len(self._strays) > 5 else "")
        said = f"in another network namespace, so without packets and socket states: process {some}"
        return [f"{said}; run sockscope in there (ip netns exec, nsenter -n)"]

    def _start_samplers(self) -> None:
        ports = sorted(self._ports) if self._options.sockets else None
        self._samplers = Samplers(self._tgids, ports, self._foreign_netns(), self._writer)
        problem = self._samplers.start()
        if problem:
            self._notes.append(problem)

    def _loop(self) -> None:
        started = next_clock = next_progress = time.monotonic()
        asked = False
        for batch in self._engine.batches():
            events = redact_events(batch.events) if self._options.redact else batch.events
            self._event_count += len(events)
            self._learn_tasks(events)
            self._learn_ports(events)
            self._writer.write_events(events)
            self._watcher.on_events(events, batch.complete_ns)
            if self._samplers is not None:
                self._samplers.hear(events)
                self._samplers.drain()
            if self._flight is not None:
                self._tick(self._flight, batch.complete_ns)
            now = time.monotonic()
            if now >= next_clock:
                self._clocks.append(clock.sample())
                self._forget()
                self._look_for_strays()
                next_clock = now + CLOCK_PERIOD_S
            if now >= next_progress:
                self._watcher.on_progress(self._progress(now - started))
                next_progress = now + 0.1
            over = self._options.duration_s is not None and now - started >= self._options.duration_s
            if not asked and (over or self._watcher.stop.is_set()):
                # The last states are taken while the target still stands.
                asked = True
                self._engine.stop()

    def _tick(self, flight: FlightRecorder, complete_ns: int) -> None:
        asked = self._watcher.dump.is_set()
        self._watcher.dump.clear()
        capture = self._capture
        flight.tick(
            complete_ns,
            asked=asked,
            info=lambda: self._info(complete=True),
            cut=capture.cut if capture is not None else list,
        )

    def _forget(self) -> None:
        """What grows with time must not, where the session may last for days."""
        if self._options.keep_s is None:
            return
        most = int(self._options.keep_s / CLOCK_PERIOD_S) + 10
        if len(self._clocks) > 2 * most:
            del self._clocks[1:-most]
        if len(self._tgids) > MOST_ENDED:
            alive = [tgid for tgid in self._tgids[1:] if os.path.exists(f"/proc/{tgid}")]
            self._tgids = (self._tgids[0], *alive)
            self._strays = [tgid for tgid in self._strays if tgid in alive]
            if self._samplers is not None:
                self._samplers.set_tgids(self._tgids)

    def _learn_tasks(self, events: Events) -> None:
        """Processes that are new here are named, and sampled; those with a history are read; others are adopted."""
        assert self._newcomers is not None
        late = self._newcomers.meet(events)
        if late is not None:
            self._writer.add_seed(self._info(complete=False), late)
        offers = self._newcomers.offers()
        if offers:
            self._engine.adopt(offers)
        tgids = events.records["tgid"]
        # One process's events come in runs.
        fresh = {*tgids[:1].tolist(), *tgids[1:][tgids[1:] != tgids[:-1]].tolist()} - self._seen_tgids
        if fresh:
            self._seen_tgids |= fresh
            self._tgids = (*self._tgids, *sorted(fresh))
            if self._samplers is not None:
                self._samplers.add_tgids(sorted(fresh))

    def _learn_ports(self, events: Events) -> None:
        """Ports that the target begins to serve or to call are captured and sampled from now on."""
        calls = events.records["call"]
        # getsockname: a server that bound port 0 asks which one it got.
        telling = np.isin(calls, (Call.bind, Call.connect, Call.getsockname))
        wanted = np.flatnonzero(telling & (events.records["ret"] <= 0))
        fresh: set[int] = set()
        for event in wanted.tolist():
            raw = events.section(event, Section.SOCKADDR)
            address = decode_sockaddr(raw) if raw else None
            if address is not None and address.family in (Family.INET, Family.INET6) and address.port:
                fresh.add(address.port)
        fresh -= self._ports
        if not fresh:
            if self._everything_until is not None and self._ports and time.monotonic() > self._everything_until:
                self._everything_until = None
                if self._capture is not None:
                    self._capture.limit_to(sorted(self._ports))
            return
        if self._everything_until is not None:
            self._everything_until = time.monotonic() + SETTLED_S
        self._ports |= fresh
        self._engine.add_ports(sorted(fresh))
        self._look_for_strays()
        if self._capture is not None:
            self._capture.add_ports(sorted(fresh))
        if self._samplers is not None:
            self._samplers.add_ports(sorted(fresh))

    def _finish(self) -> Recorded:
        sockets = self._samplers.finish() if self._samplers is not None else None
        self._engine.close()
        packets = None
        if self._capture is not None:
            capture, self._capture = self._capture, None
            packets = capture.stop()
            self._notes.extend(capture.notes())
        self._clocks.append(clock.sample())
        self._notes.extend(self._stray_notes())
        if self._newcomers is not None:
            self._newcomers.stop()
            self._notes.extend(self._newcomers.notes())
        if self._writer.problem is not None:
            self._notes.append(self._writer.problem)
        info = self._info(complete=True, packets=packets)
        self._writer.finish(info, sockets)
        if self._flight is not None:
            info = self._flight.info
        return Recorded(
            folder=self._writer.folder,
            info=info,
            exit_status=self._engine.exit_status(),
            fired_count=self._flight.fired_count if self._flight is not None else 0,
        )

    def _progress(self, elapsed_s: float) -> Progress:
        return Progress(
            elapsed_s=elapsed_s,
            event_count=self._event_count,
            lost_count=self._engine.coverage().lost_count,
            process_count=len(self._tgids),
            snapshot_count=self._samplers.snapshot_count if self._samplers is not None else 0,
        )

    def _info(self, *, complete: bool, packets: PacketCoverage | None = None) -> SessionInfo:
        syscalls = replace(self._engine.coverage(), event_count=self._event_count)
        if self._writer.lost_event_count:
            syscalls = replace(syscalls, lost={**syscalls.lost, "disk full": self._writer.lost_event_count})
        if packets is None:
            packets = self._capture.coverage() if self._capture is not None else PacketCoverage()
        system = os.uname()
        return SessionInfo(
            target=Target(command=self._options.command, pids=self._tgids, ports=tuple(sorted(self._ports))),
            started_realtime_ns=self._clocks[0][1],
            started_ns=self._clocks[0][0],
            ended_ns=clock.sample()[0],
            host=system.nodename,
            kernel=system.release,
            machine=system.machine,
            clock_samples=tuple(self._clocks),
            syscalls=syscalls,
            packets=packets,
            sockets=SocketCoverage(snapshot_count=self._samplers.snapshot_count if self._samplers is not None else 0),
            notes=tuple(self._notes),
            complete=complete,
        )
