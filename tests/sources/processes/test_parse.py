"""What /proc prints, odd names and cut answers included."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockscope.sources.processes.parse import (
    UNLIMITED,
    parse_counters,
    parse_nofile,
    parse_status,
    parse_usage,
)

STATUS = b"""Name:\tpool (a) b
Umask:\t0022
State:\tS (sleeping)
Tgid:\t4711
NSpid:\t4711\t12\t1
Threads:\t5
SigQ:\t1/96365
SigPnd:\t0000000000000000
ShdPnd:\t0000000000000000
SigBlk:\t0000000000000200
SigIgn:\t0000000001001000
SigCgt:\t0000000000004002
"""
STAT = b"4711 (%s) Z 17 4711 4711 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 123456 0 0\n"
LIMITS = b"""Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max open files            1024                 524288               files
"""
NETSTAT = b"""TcpExt: SyncookiesSent EmbryonicRsts ListenOverflows ListenDrops
TcpExt: 3 9 17 21
IpExt: InNoRoutes
IpExt: 0
"""
SNMP = b"""Ip: Forwarding
Ip: 1
Tcp: RtoAlgorithm MaxConn RetransSegs
Tcp: 1 -1 4291
"""
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def test_status() -> None:
    status = parse_status(STATUS)
    assert status is not None
    assert status.ns_tgids == (4711, 12, 1)
    assert status.thread_count == 5
    assert (status.caught, status.ignored, status.blocked) == (0x4002, 0x1001000, 0x200)


def test_a_kernel_without_pid_namespaces() -> None:
    status = parse_status(STATUS.replace(b"NSpid:\t4711\t12\t1\n", b""))
    assert status is not None
    assert status.ns_tgids == ()


@pytest.mark.parametrize("comm", [b"srv", b"my (srv) x", b") R 1 (", b"", b"tab\there", b"a b c d e f g h"])
def test_usage_whatever_the_name(comm: bytes) -> None:
    usage = parse_usage(STAT % comm)
    assert usage is not None
    assert (usage.comm, usage.state, usage.ppid, usage.cpu_ns) == (comm, b"Z", 17, 200 * TICK_NS)


def test_a_name_does_not_pose_as_a_line() -> None:
    # The kernel escapes a line's end in the name.
    status = parse_status(STATUS.replace(b"pool (a) b", b"x\\nThreads:\t99"))
    assert status is not None
    assert status.thread_count == 5


def test_nofile() -> None:
    assert parse_nofile(LIMITS) == 1024
    assert parse_nofile(LIMITS.replace(b"1024     ", b"unlimited")) == UNLIMITED
    assert parse_nofile(b"") is None


def test_counters() -> None:
    counters = parse_counters(NETSTAT, SNMP)
    assert counters is not None
    assert (counters.listen_overflows, counters.listen_drops) == (17, 21)
    assert (counters.syncookies_sent, counters.retrans_segs) == (3, 4291)
    assert parse_counters(b"", SNMP) is None
    assert parse_counters(NETSTAT, b"Tcp: RetransSegs\n") is None


@given(st.integers(0, len(STATUS)), st.binary(max_size=20))
def test_cut_and_noisy_answers_are_no_error(at: int, noise: bytes) -> None:
    for text in (STATUS, STAT % b"srv", LIMITS, NETSTAT):
        damaged = text[:at] + noise
        parse_status(damaged)
        parse_usage(damaged)
        parse_nofile(damaged)
        parse_counters(damaged, damaged)
