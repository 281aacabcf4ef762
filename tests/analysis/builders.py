"""Sessions written by hand, as dialogues: events, a seed, packets and socket rows, one readable line each.

    script = Script().process(100, tids=(100,))
    script.seed_fd(100, 3, inode=11)
    script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=address("10.0.0.9", 4000))
    session = script.session()

Time goes on by 1 ms an event unless `at` says otherwise (ns since the start, `START_NS` is added).
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from sockscope.analysis.session import Session
from sockscope.model.calls import Call
from sockscope.model.events import EVENT_DTYPE, EventFlag, Events, Section, pack_section
from sockscope.model.facts import NETNS_FACT_DTYPE, PROCESS_FACT_DTYPE, SEGMENT_FACT_DTYPE, Facts, Relation
from sockscope.model.info import PacketCoverage, SessionInfo, SocketCoverage, SyscallCoverage, Target
from sockscope.model.packets import PACKET_DTYPE, Packets
from sockscope.model.seed import SEED_EPOLL_DTYPE, SEED_FD_DTYPE, FileKind, Seed, SeedProcess
from sockscope.model.sockaddr import Address, Family, encode_key
from sockscope.model.sockets import OWNER_DTYPE, SOCKET_DTYPE, Sockets
from sockscope.model.tcp import TcpFlag, TcpState

START_NS = 1_000_000_000
REALTIME_OFFSET_NS = 1_700_000_000_000_000_000
"""CLOCK_REALTIME minus CLOCK_MONOTONIC in every built session."""
STEP_NS = 1_000_000

SOCK_STREAM = 1
SOCK_DGRAM = 2
SOCK_CLOEXEC = 0o2000000
SOCK_NONBLOCK = 0o4000
EPOLLIN = 0x1
EPOLLOUT = 0x4
EPOLLRDHUP = 0x2000
EPOLLET = 1 << 31


def address(host: str, port: int) -> Address:
    """An inet address from its text."""
    return Address.inet(ipaddress.ip_address(host).packed, port)


def unix_address(path: str) -> Address:
    return Address(family=Family.UNIX, packed=path.encode())


def sockaddr(of: Address) -> bytes:
    """The raw `struct sockaddr` of an address."""
    if of.family == Family.INET:
        return struct.pack("<H", of.family) + struct.pack("!H", of.port) + of.packed + bytes(8)
    if of.family == Family.INET6:
        return struct.pack("<H", of.family) + struct.pack("!HI", of.port, 0) + of.packed + bytes(4)
    return struct.pack("<H", of.family) + of.packed


def sockaddr_in6(of: Address) -> bytes:
    """The struct sockaddr_in6 that kernel events carry, IPv4 as v4-mapped."""
    return struct.pack("<H", Family.INET6) + struct.pack("!HI", of.port, 0) + encode_key(of) + bytes(4)


def rights(fds: Sequence[int]) -> bytes:
    """msg_control with one SCM_RIGHTS message (unix(7)), x86_64 layout."""
    data = struct.pack(f"<{len(fds)}i", *fds)
    return (struct.pack("<Qii", 16 + len(data), 1, 1) + data).ljust(-(-(16 + len(data)) // 8) * 8, b"\0")


def epoll_event(events: int, data: int) -> bytes:
    """One packed struct epoll_event (x86_64)."""
    return struct.pack("<IQ", events, data)


def pollfd(fd: int, events: int, revents: int) -> bytes:
    return struct.pack("<ihh", fd, events, revents)


@dataclass(slots=True)
class Script:
    """Collects what happens; `session()` joins it. Chainable where nothing else is worth returning."""

    ports: tuple[int, ...] = ()
    engine: str = "test"
    now_ns: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    _rows: list[tuple[object, ...]] = field(default_factory=list)
    _blob: bytearray = field(default_factory=bytearray)
    _processes: list[SeedProcess] = field(default_factory=list)
    _fds: list[tuple[int, ...]] = field(default_factory=list)
    _epolls: list[tuple[int, ...]] = field(default_factory=list)
    _packets: list[tuple[object, ...]] = field(default_factory=list)
    _raw: bytearray = field(default_factory=bytearray)
    _sockets: list[dict[str, object]] = field(default_factory=list)
    _owners: list[tuple[int, int, int]] = field(default_factory=list)
    _facts: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    _snapshot: int = -1
    _end_ns: int | None = None

    # --- the seed -------------------------------------------------------------------------------------------

    def process(
        self,
        tgid: int,
        *,
        ppid: int = 1,
        tids: Sequence[int] = (),
        comm: str = "server",
        exe: str = "/usr/bin/server",
        netns: int = 1,
        shares_files_with: int | None = None,
        started_ns: int | None = None,
    ) -> Script:
        """A process that was there at attach; `started_ns`: CLOCK_MONOTONIC of its birth."""
        self._processes.append(
            SeedProcess(
                tgid=tgid,
                ppid=ppid,
                tids=tuple(tids) or (tgid,),
                comm=comm,
                exe=exe,
                cmdline=(exe,),
                netns=netns,
                shares_files_with=shares_files_with,
                started_ns=started_ns,
            )
        )
        return self

    def seed_fd(
        self,
        tgid: int,
        fd: int,
        *,
        kind: FileKind = FileKind.SOCKET,
        inode: int = 0,
        open_file: int | None = None,
        cloexec: bool = False,
        nonblock: bool = False,
        at: int = 0,
    ) -> Script:
        """A descriptor that was there at attach; give `open_file` where several share one."""
        number = open_file if open_file is not None else 1_000_000 + len(self._fds)
        self._fds.append((START_NS + at, tgid, fd, int(kind), int(cloexec), int(nonblock), inode, number))
        return self

    def seed_epoll(
        self, tgid: int, epoll_fd: int, fd: int, events: int, *, data: int | None = None, inode: int = 0
    ) -> Script:
        self._epolls.append((tgid, epoll_fd, fd, events, fd if data is None else data, inode))
        return self

    # --- events ---------------------------------------------------------------------------------------------

    def event(
        self,
        tgid: int,
        tid: int,
        call: Call,
        *args: int,
        fd: int | None = None,
        ret: int = 0,
        at: int | None = None,
        took: int = 1000,
        flags: EventFlag | int = 0,
        sockaddr: Address | bytes | None = None,
        payload: bytes | None = None,
        control: Sequence[int] | None = None,
        epoll: Sequence[tuple[int, int]] | None = None,
        poll: Sequence[tuple[int, int, int]] | None = None,
        pair: tuple[int, int] | None = None,
        option: bytes | None = None,
        value: int | None = None,
        path: str | None = None,
        comm: str | None = None,
        sections: Sequence[tuple[Section, bytes]] = (),
    ) -> int:
        """One syscall or task event; its event id.

        Args:
            args: the arguments; `fd`, where given, goes before them.
            at: when it was entered (ns since the start); None: 1 ms after the last one.
            took: exit minus entry in ns.
            flags: ENTERED_ONLY and NO_ENTRY blank the times they say were not seen.
            control: SCM_RIGHTS descriptors. epoll: (events, data) pairs. poll: (fd, events, revents).
        """
        if at is None:
            self.now_ns += STEP_NS
        else:
            self.now_ns = at
        enter = START_NS + self.now_ns
        leave = enter if call >= Call.task_new else enter + took
        if flags & EventFlag.ENTERED_ONLY:
            leave = -1
        elif flags & EventFlag.NO_ENTRY:
            enter = -1
        full = [*([] if fd is None else [fd]), *args]
        full += [0] * (6 - len(full))
        blob = b"".join(pack_section(kind, data) for kind, data in sections)
        if sockaddr is not None:
            raw = sockaddr if isinstance(sockaddr, bytes) else _sockaddr(sockaddr)
            blob += pack_section(Section.SOCKADDR, raw)
        if payload is not None:
            blob += pack_section(Section.PAYLOAD, payload)
        if control is not None:
            blob += pack_section(Section.CONTROL, rights(control))
        if epoll is not None:
            blob += pack_section(Section.EPOLL_EVENTS, b"".join(epoll_event(*e) for e in epoll))
        if poll is not None:
            blob += pack_section(Section.POLLFDS, b"".join(pollfd(*p) for p in poll))
        if pair is not None:
            blob += pack_section(Section.FD_PAIR, struct.pack("<ii", *pair))
        if option is not None:
            blob += pack_section(Section.OPTION, option)
        if value is not None:
            blob += pack_section(Section.INT, struct.pack("<i", value))
        if path is not None:
            blob += pack_section(Section.PATH, path.encode())
        if comm is not None:
            blob += pack_section(Section.COMM, comm.encode())
        masked = [a & 0xFFFF_FFFF_FFFF_FFFF for a in full]
        self._rows.append((enter, leave, ret, masked, len(self._blob), len(blob), tgid, tid, int(call), int(flags)))
        self._blob += blob
        return len(self._rows) - 1

    def fork(self, parent: int, child: int, *, tid: int | None = None, flags: int = 0, at: int | None = None) -> int:
        """task_new of a process."""
        return self.event(parent, tid if tid is not None else parent, Call.task_new, child, child, flags, at=at)

    def thread(self, tgid: int, tid: int, *, by: int | None = None, at: int | None = None) -> int:
        """task_new of a thread, as pthread_create makes it (CLONE_VM|FS|FILES|SIGHAND|THREAD|...)."""
        return self.event(tgid, by if by is not None else tgid, Call.task_new, tid, tgid, 0x3D0F00, at=at)

    def exec(
        self, tgid: int, *, tid: int | None = None, path: str = "/bin/other", comm: str = "other", at: int | None = None
    ) -> int:
        """task_exec; `tid` is the thread that called it, where not the leader."""
        return self.event(tgid, tgid, Call.task_exec, tid if tid is not None else tgid, path=path, comm=comm, at=at)

    def exit(self, tgid: int, tid: int | None = None, *, status: int = 0, at: int | None = None) -> int:
        """task_exit of one thread."""
        return self.event(tgid, tid if tid is not None else tgid, Call.task_exit, status, at=at)

    def signal(self, tgid: int, number: int, *, si_pid: int = 1, at: int | None = None) -> int:
        """task_signal delivered to the leader."""
        return self.event(tgid, tgid, Call.task_signal, number, 0, si_pid, at=at)

    # --- the wire and the kernel ----------------------------------------------------------------------------

    def kernel(
        self,
        call: Call,
        local: Address,
        peer: Address,
        *states: int,
        cookie: int = 0,
        at: int | None = None,
    ) -> int:
        """A kernel event of the bpf engine: sock_state takes (former, new), the others the state at that moment."""
        ends = [(Section.SOCKADDR, sockaddr_in6(local)), (Section.PEER, sockaddr_in6(peer))]
        return self.event(0, 0, call, cookie, *states, at=at, sections=ends)

    def states(
        self,
        local: Address,
        peer: Address,
        *states: TcpState,
        cookie: int = 0,
        at: int | None = None,
        step: int = STEP_NS,
    ) -> list[int]:
        """The socket goes through these states, a change every `step` ns."""
        made = []
        for number, (former, new) in enumerate(pairwise(states)):
            when = None if at is None else at + number * step
            made.append(self.kernel(Call.sock_state, local, peer, former, new, cookie=cookie, at=when))
        return made

    def packet(
        self,
        src: Address,
        dst: Address,
        flags: TcpFlag | int,
        *,
        seq: int = 0,
        ack: int = 0,
        payload: bytes = b"",
        at: int | None = None,
        window: int = 1000,
        protocol: int = 6,
        outgoing: bool = False,
    ) -> int:
        """One packet; its row. `at` as for events (None: 10 µs after the last thing)."""
        if at is None:
            self.now_ns += 10_000
        else:
            self.now_ns = at
        time_ns = START_NS + self.now_ns + REALTIME_OFFSET_NS
        self._packets.append(
            (
                time_ns, list(encode_key(src)), list(encode_key(dst)), src.port, dst.port,
                seq & 0xFFFF_FFFF, ack & 0xFFFF_FFFF, window, int(flags), protocol,
                len(payload), len(payload) + 54, len(self._raw), len(payload), 0, -1, int(outgoing),
            )
        )  # fmt: skip
        self._raw += payload
        return len(self._packets) - 1

    def handshake(self, client: Address, server: Address, *, at: int | None = None) -> None:
        """SYN, SYN-ACK, ACK; sequence numbers 1000 (client) and 5000 (server), data from 1001 and 5001."""
        self.packet(client, server, TcpFlag.SYN, seq=1000, at=at)
        self.packet(server, client, TcpFlag.SYN | TcpFlag.ACK, seq=5000, ack=1001)
        self.packet(client, server, TcpFlag.ACK, seq=1001, ack=5001)

    def snapshot(self, *, at: int | None = None) -> int:
        """Begin a snapshot of socket states; `socket_row` adds to it. Owners given before are dropped."""
        if at is None:
            self.now_ns += STEP_NS
        else:
            self.now_ns = at
        self._snapshot += 1
        self._owners.clear()
        return self._snapshot

    def socket_row(
        self,
        local: Address | None,
        peer: Address | None = None,
        state: TcpState = TcpState.ESTABLISHED,
        *,
        inode: int = 0,
        cookie: int = 0,
        recv_q: int = 0,
        send_q: int = 0,
        protocol: int = 6,
        owners: Sequence[tuple[int, int]] = (),
        netns: int = 1,
        **more: object,
    ) -> int:
        """One row of the present snapshot; `owners` are (tgid, fd). Unix: give `path`, `peer_inode`, `type`."""
        if self._snapshot < 0:
            self.snapshot()
        family = local.family if local else peer.family if peer else Family.UNIX
        row: dict[str, object] = {
            "time_ns": START_NS + self.now_ns,
            "snapshot": self._snapshot,
            "family": family,
            "protocol": 0 if family == Family.UNIX else protocol,
            "type": SOCK_STREAM if family == Family.UNIX else 0,
            "state": int(state),
            "inode": inode,
            "cookie": cookie,
            "netns": netns,
            "recv_q": recv_q,
            "send_q": send_q,
        }
        for name, end in (("local", local), ("peer", peer)):
            if end is not None and end.family != Family.UNIX:
                row[name] = list(encode_key(end))
                row[f"{name}_port"] = end.port
        row.update(more)
        self._sockets.append(row)
        self._owners.extend((inode, tgid, fd) for tgid, fd in owners)
        return len(self._sockets) - 1

    # --- facts of /proc -------------------------------------------------------------------------------------

    def look(
        self,
        tgid: int,
        *,
        at: int,
        ppid: int = 1,
        state: str = "S",
        caught: Sequence[int] = (),
        ignored: Sequence[int] = (),
        blocked: Sequence[int] = (),
        comm: str = "server",
        relation: Relation = Relation.TARGET,
        **more: object,
    ) -> Script:
        """What /proc says of a process at that moment; signals by their numbers."""

        def mask(signals: Sequence[int]) -> int:
            return sum(1 << (number - 1) for number in signals)

        row: dict[str, object] = {
            "time_ns": START_NS + at,
            "tgid": tgid,
            "ppid": ppid,
            "ns_tgid": tgid,
            "relation": relation,
            "state": state.encode(),
            "thread_count": 1,
            "sig_caught": mask(caught),
            "sig_ignored": mask(ignored),
            "sig_blocked": mask(blocked),
            "comm": comm.encode(),
        }
        self._facts.setdefault("processes", []).append({**row, **more})
        return self

    def fact(self, table: str, /, *, at: int, **fields: object) -> Script:
        """A row of `namespaces` or `segments`; what is not given is 0."""
        self._facts.setdefault(table, []).append({"time_ns": START_NS + at, **fields})
        return self

    def facts(self) -> Facts:
        return Facts(
            processes=_filled(self._facts.get("processes", []), PROCESS_FACT_DTYPE),
            namespaces=_filled(self._facts.get("namespaces", []), NETNS_FACT_DTYPE),
            segments=_filled(self._facts.get("segments", []), SEGMENT_FACT_DTYPE),
        )

    def ends(self, at: int) -> Script:
        """When the session ends (default: 1 ms after the last thing)."""
        self._end_ns = START_NS + at
        return self

    # --- tables ---------------------------------------------------------------------------------------------

    def events(self) -> Events:
        return Events(records=_table(self._rows, EVENT_DTYPE), blob=np.frombuffer(bytes(self._blob), np.uint8))

    def seed(self) -> Seed:
        return Seed(
            processes=tuple(self._processes),
            fds=_table(self._fds, SEED_FD_DTYPE),
            epolls=_table(self._epolls, SEED_EPOLL_DTYPE),
        )

    def packets(self) -> Packets:
        return Packets(records=_table(self._packets, PACKET_DTYPE), raw=np.frombuffer(bytes(self._raw), np.uint8))

    def sockets(self) -> Sockets:
        return Sockets(records=_filled(self._sockets, SOCKET_DTYPE), owners=_table(self._owners, OWNER_DTYPE))

    def info(self) -> SessionInfo:
        events = self.events().records
        last = START_NS + self.now_ns
        if len(events):
            last = max(last, int(events["exit_ns"].max()), int(events["enter_ns"].max()))
        end = self._end_ns if self._end_ns is not None else last + STEP_NS
        return SessionInfo(
            target=Target(pids=tuple(p.tgid for p in self._processes), ports=self.ports),
            started_realtime_ns=START_NS + REALTIME_OFFSET_NS,
            started_ns=START_NS,
            ended_ns=end,
            clock_samples=((START_NS, START_NS + REALTIME_OFFSET_NS), (end, end + REALTIME_OFFSET_NS)),
            syscalls=SyscallCoverage(engine=self.engine, event_count=len(events), lost=self.lost),
            packets=PacketCoverage(available=bool(self._packets), seen_count=len(self._packets)),
            sockets=SocketCoverage(snapshot_count=self._snapshot + 1),
            notes=self.notes,
        )

    def session(self) -> Session:
        """Everything joined."""
        from sockscope.analysis.build import build_session

        return build_session(
            info=self.info(),
            seed=self.seed(),
            events=self.events(),
            packets=self.packets(),
            sockets=self.sockets(),
            facts=self.facts(),
        )


def _sockaddr(of: Address) -> bytes:
    return sockaddr(of)


def _filled(rows: Sequence[dict[str, object]], dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    records = np.zeros(len(rows), dtype)
    for at, row in enumerate(rows):
        for name, given in row.items():
            records[name][at] = given
    return records


def _table(rows: Sequence[tuple[object, ...]], dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    made: npt.NDArray[np.void] = np.array(list(rows), dtype) if rows else np.zeros(0, dtype)
    return made
