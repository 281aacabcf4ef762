"""The bpf engine as the pipeline sees it: programs attached, targets followed, rings read, their end awaited."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from sockscope.errors import CannotObserveError
from sockscope.model.calls import Call
from sockscope.model.events import Events
from sockscope.model.info import SyscallCoverage
from sockscope.sources.syscalls import preflight
from sockscope.sources.syscalls.abi import abi_of
from sockscope.sources.syscalls.bpf import execs, inflight
from sockscope.sources.syscalls.bpf.decode import decode
from sockscope.sources.syscalls.bpf.launch import Child
from sockscope.sources.syscalls.bpf.layout import Ring
from sockscope.sources.syscalls.bpf.programs import Programs
from sockscope.sources.syscalls.copy_plan import plans_of
from sockscope.sources.syscalls.engine import Batch, EngineOptions

RING_BYTES: Mapping[Ring, int] = MappingProxyType({Ring.SMALL: 64 << 20, Ring.MEDIUM: 16 << 20, Ring.LARGE: 16 << 20})
LONG_PAYLOAD_BYTES = 100
LONG_RING_BYTES: Mapping[Ring, int] = MappingProxyType(
    {Ring.SMALL: 32 << 20, Ring.MEDIUM: 64 << 20, Ring.LARGE: 16 << 20}
)
"""Where payloads are longer than that: they make most records medium ones."""

PERIOD_S = 0.05
"""Between two looks at the rings. Nobody is woken by a record: that alone would cost the target half its speed."""
PERIOD_MIN_S = 0.001
FILL_WANTED = 0.25
"""Of a ring, at each look: more often, where more is found."""
SETTLE_S = 0.002
"""A program that runs while it is detached is long done then."""
TERM_TIMEOUT_S = 5.0
"""A launched command gets this long after SIGTERM."""
KILL_TIMEOUT_S = 2.0
TIME_MAX_NS = (1 << 63) - 1


class BpfEngine:
    """Follows processes by programs in the kernel. Obeys `sockscope.sources.syscalls.engine.Engine`.

    Nothing is stopped, and no affinity changed. All of it ends with this process, however that ends.

    Use: `prepare()` first, where another engine can take its place: it raises before anybody is followed.
    """

    name = "bpf"

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._programs: Programs | None = None
        self._child: Child | None = None
        self._tgids: set[int] = set()
        """Of a launched command: the processes that live."""
        self._ports: set[int] = set()
        self._event_count = 0
        self._began_ns = 0
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self._kill_at: float | None = None
        self._asked: set[int] = set()
        self._closed = False

    def prepare(self) -> None:
        """Load the programs and let them run: what can be refused is refused here. Follows nobody; done once.

        Raises:
            CannotObserveError: the reason in one line, its mend in `help_text`.
        """
        if self._programs is not None:
            return
        sizes = LONG_RING_BYTES if self._options.payload_bytes > LONG_PAYLOAD_BYTES else RING_BYTES
        self._programs = Programs(
            abi_of(preflight.check_machine()),
            payload_bytes=self._options.payload_bytes,
            port=self._options.port,
            ring_bytes=sizes,
        )
        self._began_ns = time.monotonic_ns()
        self._programs.attach()

    def attach(self, tgids: Sequence[int]) -> None:
        """Follow running processes.

        Raises:
            CannotObserveError: one of them cannot be followed; none is then.
            TargetGoneError: all of them have ended.
        """
        preflight.check_machine()
        if not tgids:
            raise CannotObserveError("there is no process to attach to")
        alive = preflight.still_there(tgids)
        try:
            programs = self._start()
            programs.follow(alive)
            if alive and not programs.followed_count:
                raise preflight.gone_error(alive[0])
        except BaseException:
            self.close()
            raise

    def launch(self, command: Sequence[str]) -> int:
        """Start a command under trace; it waits until `batches()` is iterated.

        Raises:
            UsageError: it is not found or not executable.
            CannotObserveError: the programs cannot be loaded.
        """
        preflight.check_machine()
        path = preflight.check_command(command[0] if command else "")
        try:
            programs = self._start()
            self._child = Child(path, command)
            programs.follow([self._child.pid], silent=True)
        except BaseException:
            self.close()
            raise
        self._tgids = {self._child.pid}
        return self._child.pid

    def adopt(self, tgids: Sequence[int]) -> None:
        """Follow more running processes; those that cannot be followed are passed over."""
        wanted = [tgid for tgid in tgids if _can_be_followed(tgid)]
        if wanted and not self._stopping and self._programs is not None:
            self._programs.follow(wanted)

    def add_ports(self, ports: Sequence[int]) -> None:
        """Tell what the kernel does to sockets with one of these ports at either end."""
        fresh = sorted(set(ports) - self._ports)
        self._ports.update(fresh)
        if self._programs is not None:
            self._programs.add_ports(fresh)

    def batches(self) -> Iterator[Batch]:
        """Yield what the programs recorded, every 50 ms or more often, until `stop()` or the targets' end.

        Raises:
            BpfRefusedError: the kernel refuses what it allowed before.
        """
        programs = self._started()
        abi = abi_of(preflight.check_machine())
        if self._child is not None:
            self._child.go()
        complete_ns = before = self._began_ns
        pause = PERIOD_S
        over = False
        while not over:
            started = time.monotonic_ns()
            over = self._is_over(programs)
            if over:
                programs.detach()
                time.sleep(SETTLE_S)
            events, fill, cut = self._read(programs)
            # A program stamps its record before it shows it: only what was stamped before the last look is all here.
            # A record in the making may hide older ones behind it.
            if not cut:
                complete_ns = before
            before = started
            self._react(programs, events)
            if over:
                events = inflight.add_inputs(events, plans_of(abi), self._options.payload_bytes)
            yield Batch(events=events, complete_ns=TIME_MAX_NS if over else complete_ns)
            if not over:
                pause = min(PERIOD_S, max(pause, PERIOD_MIN_S) * FILL_WANTED / fill) if fill else PERIOD_S
                self._sleep(max(pause, PERIOD_MIN_S))
        if self._child is not None:
            self._child.wait(KILL_TIMEOUT_S)

    def stop(self) -> None:
        """Ask for the end; a launched command is sent SIGTERM, and SIGKILL five seconds later."""
        self._stopping = True
        # Closed already.
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Detach and unload; end a launched command that still runs. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._stopping = True
        try:
            if self._child is not None:
                self._end_child(self._child)
        finally:
            if self._programs is not None:
                self._programs.close()
            os.close(self._wake)

    def coverage(self) -> SyscallCoverage:
        """Events delivered, and lost by cause."""
        lost = self._programs.lost() if self._programs is not None else {}
        return SyscallCoverage(engine=self.name, event_count=self._event_count, lost=lost, pinned=False)

    def exit_status(self) -> int | None:
        """Wait status of the launched command, once it has ended."""
        return self._child.poll() if self._child is not None else None

    def _start(self) -> Programs:
        self.prepare()
        programs = self._started()
        programs.add_ports(sorted(self._ports))
        return programs

    def _started(self) -> Programs:
        assert self._programs is not None, "attach or launch first"
        return self._programs

    def _read(self, programs: Programs) -> tuple[Events, float, bool]:
        """All that can be read, how full the fullest ring was, and whether something is hidden still."""
        parts: list[Events] = []
        fill, cut = 0.0, False
        # Task events are small ones. Read last, they are there for whatever was read of the others; told first.
        for ring in reversed(programs.rings):
            window = ring.window()
            fill = max(fill, window.fill)
            cut |= window.cut
            if len(window.slots):
                parts.insert(0, decode(window))
                ring.advance(window)
        events = execs.name_programs(Events.concat(parts))
        self._event_count += len(events)
        return events, fill, cut

    def _react(self, programs: Programs, events: Events) -> None:
        """Follow the other threads of who came by itself; keep the list of a launched command's processes."""
        calls = events.records["call"]
        if not self._stopping:
            came = events.records[calls == Call.task_attach]
            came = came[came["args"][:, 0] == 1]
            if len(came):
                programs.follow(np.unique(came["tgid"]).tolist())
        if self._child is not None:
            made = events.records[calls == Call.task_new]["args"]
            self._tgids.update(made[made[:, 0] == made[:, 1], 0].tolist())
            ended = events.records[calls == Call.task_exit]
            self._tgids.difference_update(ended["tid"][ended["tid"] == ended["tgid"]].tolist())

    def _is_over(self, programs: Programs) -> bool:
        """Whether what can be read now is the last. Lets the targets go, where that was asked for."""
        if self._stopping:
            if self._child is None:
                programs.finish()
                return True
            if self._end_launched(programs):
                programs.finish()
                return True
        # With a port another process may come to serve it.
        lasting = self._options.port is not None and not self._stopping
        return not lasting and programs.followed_count <= 0

    def _end_launched(self, programs: Programs) -> bool:
        """SIGTERM once, SIGKILL after a while; True when there is no more to be done.

        First to the command alone, which may end its children in its own way; to what it leaves (a shell passes
        nothing on) when it is gone.
        """
        assert self._child is not None
        now = time.monotonic()
        if self._kill_at is None:
            self._kill_at = now + TERM_TIMEOUT_S
        if now > self._kill_at:
            for tgid in self._tgids:
                _send(programs, tgid, signal.SIGKILL)
            return now > self._kill_at + KILL_TIMEOUT_S
        alive = self._child.poll() is None
        for tgid in ({self._child.pid} if alive else self._tgids) - self._asked:
            self._asked.add(tgid)
            _send(programs, tgid, signal.SIGTERM)
        return False

    def _end_child(self, child: Child) -> None:
        """At `close`: whoever iterates `batches` to its end finds nothing left to do here."""
        child.abandon()
        programs = self._programs
        if programs is None or not child.started:
            return
        while programs.followed_count > 0 and not self._end_launched(programs):
            self._react(programs, self._read(programs)[0])
            time.sleep(PERIOD_S)
        child.poll()

    def _sleep(self, seconds: float) -> None:
        """Until the time is over or `stop` is called."""
        if self._stopping:
            time.sleep(min(seconds, PERIOD_S))
            return
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.poll(seconds * 1000)


def _can_be_followed(tgid: int) -> bool:
    try:
        preflight.check_target(tgid)
    except CannotObserveError:
        return False
    return True


def _send(programs: Programs, tgid: int, number: signal.Signals) -> None:
    """A signal to a target. By pidfd, and only to targets: the number may be another process's by now."""
    try:
        pidfd = os.pidfd_open(tgid)
    except OSError:
        return
    try:
        if programs.is_followed(pidfd):
            signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)
