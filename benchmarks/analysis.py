"""How long a million recorded events take to become a joined session and its findings.

    python -m benchmarks.analysis [--events 1000000] [--connections 50000] [--passes 1] [--profile]
                                  [--kernel-events 400000]

Synthesises what an event-driven server with keepalive connections records (accept4, epoll_ctl, recvfrom,
sendto, epoll_wait, close on a small set of numbers used again and again), socket snapshots of it, and
prints seconds, events a second and peak memory. With kernel events the same once without and once with them
(the sampler's cookies known for half of the connections only).
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import resource
import struct
import sys
import time

import numpy as np

from sockscope.analysis.build import build_session
from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.events import EVENT_DTYPE, Events, Section, pack_section
from sockscope.model.info import SessionInfo, SyscallCoverage, Target
from sockscope.model.packets import PACKET_DTYPE, Packets
from sockscope.model.seed import SEED_EPOLL_DTYPE, SEED_FD_DTYPE, FileKind, Seed, SeedProcess
from sockscope.model.sockets import OWNER_DTYPE, SOCKET_DTYPE, Sockets
from sockscope.model.tcp import TcpFlag

WORKERS = 4
LIVE = 64
"""Connections open at once in a worker."""
PORT = 18135
START_NS = 10**12
STEP_NS = 2_000
V4_MAPPED = np.frombuffer(b"\0" * 10 + b"\xff\xff", np.uint8)


def synthesise(events: int, connections: int, *, first: int = 0) -> tuple[Seed, Events, Packets, Sockets, SessionInfo]:
    """A session of `connections` connections and about `events` events, spread over the workers.

    With `first`, a multiple of WORKERS * LIVE: the part of a longer session that begins with that connection.
    """
    requests = max(1, (events // connections - 4) // 3)
    # Of each connection: accept4, epoll_ctl, (epoll_wait, recvfrom, sendto) a request, recvfrom = 0, close.
    pattern = [Call.accept4, Call.epoll_ctl]
    pattern += [Call.epoll_wait, Call.recvfrom, Call.sendto] * requests + [Call.recvfrom, Call.close]
    length = len(pattern)
    call = np.tile(np.array(pattern, np.uint16), connections)
    number = first + np.repeat(np.arange(connections), length)
    step = np.tile(np.arange(length), connections)
    worker = number % WORKERS
    slot = number // WORKERS % LIVE
    turn = number // WORKERS // LIVE
    fd = 10 + slot
    # LIVE connections of a worker take their steps in turn, then the next LIVE.
    clock = START_NS + ((turn * length + step) * LIVE + slot) * STEP_NS * WORKERS + worker * 97
    records = np.zeros(len(call), EVENT_DTYPE)
    records["enter_ns"] = clock
    records["exit_ns"] = clock + STEP_NS // 2
    records["call"] = call
    records["tgid"] = records["tid"] = 1000 + worker
    args = records["args"]
    args[:, 0] = fd
    args[:, 2] = np.where(call == Call.sendto, 850, 4096)
    accepts, controls, waits = call == Call.accept4, call == Call.epoll_ctl, call == Call.epoll_wait
    args[accepts, 0] = 3
    args[accepts, 2] = 0
    args[controls | waits, 0] = 4
    args[controls, 1] = 1
    args[controls, 2] = fd[controls]
    ret = np.zeros(len(call), np.int64)
    ret[(call == Call.recvfrom) & (step < length - 2)] = 120
    ret[call == Call.sendto] = 850
    ret[accepts] = fd[accepts]
    ret[waits] = 1
    records["ret"] = ret
    blob = _blob(records, accepts, controls, call, fd, first)
    shuffled = np.random.default_rng(1).permutation(WORKERS)
    rows = np.concatenate([records[worker == w] for w in shuffled])
    ends_ns = int(clock.max()) + 10**6
    peer_port = (number[accepts] % 60000 + 1024).astype(np.uint16)
    sockets = _sockets(first, int(accepts.sum()), peer_port, clock[accepts])
    info = SessionInfo(
        target=Target(ports=(PORT,)),
        started_realtime_ns=0,
        started_ns=START_NS,
        ended_ns=ends_ns,
        clock_samples=((START_NS, START_NS), (ends_ns, ends_ns)),
        syscalls=SyscallCoverage(engine="bench", event_count=len(rows)),
    )
    packets = _packets(number[accepts], peer_port, clock[accepts])
    return _seed(), Events(records=rows, blob=blob), packets, sockets, info


def _blob(
    records: np.ndarray, accepts: np.ndarray, controls: np.ndarray, call: np.ndarray, fd: np.ndarray, first: int
) -> np.ndarray:
    """One sockaddr an accept, one epoll_event an epoll_ctl, one payload for all reads and writes."""
    count = int(accepts.sum())
    header = pack_section(Section.SOCKADDR, bytes(16))
    named = np.tile(np.frombuffer(header, np.uint8), (count, 1))
    numbers = first + np.nonzero(accepts)[0] // (len(records) // count)
    named[:, 8:10] = np.frombuffer(struct.pack("<H", 2), np.uint8)
    ports = (numbers % 60000 + 1024).astype(">u2")
    named[:, 10:12] = ports.view(np.uint8).reshape(-1, 2)
    named[:, 12:16] = _hosts(numbers)
    registered = np.tile(np.frombuffer(pack_section(Section.EPOLL_EVENTS, bytes(12)), np.uint8), (count, 1))
    payload = np.frombuffer(pack_section(Section.PAYLOAD, b"GET / HTTP/1.1\r\n".ljust(64, b".")), np.uint8)
    records["blob_offset"][accepts] = np.arange(count) * named.shape[1]
    records["blob_bytes"][accepts] = named.shape[1]
    records["blob_offset"][controls] = named.size + np.arange(count) * registered.shape[1]
    records["blob_bytes"][controls] = registered.shape[1]
    data = (call == Call.recvfrom) | (call == Call.sendto)
    records["blob_offset"][data] = named.size + registered.size
    records["blob_bytes"][data] = len(payload)
    return np.concatenate([named.reshape(-1), registered.reshape(-1), payload])


def _hosts(numbers: np.ndarray) -> np.ndarray:
    return (0x0A000002 + numbers // 60000).astype(">u4").view(np.uint8).reshape(-1, 4)


def _sockets(first: int, count: int, peer_port: np.ndarray, opened: np.ndarray) -> Sockets:
    """Each connection in two snapshots, and the listener."""
    rows = np.zeros(1 + 2 * count, SOCKET_DTYPE)
    rows["family"] = 2
    rows["protocol"] = 6
    rows["netns"] = 1
    rows["local"][:, :12] = V4_MAPPED
    rows["local"][:, 12:] = (10, 0, 0, 1)
    rows["local_port"] = PORT
    rows[0]["state"], rows[0]["inode"], rows[0]["cookie"] = 10, 77, 1
    rows[0]["local"][12:] = 0
    rows["time_ns"][0] = START_NS
    for half, delay in ((slice(1, 1 + count), 10**5), (slice(1 + count, None), 2 * 10**5)):
        part = rows[half]
        part["state"] = 1
        part["cookie"] = first + np.arange(count) + 2
        part["inode"] = first + np.arange(count) + 100
        part["peer"][:, :12] = V4_MAPPED
        part["peer"][:, 12:] = _hosts(first + np.arange(count))
        part["peer_port"] = peer_port
        part["time_ns"] = opened + delay
    rows = rows[np.argsort(rows["time_ns"], kind="stable")]
    rows["snapshot"] = (rows["time_ns"] - START_NS) // 250_000_000
    return Sockets(records=rows, owners=np.zeros(0, OWNER_DTYPE))


def _packets(numbers: np.ndarray, peer_port: np.ndarray, opened: np.ndarray) -> Packets:
    """SYN, SYN-ACK, ACK of each connection."""
    rows = np.zeros(3 * len(numbers), PACKET_DTYPE)
    hosts = _hosts(numbers)
    rows["protocol"] = 6
    rows["src"][:, :12] = rows["dst"][:, :12] = V4_MAPPED
    for at, flags in enumerate((TcpFlag.SYN, TcpFlag.SYN | TcpFlag.ACK, TcpFlag.ACK)):
        part = rows[at::3]
        part["flags"] = flags
        part["time_ns"] = opened - 3000 + 1000 * at
        near, far, near_port, far_port = (
            ("src", "dst", "sport", "dport") if at == 1 else ("dst", "src", "dport", "sport")
        )
        part[near][:, 12:] = (10, 0, 0, 1)
        part[far][:, 12:] = hosts
        part[near_port] = PORT
        part[far_port] = peer_port
        part["seq"] = (1000, 5000, 1001)[at]
        part["ack"] = (0, 1001, 5001)[at]
    return Packets(records=rows[np.argsort(rows["time_ns"], kind="stable")], raw=np.zeros(0, np.uint8))


def with_kernel_events(events: Events, packets: Packets, count: int) -> Events:
    """The same, and what the bpf engine hears of the kernel: five changes a life, at the server's end and the client's.

    Half of the events carry the cookie that snapshots show.
    """
    handshakes = packets.records[packets.records["flags"] == int(TcpFlag.ACK)]
    each = max(1, count // len(handshakes))
    changes = [(3, 1), (1, 8), (8, 9), (9, 7), (1, 4), (4, 5), (5, 7), (1, 1), (1, 1), (1, 1)]
    rows = np.zeros(each * len(handshakes), EVENT_DTYPE)
    blob = np.zeros((len(rows), 72), np.uint8)
    ends = (pack_section(Section.SOCKADDR, bytes(28)), pack_section(Section.PEER, bytes(28)))
    blob[:] = np.frombuffer(b"".join(ends), np.uint8)
    blob[:, [8, 44]] = 10
    number = np.arange(len(handshakes))
    for turn in range(each):
        part = slice(turn, None, each)
        former, new = changes[turn % len(changes)]
        rows["exit_ns"][part] = handshakes["time_ns"] + (turn - 1) * STEP_NS
        rows["call"][part] = Call.sock_state if former != new else Call.tcp_retransmit
        rows["args"][part, 0] = np.where(number % 2, number + 2 + len(number) * (4 <= turn < 7), 0)
        rows["args"][part, 1], rows["args"][part, 2] = former, new
        # The client's end of the connection after the server's.
        near, far = (36, 0) if 4 <= turn < 7 else (0, 36)
        for at, host, port in ((near, "dst", "dport"), (far, "src", "sport")):
            blob[part, at + 10 : at + 12] = handshakes[port].astype(">u2").view(np.uint8).reshape(-1, 2)
            blob[part, at + 16 : at + 32] = handshakes[host]
    rows["enter_ns"] = rows["exit_ns"]
    rows["blob_bytes"] = 72
    rows["blob_offset"] = np.arange(len(rows)) * 72
    return Events.concat([events, Events(records=rows, blob=blob.reshape(-1))])


def _seed() -> Seed:
    tgids = range(1000, 1000 + WORKERS)
    fds = [(START_NS, t, 3, FileKind.SOCKET, 0, 1, 77, 1) for t in tgids]
    fds += [(START_NS, t, 4, FileKind.EPOLL, 1, 0, 0, t) for t in tgids]
    processes = tuple(SeedProcess(tgid=t, ppid=1, tids=(t,), comm="server", exe="", cmdline=(), netns=1) for t in tgids)
    return Seed(processes=processes, fds=np.array(fds, SEED_FD_DTYPE), epolls=np.zeros(0, SEED_EPOLL_DTYPE))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--events", type=int, default=1_000_000)
    options.add_argument("--connections", type=int, default=50_000)
    options.add_argument("--passes", type=int, default=1)
    options.add_argument("--profile", action="store_true")
    options.add_argument("--kernel-events", type=int, default=0)
    given = options.parse_args()
    seed, plain, packets, sockets, info = synthesise(given.events, given.connections)
    tables = [plain]
    if given.kernel_events:
        tables.append(with_kernel_events(plain, packets, given.kernel_events))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    profile = cProfile.Profile() if given.profile else None
    for events in tables * given.passes:
        began, cpu = time.perf_counter(), time.process_time()
        if profile:
            profile.enable()
        session = build_session(info=info, seed=seed, events=events, packets=packets, sockets=sockets)
        built = time.perf_counter() - began
        findings, skipped, rules = run_rules(session)
        if profile:
            profile.disable()
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assigned = int((session.event_connection >= 0).sum())
        print(
            f"{len(events):,} events, {len(packets):,} packets, {len(sockets):,} socket rows"
            f" -> {len(session.connections):,} connections, {assigned:,} events assigned\n"
            f"{took:.2f} s ({cpu:.2f} s of CPU), {len(events) / took:,.0f} events/s,"
            f" peak RSS {peak // 1024} MiB ({before // 1024} MiB of it the tables)\n"
            f"of it {built:.2f} s to the session, {took - built:.2f} s to {len(findings)} findings"
            f" of {len(rules)} rules ({len(skipped)} skipped)"
        )
        if len(session.kernel):
            told = int((session.kernel_connection >= 0).sum())
            print(f"{len(session.kernel):,} kernel events, {told:,} of them of a connection")
        complete = sum(c.flow >= 0 and c.cookie > 0 and c.read_bytes > 0 for c in session.connections)
        print(f"{complete:,} connections have a flow, a socket and bytes read")
    if profile:
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(22)


if __name__ == "__main__":
    main()
