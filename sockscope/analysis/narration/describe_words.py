"""What an event means, in plain words, for those who do not read syscalls every day.

Empty where the call speaks for itself.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

from sockscope.analysis.narration import describe_settings as settings
from sockscope.analysis.narration import describe_values as v
from sockscope.analysis.narration.describe_view import View
from sockscope.analysis.narration.http1 import Direction, Http1State, PieceKind, narrate
from sockscope.analysis.narration.kernel_story import event_words
from sockscope.analysis.narration.payload import payload_words
from sockscope.model import constants as c
from sockscope.model.calls import EPOLL_WAITS, KERNEL_EVENTS, READS, WAITS, WRITES, Call
from sockscope.model.events import EventFlag, Events, Section
from sockscope.model.signals import exit_words
from sockscope.model.sockaddr import Family, decode_sockaddr

_READY_SHOWN = 4
_TRACER_EINTR = int(EventFlag.TRACER_EINTR)
_STREAMS_NOT = frozenset({Call.recvmmsg, Call.pread64, Call.preadv, Call.preadv2})


def words(events: Events, event: int) -> str:
    """What one event means: `a client connected from 127.0.0.1:40112; its descriptor is 7`."""
    return words_of(View.of(events, event))


Naming = Callable[[int], str]
"""Of what a wait names (poll, select: the descriptor; epoll: the data it was registered with): `LISTENER`, a
connection's name, or empty where nothing is known."""

LISTENER = "the listener"


def words_of(view: View, state: Http1State | None = None, naming: Naming = lambda key: "") -> str:
    """`words` for an event already taken out of its table.

    Args:
        state: HTTP/1 standing of the event's connection; brought up to date. None: judge the event alone.
        naming: what descriptors are, where that is known.
    """
    if view.uring:
        return f"{_words_of(view, state, naming) if view.returned else 'asked for, not done yet'} (io_uring)".lstrip()
    return _words_of(view, state, naming)


def _words_of(view: View, state: Http1State | None, naming: Naming) -> str:
    if view.call in KERNEL_EVENTS:
        return event_words(view.call, view.int_arg(1), view.int_arg(2))[2]
    if view.is_task:
        return _task(view)
    if view.errno:
        return _failure(view)
    if view.call in WAITS:
        return _wait(view, naming)
    if view.call in READS:
        return _read(view, state)
    if view.call in WRITES:
        return _write(view, state)
    if view.call in (Call.accept, Call.accept4):
        return _accept(view)
    if not view.returned:
        return "has not returned" if view.call not in (Call.exit, Call.exit_group) else ""
    return _control(view)


def _peer(view: View) -> str:
    address = decode_sockaddr(view.sections.get(Section.SOCKADDR, b""))
    return str(address) if address is not None else ""


def _accept(view: View) -> str:
    if not view.returned:
        return "waiting for a client to connect"
    peer = _peer(view)
    origin = f" from {peer}" if peer and peer != "*" else ""
    return f"a client connected{origin}; its descriptor is {view.ret}"


def _bytes(count: int) -> str:
    return "1 byte" if count == 1 else f"{count} bytes"


def _read(view: View, state: Http1State | None) -> str:
    if not view.returned:
        return "waiting for something to read"
    peek = view.call in (Call.recvfrom, Call.recvmsg) and view.args[3 if view.call == Call.recvfrom else 2] & c.MSG_PEEK
    total = view.moved_bytes
    if total == 0:
        if view.asked_bytes == 0 and not view.uring:
            return "asked for nothing, got nothing"
        if Section.SOCKADDR in view.sections:
            # Streams do not fill in the sender.
            return "read an empty datagram"
        return "" if view.call in _STREAMS_NOT else "told end of stream: the peer closed its sending half"
    verb = "looked ahead at" if peek else "read"
    fds = v.passed_fds(view.sections.get(Section.CONTROL, b""))
    passed = f"; received {_descriptors(fds)}" if fds else ""
    # Peeked bytes come again: they must not move the narration on.
    return f"{verb} {_carried(view, total, Direction.RECEIVED, Http1State() if peek else state)}{passed}"


def _write(view: View, state: Http1State | None) -> str:
    if not view.returned:
        return "waiting until there is room to send"
    total = view.moved_bytes
    fds = v.passed_fds(view.sections.get(Section.CONTROL, b""))
    passed = f"; passed {_descriptors(fds)} on" if fds else ""
    if total == 0:
        return f"sent nothing{passed}" if view.asked_bytes != 0 or passed else ""
    text = f"sent {_carried(view, total, Direction.SENT, state)}"
    if view.asked_bytes > total and view.call != Call.sendfile:
        text += f"; only {total} of {view.asked_bytes} bytes were taken"
    return text + passed


def _descriptors(fds: list[int]) -> str:
    return f"descriptor {fds[0]}" if len(fds) == 1 else f"descriptors {', '.join(map(str, fds))}"


def _carried(view: View, total: int, direction: Direction, state: Http1State | None) -> str:
    piece = narrate(direction, view.payload, total, state if state is not None else Http1State())
    if piece is None:
        return payload_words(view.payload, total)
    if piece.kind is PieceKind.BODY:
        return f"{_bytes(total)} of body"
    return f"{_bytes(total)}: {piece.what}"


def _wait(view: View, naming: Naming) -> str:
    timeout_ns = timeout_of(view)
    if not view.returned:
        return "waiting for an event" + (", without a time limit" if timeout_ns is None else "")
    if view.ret == 0:
        if timeout_ns == 0:
            return "looked for events without waiting, there were none"
        spent = timeout_ns if timeout_ns is not None else view.duration_ns
        return f"waited {duration(spent)} for an event, none came"
    ready = _ready(view)
    if not ready:
        return ""
    shown = [_told_ready(fd, bits, naming(key)) for key, fd, bits in ready[:_READY_SHOWN]]
    more = f", and {view.ret - _READY_SHOWN} more" if view.ret > _READY_SHOWN else ""
    return f"woken: {'; '.join(shown)}{more}"


def _told_ready(fd: int, bits: int, name: str) -> str:
    number = f"descriptor {fd}" if fd >= 0 else ""
    if name == LISTENER and bits & 0x1:
        return "a client waits to be accepted" + (f" (listener, {number})" if number else "")
    both = f"{name} ({number})" if name and number else name or number
    return f"{both} {_readiness(bits)}".lstrip()


def timeout_of(view: View) -> int | None:
    """A wait's time limit in ns; None where it has none (or it was not copied).

    Source: poll(2), select(2), epoll_wait(2): negative and NULL mean for ever.
    """
    if view.call in (Call.poll, Call.epoll_wait, Call.epoll_pwait):
        limit_ms = view.int_arg(2 if view.call == Call.poll else 3)
        return None if limit_ms < 0 else limit_ms * 1_000_000
    raw = view.sections.get(Section.TIMEOUT, b"")
    index = {Call.ppoll: 2, Call.epoll_pwait2: 3}.get(view.call, 4)
    if len(raw) != 16 or not view.args[index]:
        return None
    seconds, rest = struct.unpack("<qq", raw)
    return int(seconds * 1_000_000_000 + rest * (1000 if view.call == Call.select else 1))


def ready_fds(view: View) -> list[tuple[int, int]]:
    """What a wait reported: (fd, EPOLL* bits); fd -1 where epoll_data is not a descriptor.

    poll's bits are the same as epoll's; select's sets become EPOLLIN, EPOLLOUT and EPOLLPRI.
    """
    return [(fd, bits) for _, fd, bits in _ready(view)]


def told_ready(view: View) -> tuple[int, ...]:
    """The keys of what `words_of` tells that a wait reported: what it asks `naming` about."""
    return tuple(key for key, _, _ in _ready(view)[:_READY_SHOWN])


def _ready(view: View) -> list[tuple[int, int, int]]:
    """`ready_fds`, each after the key that `Naming` takes."""
    if view.errno or not view.returned or view.ret <= 0:
        return []
    if view.call in EPOLL_WAITS:
        entries = v.epoll_entries(
            view.sections.get(Section.EPOLL_EVENTS), view.sections.get(Section.EPOLL_EVENTS_ALIGNED)
        )
        return [(data, v.epoll_fd(data), events) for events, data in entries[: view.ret]]
    if view.call in (Call.poll, Call.ppoll):
        entries3 = v.poll_entries(view.sections.get(Section.POLLFDS, b""))
        return [(fd, fd, revents) for fd, _, revents in entries3 if revents]
    found: dict[int, int] = {}
    for bit, fds in zip(
        (0x1, 0x4, 0x2), v.fd_sets(view.sections.get(Section.FDSETS, b""), view.int_arg(0)), strict=True
    ):
        for fd in fds:
            found[fd] = found.get(fd, 0) | bit
    return [(fd, fd, bits) for fd, bits in found.items()]


def _readiness(bits: int) -> str:
    said = []
    if bits & 0x1:
        said.append("is readable")
    if bits & 0x4:
        said.append("has room to write")
    if bits & 0x2000:
        said.append("the peer closed its sending half")
    if bits & 0x10:
        said.append("both halves are closed")
    if bits & 0x8:
        said.append("has an error")
    if bits & 0x20:
        said.append("is not open")
    if bits & 0x2:
        said.append("has urgent data")
    return ", ".join(said) or v.flags(bits, c.EPOLL_EVENTS)


def duration(ns: int) -> str:
    """`500 ms`, `2.5 s`, `12 µs`."""
    for unit, size in (("s", 1_000_000_000), ("ms", 1_000_000), ("µs", 1000)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns < 1000 * size else f"{ns // size} {unit}"
    return f"{ns} ns"


_FAILURES = {
    (Call.accept, errno.EAGAIN): "nobody else waits to be accepted (EAGAIN)",
    (Call.connect, errno.EINPROGRESS): "connecting in the background; the outcome is told by SO_ERROR",
    (Call.connect, errno.ECONNREFUSED): "nobody listens there",
    (Call.connect, errno.EAGAIN): "the listener's queue is full (EAGAIN)",
    (Call.bind, errno.EADDRINUSE): "the address is already in use",
    (Call.listen, errno.EADDRINUSE): "another socket listens on this address",
    (Call.epoll_ctl, errno.EEXIST): "it is watched already",
    (Call.epoll_ctl, errno.ENOENT): "it was not being watched",
    (Call.wait4, errno.ECHILD): "there is no child to wait for",
    (Call.waitid, errno.ECHILD): "there is no child to wait for",
}

_GENERAL_FAILURES = {
    errno.EBADF: "the number names no open descriptor",
    errno.EPIPE: "the connection is already shut for sending: this cannot arrive",
    errno.ECONNRESET: "the peer has reset the connection",
    errno.ECONNABORTED: "the client went away before it was accepted",
    errno.ENOTCONN: "the socket is not connected",
    errno.EMFILE: "this process has no descriptor left (RLIMIT_NOFILE)",
    errno.ENFILE: "the whole system has no file left",
    errno.ETIMEDOUT: "the peer did not answer in time",
    errno.ENOTSOCK: "the descriptor is not a socket",
    errno.EFAULT: "a pointer given to the kernel was bad",
}


def _failure(view: View) -> str:
    number = view.errno
    if view.flags & _TRACER_EINTR:
        return "interrupted by the attach, not a fault of the program"
    call = Call.accept if view.call == Call.accept4 else view.call
    if text := _FAILURES.get((call, number)):
        return text
    if number == errno.EAGAIN:
        if view.call in READS:
            return "nothing to read yet (EAGAIN)"
        if view.call in WRITES:
            return "no room to send now: the send buffer is full (EAGAIN)"
    if number == errno.EINTR or number in c.RESTARTS:
        return "interrupted by a signal" + (", begun again" if number in c.RESTARTS else "")
    return _GENERAL_FAILURES.get(number, "")


def _control(view: View) -> str:
    match view.call:
        case Call.close:
            return ""
        case Call.shutdown:
            return {
                0: "will read no more",
                1: "finished sending: FIN goes out, reading goes on",
                2: "closed both halves, the descriptor stays",
            }.get(view.int_arg(1), "")
        case Call.bind:
            address = decode_sockaddr(view.sections.get(Section.SOCKADDR, b""))
            if address is None:
                return ""
            any_port = not address.port and address.family in (Family.INET, Family.INET6)
            return f"took a free port at {address.host}" if any_port else f"took the address {address}"
        case Call.listen:
            return f"accepts connections now, up to {view.int_arg(1)} may wait"
        case Call.connect:
            return f"connected to {_peer(view)}" if _peer(view) else ""
        case Call.dup | Call.dup2 | Call.dup3:
            same = view.args[0] == view.ret
            return "" if same else f"{view.ret} now names the same open file as {view.int_arg(0)}"
        case Call.fcntl:
            return settings.fcntl(view)
        case Call.setsockopt | Call.getsockopt:
            return settings.option(view)
        case Call.epoll_ctl:
            return settings.epoll_ctl(view)
        case Call.clone | Call.clone3 | Call.fork | Call.vfork:
            return _started(view)
        case Call.wait4:
            return _reaped(view)
        case Call.socket:
            return "a new socket: it neither listens nor is connected yet"
        case Call.getsockname:
            return "asks for its own address" if _peer(view) else ""
        case Call.getpeername:
            return "asks who is at the other end" if _peer(view) else ""
        case _:
            return ""


def _started(view: View) -> str:
    if view.ret <= 0:
        return ""
    flags = view.args[0] if view.call == Call.clone else 0
    raw = view.sections.get(Section.CLONE_ARGS, b"")
    if view.call == Call.clone3:
        if len(raw) < 8:
            return f"started {view.ret}"
        (flags,) = struct.unpack_from("<Q", raw)
    return f"started {'thread' if flags & c.CLONE_THREAD else 'process'} {view.ret}"


def _reaped(view: View) -> str:
    raw = view.sections.get(Section.INT, b"")
    if view.ret == 0:
        return "no child has ended"
    if view.ret < 0 or len(raw) != 4:
        return ""
    status = struct.unpack("<I", raw)[0]
    if status & 0xFF == 0x7F or status == 0xFFFF:
        return ""
    return f"child {view.ret} ended: {exit_words(status, exited='exit status')}"


def _task(view: View) -> str:
    if view.call == Call.task_exit and view.int_arg(0) & 0x7F == 13:
        return "it wrote to a connection that the peer had closed"
    if view.call == Call.task_exit and view.tid != view.tgid:
        return "the thread ended"
    if view.call == Call.task_new:
        if view.int_arg(1) == view.tgid:
            return "it has the same descriptors as all threads of the process"
        return "it begins with a copy of every descriptor"
    if view.call == Call.task_attach:
        return "it was running before the watching began"
    if view.call == Call.task_detach:
        return "what it does from here on is not seen"
    return ""
