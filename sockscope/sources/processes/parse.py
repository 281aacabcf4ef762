"""/proc/PID/status, stat, limits and net/{netstat,snmp}, from bytes.

Each parser gives None for what is not such a file: a process that ends while it is read leaves half an answer.

Source: proc_pid_status(5), proc_pid_stat(5), proc_pid_limits(5), proc_pid_net(5).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_LINES = re.compile(rb"^(Threads|NSpid|SigCgt|SigIgn|SigBlk):[ \t]*(.*)$", re.MULTILINE)
_NOFILE = re.compile(rb"^Max open files +(\d+|unlimited) ", re.MULTILINE)

UNLIMITED = (1 << 64) - 1
"""RLIM_INFINITY."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Of /proc/PID/status.

    Attributes:
        ns_tgids: the process's number in each pid namespace, from ours inwards.
        caught, ignored, blocked: bit n-1 is signal n.
    """

    thread_count: int
    ns_tgids: tuple[int, ...]
    caught: int
    ignored: int
    blocked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Of /proc/PID/stat. `comm` is what the program made of it: any bytes."""

    comm: bytes
    state: bytes
    ppid: int
    cpu_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpCounters:
    """TcpExt of net/netstat, Tcp of net/snmp. They count from the birth of the network namespace."""

    listen_overflows: int
    listen_drops: int
    syncookies_sent: int
    retrans_segs: int


def parse_status(data: bytes) -> Status | None:
    # The name comes first and may hold anything, but a line's end (it is escaped).
    found: dict[bytes, bytes] = dict(_LINES.findall(data))
    try:
        return Status(
            thread_count=int(found[b"Threads"]),
            ns_tgids=tuple(int(number) for number in found.get(b"NSpid", b"").split()),
            caught=int(found[b"SigCgt"], 16),
            ignored=int(found[b"SigIgn"], 16),
            blocked=int(found[b"SigBlk"], 16),
        )
    except (KeyError, ValueError):
        return None


def parse_usage(data: bytes) -> Usage | None:
    """The comm may hold blanks and parentheses: it ends at the last one."""
    begin, end = data.find(b"("), data.rfind(b")")
    fields = data[end + 1 :].split()
    if begin < 0 or end < begin or len(fields) < 13:
        return None
    try:
        ticks = int(fields[11]) + int(fields[12])
        return Usage(
            comm=data[begin + 1 : end],
            state=fields[0][:1],
            ppid=int(fields[1]),
            cpu_ns=ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK"),
        )
    except ValueError:
        return None


def parse_nofile(limits: bytes) -> int | None:
    """The soft limit of "Max open files"; `UNLIMITED` where there is none."""
    found = _NOFILE.search(limits)
    if found is None:
        return None
    return UNLIMITED if found[1] == b"unlimited" else int(found[1])


def parse_counters(netstat: bytes, snmp: bytes) -> TcpCounters | None:
    """A counter that this kernel does not have is 0."""
    extended, tcp = _columns(netstat, b"TcpExt:"), _columns(snmp, b"Tcp:")
    if not extended or not tcp:
        return None
    return TcpCounters(
        listen_overflows=extended.get(b"ListenOverflows", 0),
        listen_drops=extended.get(b"ListenDrops", 0),
        syncookies_sent=extended.get(b"SyncookiesSent", 0),
        retrans_segs=tcp.get(b"RetransSegs", 0),
    )


def _columns(data: bytes, kind: bytes) -> dict[bytes, int]:
    """Two lines of a kind: the names, then the numbers."""
    rows = [line.split()[1:] for line in data.splitlines() if line.startswith(kind)]
    if len(rows) != 2:
        return {}
    try:
        return {name: int(number) for name, number in zip(rows[0], rows[1], strict=False)}
    except ValueError:
        return {}
