"""Live capture: packets of the target's ports into a pcapng file, by a helper process."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from sockscope.errors import CannotObserveError
from sockscope.model.info import PacketCoverage
from sockscope.model.sockaddr import Address, Family
from sockscope.sources.child import environment
from sockscope.sources.packets.capture_protocol import Operation, Reply, Request
from sockscope.sources.packets.interfaces import interfaces_for
from sockscope.sources.packets.segments import open_segments

__all__ = ["Capture", "interfaces_for"]

_REPLY_TIMEOUT_S = 20.0
_MODULE = "sockscope.sources.packets.capture_process"


class Capture:
    """A capture in a process of its own; its file is readable at any time, and after a SIGKILL.

    Use: `start()`, `add_ports()` as more become known, `stop()`. Callable from any thread.

    Args:
        interfaces: where to capture; empty: where `addresses` lead (`interfaces_for`, asked within
            the namespace), or every interface that is up.
        ports: TCP and UDP ports to capture; empty: all.
        path: the pcapng file to write (mode 0600; an existing one is overwritten).
        snap_bytes: bytes kept of each packet.
        netns_pid: capture in the network namespace of this process; None: in ours.
        addresses: the target's local addresses, where `interfaces` is empty.
        redact: mask what looks like credentials before it is written.
        keep_s: flight recorder: `path` is a folder, in which only the packets of about the last so many seconds
            stay (`cut`); None: one file with all.
    """

    def __init__(
        self,
        *,
        interfaces: Sequence[str],
        ports: Sequence[int],
        path: Path,
        snap_bytes: int = 192,
        netns_pid: int | None = None,
        addresses: Sequence[Address] = (),
        redact: bool = False,
        keep_s: float | None = None,
    ) -> None:
        self._folder = path if keep_s else None
        self._ports = sorted(set(ports))
        self._request = Request(
            operation=Operation.START,
            ports=self._ports,
            interfaces=list(interfaces),
            addresses=[(a.packed.hex(), a.port) for a in addresses if a.family in (Family.INET, Family.INET6)],
            path=str(path.absolute()),
            snap_bytes=max(snap_bytes, 64),
            netns_pid=netns_pid,
            redact=redact,
            keep_s=keep_s or 0.0,
        )
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._last = Reply()
        self._lost_helper = False
        self._stopped = False
        self._unread = b""

    def start(self) -> None:
        """Return once packets are being captured.

        Raises:
            CannotObserveError: no CAP_NET_RAW, no such interface, no such namespace, file not writable.
        """
        with self._lock:
            # -P: nothing is imported from the current folder. A session of its own: Ctrl-C is for us.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment(),
                start_new_session=True,
            )
            reply = self._exchange(self._request)
            if reply is None or reply.error:
                self._end_process()
                self._stopped = True
                if reply is None:
                    raise CannotObserveError("the packet capture process did not start")
                raise CannotObserveError(reply.error, help_text=reply.help_text or None)
            self._last = reply

    def add_ports(self, ports: Sequence[int]) -> None:
        """Capture these ports too, from now on. Without effect on a capture of all ports."""
        with self._lock:
            more = sorted(set(self._ports) | set(ports))
            if not self._ports or more == self._ports or self._stopped:
                return
            self._ports = more
            self._ask(Request(operation=Operation.PORTS, ports=more))

    def limit_to(self, ports: Sequence[int]) -> None:
        """Capture only these ports from now on; `add_ports` widens again."""
        with self._lock:
            if not self._stopped and ports:
                self._ports = sorted(set(ports))
                self._ask(Request(operation=Operation.PORTS, ports=self._ports))

    def coverage(self) -> PacketCoverage:
        """What was captured and lost so far; the last known after the end."""
        with self._lock:
            if not self._stopped:
                self._ask(Request(operation=Operation.COVERAGE))
            return self._coverage()

    def cut(self) -> list[BinaryIO]:
        """The packets kept up to now, as segments that follow one another; for the caller to close.

        Open: they may be deleted while they are read. `segments.join` makes one file of them.
        """
        if self._folder is None:
            return []
        with self._lock:
            if not self._stopped:
                self._ask(Request(operation=Operation.CUT))
            return open_segments(self._folder, whole=self._stopped)

    def notes(self) -> tuple[str, ...]:
        """What the user should know of the capture: that the disk was full, that it ended early."""
        with self._lock:
            died = ("packet capture ended early: its process died",) if self._lost_helper else ()
            return (*self._last.notes, *died)

    def stop(self) -> PacketCoverage:
        """Write what has come so far, end the helper; final counts. Safe to call twice."""
        with self._lock:
            if not self._stopped:
                self._ask(Request(operation=Operation.STOP))
                self._end_process()
                self._stopped = True
            return self._coverage()

    def __enter__(self) -> Capture:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _coverage(self) -> PacketCoverage:
        started = self._process is not None and bool(self._last.interfaces)
        return PacketCoverage(
            available=started,
            seen_count=self._last.seen_count,
            lost_count=self._last.lost_count,
            interfaces=tuple(self._last.interfaces),
        )

    def _ask(self, request: Request) -> None:
        if self._process is None or self._lost_helper:
            return
        reply = self._exchange(request)
        if reply is None:
            self._lost_helper = True
        else:
            self._last = reply

    def _exchange(self, request: Request) -> Reply | None:
        """One request, one reply; None where the helper is gone or does not answer."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            os.write(process.stdin.fileno(), request.line())
        except BrokenPipeError:
            return None
        deadline = time.monotonic() + _REPLY_TIMEOUT_S
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            readable, _, _ = select.select([process.stdout], [], [], max(left, 0))
            said = os.read(process.stdout.fileno(), 1 << 16) if readable else b""
            if not said:
                return None
            self._unread += said
        line, self._unread = self._unread.split(b"\n", 1)
        return Reply.of(line)

    def _end_process(self) -> None:
        process = self._process
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
