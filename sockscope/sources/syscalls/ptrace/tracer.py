"""A tracer process: one thread, one set of tracees, one CPU when pinned.

Started by `engine.py`; imports neither numpy nor the syscall tables, so that it starts fast and stays one thread
(the ptrace calls belong to it). Ends by `os._exit`: the kernel then detaches every tracee wherever it is.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import sys
import time

from sockscope.errors import CannotObserveError
from sockscope.sources.syscalls.ptrace import attach, guardian, launch, wire
from sockscope.sources.syscalls.ptrace.native import Native, Reason, address_of

READER_TIMEOUT_S = 1.0
"""How long the target may stand still because the main process does not read; then events are dropped, counted."""
FINISH_TIMEOUT_S = 2.0
TERM_TIMEOUT_S = 5.0
"""A launched command gets this long after SIGTERM."""


class Buffer:
    """The shared segments: each `record_max` records, then their blob.

    Attributes:
        current: the segment being written; None: none free, events are dropped.
    """

    def __init__(self, memory: mmap.mmap, setup: wire.Setup, loop: Native) -> None:
        self._setup = setup
        self._loop = loop
        self._view = memoryview(memory)
        self._base = address_of(self._view)
        self._free = list(range(setup.segment_count))
        self.current: int | None = None
        self.take()

    def take(self) -> bool:
        """Write to the next free segment; False where there is none."""
        setup = self._setup
        if not self._free:
            self.current = None
            self._loop.set_buffer(0, 0, 0, 0, dropping=True)
            return False
        self.current = self._free.pop(0)
        at = self._base + self.current * setup.segment_bytes
        records = setup.record_max * setup.record_bytes
        self._loop.set_buffer(at, setup.record_max, at + records, setup.segment_bytes - records)
        return True

    def release(self, segment: int) -> None:
        """The reader is done with it."""
        self._free.append(segment)
        if self.current is None:
            self.take()

    @property
    def spare(self) -> bool:
        return bool(self._free)


class Tracer:
    """The conversation with the main process around the loop."""

    def __init__(
        self, channel: socket.socket, memory: mmap.mmap, setup: wire.Setup, ignored: frozenset[signal.Signals]
    ) -> None:
        self._channel = channel
        self._ignored = ignored
        self._loop = Native()
        # Before anything is pinned, and while this process is certainly one thread.
        guard = guardian.start(setup.cpu, channel.fileno()) if setup.cpu is not None else -1
        self._loop.init(
            bytes(memory[: setup.plan_bytes]),
            payload_bytes=setup.payload_bytes,
            guard_fd=guard,
            restart_syscall=setup.restart_syscall,
            rt_sigreturn=setup.rt_sigreturn,
            execve=setup.execve,
        )
        self._buffer = Buffer(memory, setup, self._loop)
        self._setup = setup
        self._guard = guard
        self._orphan = False
        self._stopping = False
        self._finishing = False
        self._launched = 0
        self._kill_at: float | None = None
        self._asked: set[int] = set()
        self._sign_unseen = False

    def serve(self) -> None:
        """From the order to attach or launch to the end."""
        order = wire.receive(self._channel)
        try:
            if isinstance(order, wire.Attach):
                if order.lenient:
                    count = attach.adopt(self._loop, order.tgids)
                else:
                    count = attach.attach(self._loop, order.tgids, self._setup.cpu, self._guard)
                ready = wire.Ready(process_count=count)
            elif isinstance(order, wire.Launch):
                child = launch.start(self._loop, order, self._setup.numbers, self._ignored)
                self._launched = child.pid
                ready = wire.Ready(process_count=1, tgid=child.pid)
            else:
                return
        except CannotObserveError as error:
            wire.send(self._channel, wire.Refused(message=error.message, help_text=error.help_text))
            return
        wire.send(self._channel, ready)
        if self._launched:
            if not isinstance(wire.receive(self._channel), wire.Go):
                os.kill(self._launched, signal.SIGKILL)
                return
            child.go()
        self._trace()
        self._finish()

    def _trace(self) -> None:
        while True:
            reason = self._loop.run()
            self._listen()
            if self._orphan and not self._launched:
                return
            if reason is Reason.END:
                return
            if (reason is Reason.STOP or self._stopping) and not self._launched:
                return
            if self._launched and (self._stopping or self._orphan or reason is Reason.STOP):
                self._end_launched()
            if reason is Reason.FULL:
                self._flush()
                self._await_segment(READER_TIMEOUT_S)
            elif reason is Reason.TICK:
                self._tick()

    def _tick(self) -> None:
        # With no other segment free the present one is better filled further.
        if self._buffer.current is not None and self._buffer.spare and self._loop.used().record_count:
            self._flush()
        elif not self._sign_unseen:
            # One at a time: a channel full of signs of life would block this process, and so the target.
            self._say(-1, 0, 0)
            self._sign_unseen = True

    def _flush(self) -> None:
        """Hand the present segment over and go on in the next."""
        used = self._loop.used()
        segment = self._buffer.current
        if segment is not None:
            # Stamped before the next wait: whatever is recorded later ended later.
            self._say(segment, used.record_count, used.blob_bytes)
            self._buffer.take()

    def _say(self, segment: int, records: int, blob: int) -> None:
        used = self._loop.used()
        wire.send(
            self._channel,
            wire.Filled(
                segment=segment,
                record_count=records,
                blob_bytes=blob,
                complete_ns=time.monotonic_ns(),
                dropped_count=used.dropped_count,
                foreign_count=used.foreign_count,
                unread_count=used.unread_count,
            ),
        )

    def _listen(self, timeout_s: float = 0.0) -> None:
        """Take every message that is there; wait for the first one at most so long."""
        poller = select.poll()
        poller.register(self._channel, select.POLLIN)
        while not self._orphan and poller.poll(timeout_s * 1000):
            timeout_s = 0.0
            message = wire.receive(self._channel)
            if message is None:
                self._orphan = True
            elif isinstance(message, wire.Free):
                if message.segment < 0:
                    self._sign_unseen = False
                else:
                    self._buffer.release(message.segment)
            elif isinstance(message, wire.Stop):
                self._stopping = True
            elif isinstance(message, wire.Attach) and not self._stopping and not self._finishing:
                # Between two waits, in the thread to which the tracees belong.
                attach.adopt(self._loop, message.tgids)

    def _await_segment(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._buffer.current is None and not self._orphan:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._listen(left)

    def _end_launched(self) -> None:
        """SIGTERM once, SIGKILL after a while. It cannot be let go: with its filter it would see ENOSYS.

        First to the command alone, which may end its children in its own way; to what it leaves (a shell
        passes nothing on) when it is gone.
        """
        tgids = {tgid for _, tgid in self._loop.tasks()}
        if self._kill_at is None:
            self._kill_at = time.monotonic() + TERM_TIMEOUT_S
        if time.monotonic() > self._kill_at:
            for tgid in tgids:
                _kill(tgid, signal.SIGKILL)
            return
        for tgid in ({self._launched} if self._launched in tgids else tgids) - self._asked:
            self._asked.add(tgid)
            _kill(tgid, signal.SIGTERM)

    def _finish(self) -> None:
        self._finishing = True
        while not self._loop.finish() and not self._orphan:
            self._flush()
            self._await_segment(FINISH_TIMEOUT_S)
        self._flush()
        wire.send(self._channel, wire.Ended(status=self._loop.root_status()))


def _kill(tgid: int, number: signal.Signals) -> None:
    try:
        os.kill(tgid, number)
    except ProcessLookupError:
        return


def main(channel_fd: int, memory_fd: int) -> None:
    """Entry point of the process.

    Args:
        channel_fd: SOCK_SEQPACKET to the main process.
        memory_fd: the shared buffer (memfd).
    """
    # The terminal's keys go to the whole foreground group; the main process decides what they mean.
    ignored = launch.ignore_terminal()
    # Passed on by inheritance, and no further.
    os.set_inheritable(channel_fd, False)
    channel = socket.socket(fileno=channel_fd)
    setup = wire.receive(channel)
    if not isinstance(setup, wire.Setup):
        os._exit(1)
    memory = mmap.mmap(memory_fd, setup.segment_count * setup.segment_bytes)
    os.close(memory_fd)
    code = 1
    try:
        Tracer(channel, memory, setup, ignored).serve()
        code = 0
    except CannotObserveError as error:
        wire.send(channel, wire.Refused(message=error.message, help_text=error.help_text))
    finally:
        if code:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        os._exit(code)
