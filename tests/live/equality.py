"""A recording without what differs from one run to the next: what is left must not depend on the engine.

Pids and tids become names (`server`, its threads and children in order of birth), ephemeral ports and pointers go,
times only order.
"""

from __future__ import annotations

import select
import signal
import struct
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType

import numpy as np

from sockscope.analysis.session import Session
from sockscope.model.calls import FIRST_TASK_EVENT, KERNEL_EVENTS, Call
from sockscope.model.events import EventFlag, Events, Section, unpack_sections
from sockscope.model.findings import Finding
from sockscope.model.sockaddr import Address, Family, decode_sockaddr

PLAIN: Mapping[Call, tuple[int, ...]] = MappingProxyType(
    {
        Call.socket: (0, 1, 2),
        Call.socketpair: (0, 1, 2),
        Call.bind: (0, 2),
        Call.listen: (0, 1),
        Call.accept: (0,),
        Call.accept4: (0, 3),
        Call.connect: (0, 2),
        Call.shutdown: (0, 1),
        Call.getsockopt: (0, 1, 2),
        Call.setsockopt: (0, 1, 2, 4),
        Call.getsockname: (0,),
        Call.getpeername: (0,),
        Call.sendto: (0, 2, 3, 5),
        Call.sendmsg: (0, 2),
        Call.recvfrom: (0, 2, 3),
        Call.recvmsg: (0, 2),
        Call.sendmmsg: (0, 2, 3),
        Call.recvmmsg: (0, 2, 3),
        Call.read: (0, 2),
        Call.write: (0, 2),
        Call.readv: (0, 2),
        Call.writev: (0, 2),
        Call.pread64: (0, 2, 3),
        Call.pwrite64: (0, 2, 3),
        Call.preadv: (0, 2, 3),
        Call.pwritev: (0, 2, 3),
        Call.preadv2: (0, 2, 3, 5),
        Call.vmsplice: (0, 2, 3),
        Call.tee: (0, 1, 2, 3),
        Call.sendfile: (0, 1, 3),
        Call.splice: (0, 2, 4, 5),
        Call.close: (0,),
        Call.close_range: (0, 1, 2),
        Call.dup: (0,),
        Call.dup2: (0, 1),
        Call.dup3: (0, 1, 2),
        Call.fcntl: (0, 1),
        Call.ioctl: (0, 1),
        Call.pipe: (),
        Call.pipe2: (1,),
        Call.poll: (1, 2),
        Call.ppoll: (1,),
        Call.select: (0,),
        Call.pselect6: (0,),
        Call.epoll_create: (),
        Call.epoll_create1: (0,),
        Call.epoll_ctl: (0, 1, 2),
        Call.epoll_wait: (0, 2, 3),
        Call.epoll_pwait: (0, 2, 3),
        Call.clone: (0,),
        Call.clone3: (1,),
        Call.fork: (),
        Call.vfork: (),
        Call.execve: (),
        Call.exit: (0,),
        Call.exit_group: (0,),
        Call.wait4: (2,),
        Call.waitid: (0, 3),
        Call.unshare: (0,),
        Call.kill: (1,),
        Call.tgkill: (2,),
        Call.openat: (0, 2),
        Call.open: (1,),
        Call.unlink: (),
        Call.unlinkat: (0, 2),
        Call.mmap: (1, 2, 3, 4, 5),
        Call.eventfd: (0,),
        Call.eventfd2: (0, 1),
        Call.memfd_create: (1,),
        Call.timerfd_create: (0, 1),
        Call.signalfd: (0,),
        Call.signalfd4: (0, 2, 3),
        Call.shmget: (0, 1, 2),
        Call.shmat: (2,),
        Call.shmdt: (),
        Call.shmctl: (1,),
        Call.pidfd_open: (1,),
        Call.pidfd_getfd: (0, 1, 2),
        Call.task_new: (2,),
        Call.task_exec: (),
        Call.task_exit: (0,),
        Call.task_signal: (0, 1),
        Call.task_stop: (0,),
        Call.task_attach: (),
        Call.task_detach: (),
    }
)
"""Which arguments are neither pointers nor pids. A call that is not named here is none that the program makes."""

PIDS: Mapping[Call, tuple[int, ...]] = MappingProxyType(
    {
        Call.wait4: (0,),
        Call.waitid: (1,),
        Call.pidfd_open: (0,),
        Call.kill: (0,),
        Call.tgkill: (0, 1),
        Call.task_new: (0, 1),
        Call.task_exec: (0,),
        Call.task_signal: (2,),
    }
)

EPOLL_FORMATS = MappingProxyType({Section.EPOLL_EVENTS: "<IQ", Section.EPOLL_EVENTS_ALIGNED: "<IxxxxQ"})

EPOLL_CTL_DEL = 2
"""Its struct epoll_event is ignored, and holds anything."""

MAKES_PID = frozenset({Call.clone, Call.clone3, Call.fork, Call.vfork, Call.wait4})

MAKES_NUMBER = frozenset({Call.mmap, Call.shmat, Call.shmget})
"""Addresses and names of the kernel's choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One event as it must be under every engine."""

    call: str
    args: tuple[int, ...]
    pids: tuple[str, ...]
    ret: str
    flags: str
    sections: tuple[str, ...]

    def __str__(self) -> str:
        words = [*map(str, self.args), *self.pids]
        return f"{self.call}({', '.join(words)}) = {self.ret} {self.flags} {' '.join(self.sections)}"


class Normal:
    """One recording of the equality program.

    Args:
        session: the recording, joined.
        tgid: the program's first process.
        port: the program's.
        folder: where the program is.
    """

    def __init__(self, session: Session, tgid: int, port: int, folder: Path) -> None:
        self._session = session
        self._port = port
        self._folder = bytes(folder)
        self._names = _names(session.events, tgid)
        self._at_attach = self._first_calls()

    def threads(self) -> dict[str, list[str]]:
        """Of each thread all that it did, in order."""
        records = self._session.events.records
        rows: dict[str, list[tuple[tuple[int, int], int]]] = defaultdict(list)
        for event in range(len(records)):
            call = Call(int(records[event]["call"]))
            if call in KERNEL_EVENTS:
                # Facts about sockets, not the program's doing, and told by bpf alone.
                continue
            name = self._name(int(records[event]["tid"]))
            if call is Call.task_signal and records[event]["args"][0] == signal.SIGCHLD:
                # The child may end before its parent waits for it, or after: the program's own race.
                name += ", told of children"
            rows[name].append((self._place(event), event))
        return {
            name: [str(self.step(event)) for _, event in sorted(each) if self._counts(event)]
            for name, each in rows.items()
        }

    def connections(self) -> list[str]:
        """Each connection with what was done on it, by whom, in order of the connections' beginning."""
        told = []
        ours = [each for each in self._session.connections if each.open_file >= 0]
        for each in sorted(ours, key=lambda c: (c.first_ns, c.id)):
            facts = [
                each.protocol.value,
                each.role.value,
                self._address(each.local),
                self._address(each.peer),
                "witnessed" if each.witnessed else "found",
                f"read {each.read_bytes}",
                f"written {each.written_bytes}",
                "told of the end" if each.eof_ns is not None else "not told of an end",
                f"held by {sorted((self._name(tgid), fd) for tgid, fd in each.owners)}",
                "with packets" if each.flow >= 0 else "without packets",
            ]
            records = self._session.events.records
            events = [event for event in self._session.events_of(each.id).tolist() if self._counts(event)]
            done = [f"    {self._name(int(records[event]['tid']))}: {self.step(event)}" for event in events]
            told.append("\n".join([", ".join(facts), *done]))
        return told

    def finding(self, each: Finding) -> str:
        holder = f", held by {self._name(each.holder.tgid)} fd {each.holder.fd}" if each.holder else ""
        return (
            f"{each.rule} {each.severity.label} {each.confidence.value} {self._name(each.tgid)} fd {each.fd} "
            f"x {each.count}{holder}"
        )

    def step(self, event: int) -> Step:
        events = self._session.events
        row = events.records[event]
        call = Call(int(row["call"]))
        ret = int(row["ret"])
        copied = (
            [] if call is Call.epoll_ctl and row["args"][1] == EPOLL_CTL_DEL else unpack_sections(events.blob_of(event))
        )
        said = str(ret)
        if ret > 0 and call in MAKES_PID:
            said = self._name(ret)
        elif call in MAKES_NUMBER:
            said = "a number" if ret > 0 else said
        known = EventFlag(int(row["flags"]))
        if event in self._at_attach:
            known &= ~EventFlag.NO_ENTRY
        return Step(
            call=call.name,
            args=tuple(int(row["args"][i]) for i in PLAIN[call]),
            pids=tuple(self._name(int(np.int64(np.uint64(row["args"][i])))) for i in PIDS.get(call, ())),
            ret=said,
            flags=known.name or "" if known else "",
            sections=tuple(
                f"{Section(kind).name}{f' errno {errno}' if errno else ''} {self._content(Section(kind), data)}"
                for kind, errno, data in copied
            ),
        )

    def _first_calls(self) -> frozenset[int]:
        """Of each thread that was there before: what it was in at the attach, or came back to."""
        records = self._session.events.records
        first: dict[int, int] = {}
        attached = set(records["tid"][records["call"] == Call.task_attach].tolist())
        for event in np.flatnonzero(records["call"] < FIRST_TASK_EVENT).tolist():
            tid = int(records[event]["tid"])
            if tid in attached and self._counts(event):
                first[tid] = min(first.get(tid, event), event, key=self._place)
        return frozenset(first.values())

    def _counts(self, event: int) -> bool:
        # Only a tracer that stops its target breaks off what it waits in.
        return not int(self._session.events.records[event]["flags"]) & EventFlag.TRACER_EINTR

    def _place(self, event: int) -> tuple[int, int]:
        """The order of a thread's events: what came before the watching first."""
        row = self._session.events.records[event]
        if row["call"] == Call.task_attach:
            return (0, 0)
        if row["enter_ns"] < 0:
            return (1, int(row["exit_ns"]))
        return (2, int(row["enter_ns"]))

    def _name(self, tid: int) -> str:
        return self._names.get(tid, "somebody" if tid > 1 else str(tid))

    def _content(self, kind: Section, data: bytes) -> str:
        if kind is Section.SOCKADDR:
            return self._address(decode_sockaddr(data))
        if kind is Section.CLONE_ARGS:
            # The rest are pointers.
            flags, exit_signal = struct.unpack_from("<Q", data)[0], struct.unpack_from("<Q", data, 32)[0]
            return f"flags {flags:#x} signal {exit_signal}"
        if kind in EPOLL_FORMATS:
            # CPython fills in the descriptor alone, half of the field.
            return str([(events, data & 0xFFFFFFFF) for events, data in struct.iter_unpack(EPOLL_FORMATS[kind], data)])
        if kind is Section.POLLFDS:
            return str([(fd, asked, _told(revents)) for fd, asked, revents in struct.iter_unpack("<ihh", data)])
        return repr(data.replace(str(self._port).encode(), b"PORT").replace(self._folder, b"FOLDER"))

    def _address(self, address: Address | None) -> str:
        if address is None or address.family not in (Family.INET, Family.INET6):
            return str(address)
        port = {0: "0", self._port: "PORT"}.get(address.port, "another")
        return f"{address.host}:{port}"


def _told(revents: int) -> int:
    # A reset ends the state (POLLHUP) a moment before it shuts the socket down (POLLIN): tcp_done, net/ipv4/tcp.c.
    ended = select.POLLERR | select.POLLHUP
    return revents & ~select.POLLIN if revents & ended == ended else revents


def _names(events: Events, tgid: int) -> dict[int, str]:
    """tid → name: threads and children in order of birth, under their parent's name."""
    records = events.records
    names = {tgid: "server"}
    here = np.unique(records["tid"][records["call"] == Call.task_attach]).tolist()
    for number, tid in enumerate(tid for tid in here if tid != tgid):
        names[tid] = f"server+{number}"
    born = np.flatnonzero(records["call"] == Call.task_new)
    children: dict[str, int] = defaultdict(int)
    for event in born[np.argsort(records["enter_ns"][born], kind="stable")].tolist():
        child, process = int(records[event]["args"][0]), int(records[event]["args"][1])
        parent = names.get(int(records[event]["tid"]), "somebody")
        children[parent] += 1
        names[child] = f"{parent}{'/' if child == process else '+'}{children[parent]}"
    return names


def differences(one: Mapping[str, list[str]], other: Mapping[str, list[str]]) -> list[str]:
    """In words, where each thread's story first differs."""
    told = [f"only the first knows {name}" for name in sorted(one.keys() - other.keys())]
    told += [f"only the second knows {name}" for name in sorted(other.keys() - one.keys())]
    for name in sorted(one.keys() & other.keys()):
        pairs = zip_longest(one[name], other[name], fillvalue="nothing more")
        told += [
            f"{name}, event {at}:\n  {first}\n  {second}" for at, (first, second) in enumerate(pairs) if first != second
        ][:1]
    return told
