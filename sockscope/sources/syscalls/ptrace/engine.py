"""The ptrace engine as the pipeline sees it: tracer processes started, their buffers read, their end awaited."""

from __future__ import annotations

import mmap
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sockscope.errors import CannotObserveError
from sockscope.model.calls import Call
from sockscope.model.events import EVENT_DTYPE, Events
from sockscope.model.info import SyscallCoverage
from sockscope.sources.syscalls.abi import Abi, abi_of
from sockscope.sources.syscalls.copy_plan import pack_plans
from sockscope.sources.syscalls.engine import Batch, EngineOptions
from sockscope.sources.syscalls.ptrace import attach, preflight, wire

SEGMENT_COUNT = 4
SEGMENT_BYTES = 16 << 20
RECORD_MAX = 1 << 16
READY_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 10.0
POLL_MS = 100
TIME_MAX_NS = (1 << 63) - 1

_BOOT = """import sys; sys.path.append(sys.argv[1])
from sockscope.sources.syscalls.ptrace.tracer import main
main(int(sys.argv[2]), int(sys.argv[3]))"""


class Helper:
    """One tracer process and what is known of it."""

    def __init__(self, setup: wire.Setup, plans: bytes, inherited: Sequence[int] = ()) -> None:
        size = setup.segment_count * setup.segment_bytes
        memory_fd = os.memfd_create("sockscope", os.MFD_CLOEXEC)
        os.ftruncate(memory_fd, size)
        self.memory = mmap.mmap(memory_fd, size)
        self.memory[: len(plans)] = plans
        self.setup = setup
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = str(Path(__file__).parents[4])
        # Isolated: neither the environment nor the working directory may change what it imports.
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOT, root, str(theirs.fileno()), str(memory_fd)],
            pass_fds=(theirs.fileno(), memory_fd, *inherited),
        )
        theirs.close()
        os.close(memory_fd)
        self.complete_ns = 0
        self.dropped_count = 0
        self.foreign_count = 0
        self.unread_count = 0
        self.ended = False
        """It said so: every event is delivered."""
        self.gone = False
        """Its channel is at its end: detached, affinity restored."""
        self.status: int | None = None
        wire.send(self.channel, setup)

    def take(self, message: wire.Message | None) -> Events | None:
        """Act on one message; the events it brought, copied out of the buffer."""
        if message is None:
            self.gone = True
            self.complete_ns = TIME_MAX_NS
        elif isinstance(message, wire.Ended):
            self.ended = True
            self.status = message.status
            self.complete_ns = TIME_MAX_NS
        elif isinstance(message, wire.Filled):
            self.complete_ns = message.complete_ns
            self.dropped_count = message.dropped_count
            self.foreign_count = message.foreign_count
            self.unread_count = message.unread_count
            events = self._read(message) if message.segment >= 0 else None
            wire.send(self.channel, wire.Free(segment=message.segment))
            return events
        return None

    def _read(self, filled: wire.Filled) -> Events:
        at = filled.segment * self.setup.segment_bytes
        blob_at = at + self.setup.record_max * self.setup.record_bytes
        records = np.frombuffer(self.memory, EVENT_DTYPE, filled.record_count, at).copy()
        blob = np.frombuffer(self.memory, np.uint8, filled.blob_bytes, blob_at).copy()
        return Events(records=records, blob=blob)

    def release(self) -> None:
        """End the process if it still runs, and give back what it held."""
        if self.process.poll() is None:
            try:
                self.process.wait(1.0)
            except subprocess.TimeoutExpired:
                # Its tracees go on: the kernel detaches them, the guardian restores their masks.
                self.process.kill()
                self.process.wait()
        self.channel.close()
        self.memory.close()


class PtraceEngine:
    """Follows processes by ptrace(2), one tracer process a CPU. Obeys `sockscope.sources.syscalls.engine.Engine`.

    A target that runs is pinned to one CPU together with its tracer (a hand-over is ten times cheaper there); a
    launched command is not, since programs size themselves by the CPUs they find at their start.
    """

    name = "ptrace"

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._helpers: list[Helper] = []
        self._adopters: list[Helper] = []
        self._event_count = 0
        self._pinned = False
        self._launched = False
        self._stopping = threading.Event()
        self._died_count = 0
        self._closed = False

    def attach(self, tgids: Sequence[int]) -> None:
        """Follow running processes.

        Raises:
            CannotObserveError: one of them cannot be traced; none is then.
            TargetGoneError: all of them have ended.
        """
        abi = abi_of(preflight.check_machine())
        if not tgids:
            raise CannotObserveError("there is no process to attach to")
        alive = preflight.still_there(tgids)
        try:
            for group, cpu in _groups(alive, pin=self._options.pin):
                helper = self._start(abi, cpu)
                wire.send(helper.channel, wire.Attach(tgids=group))
                self._pinned |= cpu is not None
            if not sum(self._await_ready(helper).process_count for helper in self._helpers):
                raise preflight.gone_error(alive[0])
        except BaseException:
            self.close()
            raise

    def launch(self, command: Sequence[str]) -> int:
        """Start a command under trace; it waits until `batches()` is iterated.

        Raises:
            UsageError: it is not found or not executable.
            CannotObserveError: tracing is not allowed at all.
        """
        abi = abi_of(preflight.check_machine())
        path = preflight.check_command(command[0] if command else "")
        try:
            helper = self._start(abi, None, _inheritable())
            wire.send(helper.channel, wire.Launch(path=path, command=list(command)))
            tgid = self._await_ready(helper).tgid
        except BaseException:
            self.close()
            raise
        self._launched = True
        return tgid

    def adopt(self, tgids: Sequence[int]) -> None:
        """Follow more running processes; those that cannot be traced are passed over, those followed already, too.

        They are not pinned, like a launched command: they are young.
        """
        wanted = [tgid for tgid in tgids if _can_be_traced(tgid)]
        if not wanted or self._stopping.is_set():
            return
        order = wire.Attach(tgids=wanted, lenient=True)
        busy = [helper for helper in self._adopters if not helper.ended and not helper.gone]
        if len(busy) >= len(os.sched_getaffinity(0)):
            # The longest idle first; should it end before it reads this, the caller finds them again.
            self._adopters.remove(busy[0])
            self._adopters.append(busy[0])
            wire.send(busy[0].channel, order)
            return
        helper = self._start(abi_of(preflight.check_machine()), None)
        wire.send(helper.channel, order)
        self._await_ready(helper)
        self._adopters.append(helper)
        if self._stopping.is_set():
            wire.send(helper.channel, wire.Stop())

    def add_ports(self, ports: Sequence[int]) -> None:
        """Nothing: what the kernel does on its own is not seen by ptrace."""

    def batches(self) -> Iterator[Batch]:
        """Yield what the tracers recorded, at least every 100 ms, until all of them have ended.

        With `EngineOptions.port` until `stop()`: another process may come to serve it.
        """
        if self._launched:
            wire.send(self._helpers[0].channel, wire.Go())
        while True:
            by_fd = {helper.channel.fileno(): helper for helper in self._helpers if not helper.gone}
            lasting = self._options.port is not None and not self._stopping.is_set()
            if not by_fd and not lasting:
                return
            now = time.monotonic_ns()
            poller = select.poll()
            for fd in by_fd:
                poller.register(fd, select.POLLIN)
            parts: list[Events] = []
            for fd, _ in poller.poll(POLL_MS):
                helper = by_fd[fd]
                events = self._receive(helper)
                if events is not None:
                    parts.append(events)
                if helper.gone:
                    helper.release()
            # Those adopted later end later than this moment, too.
            none_left = now if lasting else TIME_MAX_NS
            complete_ns = min((helper.complete_ns for helper in self._helpers if not helper.gone), default=none_left)
            yield Batch(events=Events.concat(parts), complete_ns=min(complete_ns, none_left))

    def stop(self) -> None:
        """Ask every tracer to detach; a launched command is sent SIGTERM, and SIGKILL five seconds later."""
        self._stopping.set()
        for helper in self._helpers:
            if not helper.gone:
                wire.send(helper.channel, wire.Stop())

    def close(self) -> None:
        """Detach, end the tracers and wait until affinity is restored. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self.stop()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for helper in self._helpers:
            while not helper.gone:
                left = deadline - time.monotonic()
                helper.channel.settimeout(max(left, 0.01))
                try:
                    self._receive(helper)
                except TimeoutError:
                    break
            helper.release()

    def coverage(self) -> SyscallCoverage:
        """Events delivered, and lost by cause."""
        lost = {
            "buffer full": sum(helper.dropped_count for helper in self._helpers),
            "32-bit process not followed": sum(helper.foreign_count for helper in self._helpers),
            "kernel has no PTRACE_GET_SYSCALL_INFO": sum(helper.unread_count for helper in self._helpers),
            "tracer died": self._died_count,
        }
        return SyscallCoverage(
            engine=self.name,
            event_count=self._event_count,
            lost={cause: count for cause, count in lost.items() if count},
            pinned=self._pinned,
        )

    def exit_status(self) -> int | None:
        """Wait status of the launched command, once it has ended."""
        return self._helpers[0].status if self._launched else None

    def _start(self, abi: Abi, cpu: int | None, inherited: Sequence[int] = ()) -> Helper:
        plans = pack_plans(abi)
        setup = wire.Setup(
            segment_count=SEGMENT_COUNT,
            segment_bytes=SEGMENT_BYTES,
            record_bytes=EVENT_DTYPE.itemsize,
            record_max=RECORD_MAX,
            plan_bytes=len(plans),
            payload_bytes=self._options.payload_bytes,
            restart_syscall=abi.restart_syscall,
            rt_sigreturn=abi.rt_sigreturn,
            execve=abi.numbers[Call.execve],
            cpu=cpu,
            numbers=sorted([*abi.calls, abi.restart_syscall, abi.rt_sigreturn]),
        )
        helper = Helper(setup, plans, inherited)
        self._helpers.append(helper)
        return helper

    def _await_ready(self, helper: Helper) -> wire.Ready:
        helper.channel.settimeout(READY_TIMEOUT_S)
        try:
            message = wire.receive(helper.channel)
        except TimeoutError:
            raise CannotObserveError("the tracer process does not answer") from None
        helper.channel.settimeout(None)
        if isinstance(message, wire.Refused):
            raise CannotObserveError(message.message, help_text=message.help_text)
        if not isinstance(message, wire.Ready):
            raise CannotObserveError("the tracer process ended before it attached")
        return message

    def _receive(self, helper: Helper) -> Events | None:
        events = helper.take(wire.receive(helper.channel))
        if helper.gone and not helper.ended:
            self._died_count += 1
        if events is not None:
            self._event_count += len(events)
        return events


def _inheritable() -> list[int]:
    """What sockscope was given beside the standard three: a launched command gets it too (socket activation, <(…))."""
    found: list[int] = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
        except OSError:
            # The listing's own descriptor.
            continue
    return sorted(found)


def _can_be_traced(tgid: int) -> bool:
    try:
        preflight.check_target(tgid)
    except CannotObserveError:
        return False
    return True


def _groups(tgids: Sequence[int], *, pin: bool) -> list[tuple[list[int], int | None]]:
    """Which tracer follows which processes, and on which CPU: the busiest ones apart, the idle ones share."""
    order = sorted(dict.fromkeys(tgids), key=attach.cpu_ticks, reverse=True)
    count = min(len(order), len(os.sched_getaffinity(0)))
    groups = [order[i::count] for i in range(count)]
    if not pin:
        return [(group, None) for group in groups]
    taken: set[int] = set()
    pinned: list[tuple[list[int], int | None]] = []
    for group in groups:
        if any(attach.is_parallel(tgid) for tgid in group):
            pinned.append((group, None))
            continue
        allowed = attach.allowed_cpus(group[0])
        cpu = next((c for c in allowed if c not in taken), allowed[0] if allowed else None)
        if cpu is not None:
            taken.add(cpu)
        pinned.append((group, cpu))
    return pinned
