"""A rich, synthetic report: what the analysis would hand over, without running it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sockscope.model.connections import Connection, Protocol, Role
from sockscope.model.descriptors import Process
from sockscope.model.findings import Confidence, Evidence, Finding, Holder, Rule, Severity, Skip, Source
from sockscope.model.info import PacketCoverage, SessionInfo, SocketCoverage, SyscallCoverage, Target
from sockscope.model.report import ConnectionRow, Lane, Report, TimelineItem, TimelineTable
from sockscope.model.sockaddr import Address
from sockscope.model.tcp import TcpState
from tests.reports.latency_example import busy_server, quiet_server

SCRIPT = "<script>alert(1)</script>"
COLOUR = "\x1b[31mred\x1b[0m"
MARKUP = "[bold]loud[/bold]"
START_NS = 1_000_000_000_000
MS = 1_000_000
SECOND = 1_000_000_000
LOCAL = Address.inet(bytes([127, 0, 0, 1]), 18135)
SERVER, WORKER, HELPER, GONE = 812, 813, 900, 901
COMMS = {SERVER: "python3", WORKER: "python3", HELPER: SCRIPT[:15], GONE: MARKUP[:15]}


def peer(number: int) -> Address:
    return Address.inet(bytes([127, 0, 1 + number // 20_000, 1]), 40_000 + number % 20_000)


def _item(at_ns: int, lane: Lane, actor: str, name: str, text: str, words: str = "", **more: object) -> TimelineItem:
    took = more.get("took", 0)
    ref = more.get("ref", -1)
    assert isinstance(took, int)
    assert isinstance(ref, int)
    return TimelineItem(
        time_ns=START_NS + at_ns,
        duration_ns=took,
        lane=lane,
        actor=actor,
        name=name,
        text=text,
        words=words,
        ref=ref,
        failed=bool(more.get("failed", False)),
    )


def waiting_story(number: int) -> list[TimelineItem]:
    """A connection that no accept took: the wire and the kernel only."""
    at = 820 * MS + number * 700_000
    base = number * 100
    wire, kernel = Lane.WIRE, Lane.KERNEL
    return [
        _item(at, wire, "<-", "SYN", "SYN seq 0 win 65495", ref=base),
        _item(at + 18_000, wire, "->", "SYN,ACK", "SYN,ACK seq 0 win 65483", ref=base + 1),
        _item(at + 31_000, wire, "<-", "ACK", "ACK 1", "the connection is established", ref=base + 2),
        _item(at + 150 * MS, kernel, "--", "ESTABLISHED", "ESTABLISHED, inode 0: not accepted", ref=base),
        _item(at + 5000 * MS, wire, "<-", "FIN,ACK", "FIN,ACK seq 1", "the peer has given up", ref=base + 3),
        _item(at + 5000 * MS + 9_000, wire, "->", "ACK", "ACK 2", ref=base + 4),
        _item(at + 5150 * MS, kernel, "--", "CLOSE_WAIT", "CLOSE_WAIT, inode 0: not accepted", ref=base + 1),
    ]


def told_of(number: int, leaking: int) -> list[TimelineItem]:
    """The story of one connection of `example_report`."""
    if leaking <= number < leaking + 2:
        return waiting_story(number)
    return story(number, leaks=number < leaking)


def story(number: int, *, leaks: bool) -> list[TimelineItem]:
    """One request and its answer; where `leaks`, the peer's FIN is told and another holds the open file."""
    at = 102 * MS + number * 700_000
    base = number * 100
    actor = f"{COMMS[SERVER]}[{SERVER}]" if number % 3 else f"{COMMS[WORKER]}[{WORKER}/{WORKER + 1}]"
    who = str(peer(number))
    wire, kernel, call = Lane.WIRE, Lane.KERNEL, Lane.SYSCALL
    path = f"/item/{number}" if number % 7 else f"/{SCRIPT}?{MARKUP}"
    items = [
        _item(at, wire, "<-", "SYN", "SYN seq 0 win 65495", ref=base),
        _item(at + 18_000, wire, "->", "SYN,ACK", "SYN,ACK seq 0 win 65483", ref=base + 1),
        _item(at + 31_000, wire, "<-", "ACK", "ACK 1", "the connection is established", ref=base + 2),
        _item(
            at - 340 * MS,
            call,
            actor,
            "poll",
            "poll([{fd=3, events=POLLIN}], 1, 500) = 1 ([{fd=3, revents=POLLIN}])",
            "waited 340 ms for a connection",
            took=340 * MS + 52_000,
            ref=base,
        ),
        _item(
            at + 90_000,
            call,
            actor,
            "accept4",
            f"accept4(3, {{{who}}}, [16], SOCK_CLOEXEC) = 7",
            "a new connection, descriptor 7",
            took=9_000,
            ref=base + 1,
        ),
        _item(at + 160_000, wire, "<-", "PSH,ACK", "PSH,ACK seq 1, 78 bytes", f"GET {path}", ref=base + 3),
        _item(
            at + 120_000,
            call,
            actor,
            "recvfrom",
            f'recvfrom(7, "GET {path} HTTP/1.1\\r\\nHost: a.test\\r\\n"..., 1024, 0) = 78',
            f"request GET {path} (78 bytes)",
            took=61_000,
            ref=base + 2,
        ),
        _item(
            at + 260_000,
            call,
            actor,
            "sendto",
            'sendto(7, "HTTP/1.0 200 OK\\r\\n", 17, 0) = 17',
            "status line 200",
            took=14_000,
            ref=base + 3,
        ),
        _item(at + 262_000, wire, "->", "PSH,ACK", "PSH,ACK seq 1, 17 bytes", ref=base + 4),
        _item(
            at + 300_000,
            call,
            actor,
            "sendto",
            'sendto(7, "Content-Length: 598\\r\\n\\r\\n", 24, 0) = 24',
            "headers",
            took=11_000,
            ref=base + 4,
        ),
        _item(at + 302_000, wire, "->", "PSH,ACK", "PSH,ACK seq 18, 24 bytes", ref=base + 5),
        _item(
            at + 380_000,
            call,
            actor,
            "sendto",
            'sendto(7, "<!doctype html>\\n<title>item</ti"..., 574, 0) = 574',
            "body, 574 bytes",
            took=12_000,
            ref=base + 5,
        ),
        _item(at + 382_000, wire, "->", "PSH,ACK", "PSH,ACK seq 42, 574 bytes", ref=base + 6),
        _item(at + 250 * MS, kernel, "--", "ESTABLISHED", "ESTABLISHED, recv-q 0, send-q 0", ref=base),
    ]
    if leaks:
        items += [
            _item(at + 2310 * MS, wire, "<-", "FIN,ACK", "FIN,ACK seq 79", "the peer has ended its half", ref=base + 7),
            _item(at + 2310 * MS + 12_000, wire, "->", "ACK", "ACK 80", ref=base + 8),
            _item(
                at + 2310 * MS + 48_000,
                call,
                actor,
                "recvfrom",
                'recvfrom(7, "", 1024, 0) = 0',
                "told: the peer has ended its half (EOF)",
                took=5_000,
                ref=base + 7,
            ),
            _item(at + 2310 * MS + 90_000, call, actor, "close", "close(7) = 0", took=6_000, ref=base + 60),
            _item(
                at + 2400 * MS,
                kernel,
                "--",
                "CLOSE_WAIT",
                "CLOSE_WAIT, recv-q 1, send-q 0",
                "waits for the program's close",
                ref=base + 1,
            ),
        ]
        items += [
            _item(
                at + (2500 + 500 * turn) * MS,
                call,
                actor,
                "poll",
                "poll([{fd=3, events=POLLIN}], 1, 500) = 0 (Timeout)",
                took=499 * MS,
                ref=base + 8 + turn,
            )
            for turn in range(12)
        ]
        if number == 0:
            items.append(
                _item(
                    at + 8600 * MS,
                    call,
                    actor,
                    "sendto",
                    f'sendto(7, "{COLOUR} {MARKUP}", 24, MSG_NOSIGNAL) = -1 EPIPE (Broken pipe)',
                    "the peer is gone",
                    took=4_000,
                    ref=base + 40,
                    failed=True,
                )
            )
    else:
        items += [
            _item(at + 420_000, call, actor, "close", "close(7) = 0", took=8_000, ref=base + 6),
            _item(at + 431_000, wire, "->", "FIN,ACK", "FIN,ACK seq 616", ref=base + 7),
            _item(at + 470_000, wire, "<-", "FIN,ACK", "FIN,ACK seq 79", ref=base + 8),
            _item(at + 474_000, wire, "->", "ACK", "ACK 80", ref=base + 9),
            _item(at + 500 * MS, kernel, "--", "TIME_WAIT", "TIME_WAIT", ref=base + 1),
        ]
    return sorted(items, key=lambda item: item.time_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleTimelines:
    """Keeps the promise of `TimelineTables`."""

    leaking: int
    idle: bool = False

    def __call__(self, connections: Sequence[int], limits: Sequence[int]) -> Iterator[TimelineTable]:
        for connection, limit in zip(connections, limits, strict=True):
            yield TimelineTable.of_items(self._items(connection, limit))

    def _items(self, connection: int, limit: int) -> Sequence[TimelineItem]:
        if self.idle:
            return []
        items = told_of(connection, self.leaking)
        if len(items) <= limit:
            return items
        head, tail = limit // 2, limit - limit // 2 - 1
        cut = items[head : len(items) - tail]
        gap = _item(cut[0].time_ns - START_NS, Lane.SYSCALL, "", "", f"{len(cut)} items left out")
        return [*items[:head], gap, *items[len(items) - tail :]]


def _row(number: int, *, leaking: int, findings: tuple[int, ...]) -> ConnectionRow:
    leaks = number < leaking
    items = told_of(number, leaking)
    unaccepted = leaking <= number < leaking + 2
    state = TcpState.CLOSE_WAIT if leaks or unaccepted else TcpState.TIME_WAIT if number % 4 else TcpState.ESTABLISHED
    owner = WORKER if number % 3 == 0 else SERVER
    connection = Connection(
        id=number,
        protocol=Protocol.TCP,
        role=Role.SERVER,
        local=LOCAL,
        peer=peer(number),
        first_ns=items[0].time_ns,
        last_ns=items[-1].time_ns,
        state=state,
        state_ns=items[-1].time_ns,
        gone_ns=items[-1].time_ns + SECOND if number % 11 == 10 and not leaks else None,
        recv_q=1 if state is TcpState.CLOSE_WAIT else 0,
        read_bytes=0 if unaccepted else 78,
        written_bytes=0 if unaccepted else 615 + number,
        owners=[] if unaccepted or state is TcpState.TIME_WAIT else [(owner, 7 + number)],
        never_accepted=unaccepted,
    )
    return ConnectionRow(
        connection=connection,
        processes=() if unaccepted else (owner,),
        event_count=sum(i.lane is Lane.SYSCALL for i in items),
        packet_count=sum(i.lane is Lane.WIRE for i in items),
        finding_indexes=findings,
        summary="" if unaccepted else f"GET /item/{number} → 200, {615 + number} bytes",
    )


def _findings(leaking: int) -> tuple[Finding, ...]:
    ids = tuple(range(leaking))
    told = START_NS + 102 * MS + 2310 * MS
    return (
        Finding(
            rule="fin-withheld",
            severity=Severity.ERROR,
            confidence=Confidence.CERTAIN,
            title=f"Another process keeps {leaking} closed connections open",
            tgid=SERVER,
            comm="python3",
            fd=7,
            holder=Holder(tgid=HELPER, comm=COMMS[HELPER], fd=7),
            connections=ids,
            count=leaking,
            worst=0,
            explanation=(
                f"python3[{SERVER}] was told at +2.412 s that the peer had ended its half, and closed descriptor 7. "
                f"The same open file is still held by {COMMS[HELPER]}[{HELPER}] as descriptor 7, which it got by fork "
                f"at +0.951 s, so no FIN goes out and the connections stay in CLOSE_WAIT; the oldest for 6.2 s."
            ),
            remedy=f"Close the connection in the child right after fork, or open it with SOCK_CLOEXEC. {MARKUP}",
            evidence=(
                Evidence(
                    source=Source.SYSCALL,
                    time_ns=told + 48_000,
                    ref=7,
                    text=f'python3[{SERVER}] recvfrom(7, "", 1024, 0) = 0 (the last read)',
                ),
                Evidence(source=Source.PACKET, time_ns=told, ref=7, text="FIN,ACK seq 79 from the peer"),
                Evidence(
                    source=Source.SYSCALL,
                    time_ns=START_NS + 951 * MS,
                    ref=99_999,
                    text=f"python3[{SERVER}] new process {HELPER} (gets it as fd 7)",
                ),
                Evidence(
                    source=Source.PROC,
                    time_ns=START_NS + 9 * SECOND,
                    text=f"/proc/{HELPER}/fd/7 -> socket:[4711] ({COLOUR})",
                ),
            ),
        ),
        Finding(
            rule="unaccepted-connection",
            severity=Severity.WARNING,
            confidence=Confidence.LIKELY,
            title="2 connections wait in the accept queue",
            tgid=SERVER,
            comm="python3",
            fd=3,
            connections=(leaking, leaking + 1),
            count=2,
            worst=leaking,
            explanation=(
                "Two connections reached the listener (descriptor 3) and no accept took them in 9.2 s. "
                "Their peers have given up: both are in CLOSE_WAIT, owned by no process."
            ),
            remedy="Accept in a loop until EAGAIN after each wake-up.",
            evidence=(
                Evidence(
                    source=Source.SOCKET, time_ns=START_NS + 9 * SECOND, ref=3, text="LISTEN, recv-q 2, send-q 128"
                ),
            ),
        ),
        Finding(
            rule="event-loop-spin",
            severity=Severity.WARNING,
            confidence=Confidence.POSSIBLE,
            title=f"{SCRIPT} wakes 41,212 times for nothing {COLOUR}",
            tgid=GONE,
            comm=COLOUR,
            count=41_212,
            explanation=f"epoll_wait returned EPOLLHUP for descriptor 12 at once, again and again. {MARKUP}",
            remedy="Remove the descriptor from the epoll set, or close it.",
            evidence=(
                Evidence(
                    source=Source.SYSCALL,
                    time_ns=START_NS + SECOND,
                    text="epoll_wait(5, [{EPOLLHUP, u64=12}], 64, -1) = 1",
                ),
            ),
        ),
    )


def example_report(connections: int = 12, *, packets: bool = True) -> Report:
    """A report of a leaking server: `connections` of them (at least 6), three findings, hostile names throughout.

    Args:
        packets: False: as without CAP_NET_RAW.
    """
    leaking = 4 if connections < 100 else 40
    findings = _findings(leaking)
    of = {number: tuple(i for i, f in enumerate(findings) if number in f.connections) for number in range(leaking + 2)}
    info = SessionInfo(
        target=Target(pids=(SERVER,), ports=(18135,)),
        started_realtime_ns=1_700_000_000_123_456_789,
        started_ns=START_NS,
        ended_ns=START_NS + 10 * SECOND,
        host="web-3",
        kernel="6.1.0-40-amd64",
        machine="x86_64",
        clock_skew_ns=310,
        syscalls=SyscallCoverage(
            engine="ptrace", event_count=1_204, lost={} if packets else {"ring full": 17}, pinned=True
        ),
        packets=PacketCoverage(
            available=packets, seen_count=640 if packets else 0, interfaces=("lo",) if packets else ()
        ),
        sockets=SocketCoverage(snapshot_count=40),
        notes=() if packets else ("no CAP_NET_RAW: no packets; run as root or setcap cap_net_raw+ep",),
    )
    processes = (
        Process(
            tgid=SERVER, parent=1, comm="python3", exe="/usr/bin/python3", cmdline=("python3", "server.py", "18135")
        ),
        Process(
            tgid=WORKER,
            parent=SERVER,
            comm="python3",
            exe="/usr/bin/python3",
            cmdline=("python3", "server.py", "18135"),
            started_ns=START_NS + 800 * MS,
        ),
        Process(
            tgid=HELPER,
            parent=SERVER,
            comm=COMMS[HELPER],
            exe="/bin/sh",
            cmdline=("sh", "-c", f"echo {COLOUR}; sleep 60"),
            started_ns=START_NS + 951 * MS,
        ),
        Process(tgid=GONE, parent=SERVER, comm=COMMS[GONE], exited_ns=START_NS + 3 * SECOND, exit_status=9),
    )
    return Report(
        info=info,
        processes=processes,
        connections=tuple(_row(n, leaking=leaking, findings=of.get(n, ())) for n in range(connections)),
        findings=findings,
        skipped=(
            *(
                ()
                if packets
                else (
                    Skip(rule="retransmissions", reason="needs packets"),
                    Skip(rule="slow-reader", reason="needs packets"),
                )
            ),
            Skip(rule="reuseaddr-after-bind", reason="the listener was there before the attach"),
        ),
        rules=tuple(Rule(slug=f.rule, severity=f.severity, summary=f.title) for f in findings),
        timeline_tables=ExampleTimelines(leaking=leaking),
        unassigned={"on a descriptor that is no socket": 31},
        idle_words=(f"python3[{SERVER}]: poll every 500 ms", f"{COMMS[HELPER]}[{HELPER}]: sleeps"),
        architecture=(
            f"python3[{SERVER}] listens on 127.0.0.1:8080 (fd 3): 7 connections accepted",
            f"python3[{SERVER}] waits in <poll> until somebody connects, then accepts",
        ),
        latency=(
            busy_server(str(LOCAL), 8, SERVER, "python3", f"GET /{SCRIPT}"),
            quiet_server(f"/run/{MARKUP}.sock", 7, GONE, COLOUR),
        )
        if packets
        else (quiet_server(str(LOCAL), 7, SERVER, "python3"),),
    )


def sound_report() -> Report:
    """The same server without a fault."""
    faulty = example_report()
    rows = tuple(replace(row, finding_indexes=()) for row in faulty.connections)
    return replace(
        faulty, findings=(), connections=rows, timeline_tables=ExampleTimelines(leaking=0), skipped=(), unassigned={}
    )


def empty_report() -> Report:
    """Nothing at all was seen."""
    return replace(
        sound_report(),
        connections=(),
        processes=(),
        rules=(),
        idle_words=(),
        architecture=(),
        latency=(),
        timeline_tables=ExampleTimelines(leaking=0, idle=True),
    )
