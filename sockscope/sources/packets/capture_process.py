"""The capture's helper process: rings drained into a pcapng file, apart from the main process and its GIL.

Started by `sockscope.sources.packets.live.Capture` as `python -m sockscope.sources.packets.capture_process`;
requests come by stdin, replies go to stdout. It ends, with all packets written, on STOP, at the end of stdin,
on SIGTERM, and when its parent is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

from sockscope.model.sockaddr import Address
from sockscope.sources.packets.capture_protocol import Operation, Reply, Request
from sockscope.sources.packets.interfaces import interfaces_for
from sockscope.sources.packets.link_layers import LinkType
from sockscope.sources.packets.mask import ETHERNET_BYTES, mask_frames
from sockscope.sources.packets.pcapng_writer import (
    enhanced_packets,
    interface_description,
    interface_statistics,
    section_header,
)
from sockscope.sources.packets.ring import NoRingError, Ring, Taken
from sockscope.sources.packets.segments import OneFile, Segments, Sink

RING_BYTES = 64 << 20
"""Of loopback, and of all others together; 128 000 packets, which is 0.6 s at 200 000 packets/s."""
MIN_RING_BYTES = 4 << 20
LOOPBACK = "lo"

NICENESS = -10
"""Little work, but at once: a ring that overflows is evidence lost."""

PAUSE_S = 0.04
"""Between two looks at the rings. Waking for each packet would cost the server more than the capture itself."""

_CLONE_NEWNET = 0x40000000
_NO_RAW = "run as root, or grant it: sudo setcap cap_net_raw+ep on the Python interpreter"


class _CannotStartError(Exception):
    """Why the capture cannot start, and the mend."""

    def __init__(self, reason: str, help_text: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.help_text = help_text


class _Source(Protocol):
    """One interface's packets; `Ring` says what each member does."""

    interface: str
    snap_bytes: int
    received_count: int
    dropped_count: int

    @property
    def link(self) -> LinkType: ...
    def set_ports(self, ports: Sequence[int]) -> None: ...
    def take(self) -> Iterator[Taken]: ...
    def update_counts(self) -> None: ...
    def clear_error(self) -> None: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class _Recorder:
    """Rings (or what stands in for one), file and counts."""

    rings: list[_Source]
    sink: Sink
    redact: bool = False
    seen_count: int = 0
    unwritten_count: int = 0
    notes: list[str] = field(default_factory=list)

    def drain(self) -> int:
        """Write what has come; the number of packets."""
        count = 0
        for number, ring in enumerate(self.rings):
            ring.clear_error()
            for taken in ring.take():
                packets = len(taken.wire)
                if self.redact:
                    mask_frames(taken.data, taken.captured, ETHERNET_BYTES if ring.link == LinkType.ETHERNET else 0)
                if self.sink.write(enhanced_packets(taken.data, taken.captured, taken.wire, taken.time_ns, number)):
                    self.seen_count += packets
                else:
                    self.unwritten_count += packets
                count += packets
        self.sink.tick()
        if self.sink.failure and self.sink.failure not in self.notes:
            self.notes.append(self.sink.failure)
        return count

    def reply(self) -> Reply:
        for ring in self.rings:
            ring.update_counts()
        return Reply(
            seen_count=self.seen_count,
            lost_count=self.unwritten_count + sum(ring.dropped_count for ring in self.rings),
            interfaces=[ring.interface for ring in self.rings],
            notes=self.notes,
        )

    def finish(self) -> None:
        """Drain, and let the file itself say what was lost."""
        self.drain()
        now_ns = time.time_ns()
        for number, ring in enumerate(self.rings):
            ring.update_counts()
            self.sink.write(interface_statistics(number, now_ns, ring.received_count, ring.dropped_count))


def _start(request: Request, ring_type: type[Ring]) -> _Recorder:
    if request.netns_pid is not None:
        _enter_namespace(request.netns_pid)
    interfaces = tuple(request.interfaces) or interfaces_for(
        [Address.inet(bytes.fromhex(packed), port) for packed, port in request.addresses]
        or [Address.inet(bytes(4), 0)],
        other_namespace=request.netns_pid is not None,
    )
    rings: list[_Source] = []
    notes: list[str] = []
    for interface in interfaces:
        try:
            rings.append(_open(interface, request, ring_type, _ring_bytes(interface, interfaces), notes))
        except PermissionError as error:
            raise _CannotStartError("no permission to capture packets (CAP_NET_RAW)", _NO_RAW) from error
        except OSError as error:
            if request.interfaces and error.errno == errno.ENODEV:
                raise _CannotStartError(
                    f"no network interface named {interface}", "ip -brief link shows them"
                ) from error
            notes.append(f"packets of {interface} are not captured: {error.strerror}")
    if not rings:
        raise _CannotStartError(notes[0] if notes else "no network interface to capture on is up")
    header = section_header("sockscope") + b"".join(
        interface_description(r.interface, r.link, r.snap_bytes) for r in rings
    )
    try:
        sink: Sink = (
            Segments(Path(request.path), header, keep_s=request.keep_s)
            if request.keep_s
            else OneFile(Path(request.path), header)
        )
    except OSError as error:
        raise _CannotStartError(
            f"cannot write {request.path}: {error.strerror}", "name a folder that can be written"
        ) from error
    return _Recorder(rings, sink, redact=request.redact, notes=notes)


def _open(interface: str, request: Request, ring_type: type[Ring], ring_bytes: int, notes: list[str]) -> _Source:
    """A ring, or where the kernel makes none, a plain socket and a note that says so."""
    try:
        return ring_type(interface, request.ports, snap_bytes=request.snap_bytes, ring_bytes=ring_bytes)
    except NoRingError as error:
        # Only here: scapy takes a third of a second to import.
        from sockscope.sources.packets.listening import Listening

        source = Listening(interface, request.ports, snap_bytes=request.snap_bytes)
        notes.append(f"{interface} is captured without a ring ({error.strerror}): packets may be lost")
        return source


def _ring_bytes(interface: str, interfaces: Sequence[str]) -> int:
    """Loopback is where the most comes fastest: a ring of its own size; the others share as much."""
    others = [name for name in interfaces if name != LOOPBACK]
    if interface == LOOPBACK or not others:
        return RING_BYTES
    return max(RING_BYTES // len(others), MIN_RING_BYTES)


def _enter_namespace(pid: int) -> None:
    """setns(2) to the network namespace of a process."""
    try:
        descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _CannotStartError(f"cannot open the network namespace of process {pid}: {error.strerror}") from error
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.setns(descriptor, _CLONE_NEWNET)
    os.close(descriptor)
    if failed:
        reason = os.strerror(ctypes.get_errno())
        raise _CannotStartError(
            f"cannot enter the network namespace of process {pid}: {reason}", "run as root (CAP_SYS_ADMIN)"
        )


class _Control:
    """Requests from stdin, as they come."""

    def __init__(self) -> None:
        self._rest = b""
        self._parent = os.getppid()
        self.ended = False

    def end(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        self.ended = True

    def wait(self, seconds: float | None) -> list[Request]:
        """Requests that came within the time."""
        if os.getppid() != self._parent:
            # Parent gone; stdin may be held open by a process that it forked.
            self.ended = True
        if self.ended:
            return []
        readable, _, _ = select.select([0], [], [], seconds)
        if not readable:
            return []
        said = os.read(0, 1 << 16)
        if not said:
            self.ended = True
        *lines, self._rest = (self._rest + said).split(b"\n")
        return [Request.of(line) for line in lines if line]


def _answer(reply: Reply) -> None:
    # Nobody may be there to read it any more.
    with contextlib.suppress(BrokenPipeError):
        os.write(1, reply.line())


def main(ring_type: type[Ring] = Ring) -> None:
    """Serve one capture.

    Args:
        ring_type: how rings are made.
    """
    control = _Control()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, control.end)
    with contextlib.suppress(PermissionError):
        os.nice(NICENESS)
    first: list[Request] = []
    while not first and not control.ended:
        first = control.wait(1.0)
    if not first:
        return
    try:
        recorder = _start(first[0], ring_type)
    except _CannotStartError as error:
        _answer(Reply(error=error.reason, help_text=error.help_text))
        return
    _answer(recorder.reply())
    _serve(recorder, control, first[1:])


def _serve(recorder: _Recorder, control: _Control, requests: list[Request]) -> None:
    stopping = False
    while not stopping and not control.ended:
        for request in requests:
            if request.operation == Operation.PORTS:
                for ring in recorder.rings:
                    ring.set_ports(request.ports)
            elif request.operation == Operation.CUT:
                recorder.drain()
                recorder.sink.cut()
            elif request.operation == Operation.STOP:
                stopping = True
                break
            _answer(recorder.reply())
        if not stopping:
            busy = recorder.drain() * 512 >= RING_BYTES // 8
            requests = control.wait(0 if busy else PAUSE_S)
    recorder.finish()
    if stopping:
        _answer(recorder.reply())
    for ring in recorder.rings:
        ring.close()


if __name__ == "__main__":
    main()
