"""Which connections the terminal shows first, and that addresses stay whole."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from sockscope.model.connections import Connection, Protocol, Role
from sockscope.model.info import SocketCoverage, SyscallCoverage
from sockscope.model.report import ConnectionRow, Report
from sockscope.model.sockaddr import Address, Family
from sockscope.model.tcp import TcpState
from sockscope.reports.terminal import print_report
from sockscope.reports.terminal_connections import connections, telling_rows
from tests.reports.example import example_report

LOCAL = Address.inet(bytes([127, 0, 0, 1]), 51869)
LOCAL6 = Address.inet(bytes.fromhex("20010db8000000000000000000abcdef"), 51869)
PEER6 = Address.inet(bytes.fromhex("20010db800aa00bb00cc00dd00ee00ff"), 65123)


def row(
    number: int,
    *,
    protocol: Protocol = Protocol.TCP,
    local: Address | None = LOCAL,
    peer: Address | None = None,
    moved: int = 0,
    findings: tuple[int, ...] = (),
) -> ConnectionRow:
    if peer is None and protocol is not Protocol.UNIX:
        peer = Address.inet(bytes([127, 0, 0, 1]), 40000 + number)
    connection = Connection(
        id=number, protocol=protocol, role=Role.SERVER, local=local, peer=peer, first_ns=0, last_ns=0,
        state=TcpState.ESTABLISHED, read_bytes=moved, owners=[(6496, 3), (6498, 3)],
    )  # fmt: skip
    return ConnectionRow(
        connection=connection, processes=(812,), event_count=1, packet_count=0, finding_indexes=findings,
        summary=f"GET /{number} → 200, 153 bytes ×11395",
    )  # fmt: skip


def pair(number: int, *, moved: int = 0) -> ConnectionRow:
    return row(number, protocol=Protocol.UNIX, local=None, moved=moved)


def shown(rows: list[ConnectionRow], width: int, *, verbose: bool = False) -> str:
    return told(replace(example_report(), connections=tuple(rows)), width, verbose=verbose)


def told(report: Report, width: int, *, verbose: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width)
    for part in connections(report, lambda text: text, width=width, verbose=verbose, ascii_only=False):
        console.print(part)
    return file.getvalue()


def test_what_matters_comes_first() -> None:
    unix = Address(family=Family.UNIX, packed=b"/run/app.sock")
    rows = [
        pair(0), pair(1, moved=5), row(2, protocol=Protocol.UNIX, local=unix), row(3, protocol=Protocol.UDP),
        row(4, moved=1), row(5, moved=9), row(6, findings=(0,)),
    ]  # fmt: skip
    assert [r.connection.id for r in telling_rows(rows, 9, idle_too=True)] == [6, 5, 4, 3, 2, 1, 0]


def test_idle_pairs_are_counted_and_not_shown() -> None:
    text = shown([pair(0), pair(1), row(2)], 80)
    assert "3 connections, 1 at 127.0.0.1:51869" in text
    assert "2 idle ends of unix socketpairs" in text
    assert "unix pair" not in text
    assert "unix pair" in shown([pair(0), pair(1), row(2)], 80, verbose=True)


def test_a_pair_that_carried_something_is_shown() -> None:
    assert "unix pair" in shown([pair(0, moved=7), row(2)], 80)


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("local", [LOCAL, LOCAL6])
@pytest.mark.parametrize("one_local", [True, False])
def test_addresses_are_never_folded(width: int, local: Address, *, one_local: bool) -> None:
    other = local if one_local else Address.inet(bytes([10, 0, 0, 255]), 65535)
    rows = [row(0, local=local, peer=PEER6 if local is LOCAL6 else None), row(10_000, local=other), pair(3, moved=1)]
    text = shown(rows, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for each in rows[:2]:
        assert str(each.connection.peer) in text
        assert str(each.connection.local) in text
    # Long text may fold.
    assert "GET/0→200,153bytes×11395" in "".join(text.split())


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_of_unix_sockets_are_made_safe(encoding: str) -> None:
    hostile = Address(family=Family.UNIX, packed=b"/run/\x1b[31m\xe2\x80\xae[bold]x")
    client = row(1)
    client = replace(client, connection=replace(client.connection, role=Role.CLIENT))
    rows = (row(0, protocol=Protocol.UNIX, local=hostile), client, row(2))
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    print_report(replace(example_report(), connections=rows), console=Console(file=file, width=120))
    file.flush()
    text = raw.getvalue().decode(encoding)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert r"unix /run/\x1b[31m\u202e[bold]x" in text


@pytest.mark.parametrize("width", [40, 80, 160])
def test_packets_alone_tell_no_state(width: int) -> None:
    rows = [replace(row(number), connection=bare(number)) for number in range(20)]
    rows[3] = replace(rows[3], finding_indexes=(0,))
    report = replace(example_report(), connections=tuple(rows))
    of_wire = replace(report.info, syscalls=SyscallCoverage(), sockets=SocketCoverage())
    text = told(replace(report, info=of_wire), width)
    assert "state" not in text
    assert "unknown" not in text
    assert "and 11 more" in text
    assert "unknown" in told(report, width)


def bare(number: int) -> Connection:
    return replace(row(number).connection, state=TcpState.UNKNOWN, owners=[])
