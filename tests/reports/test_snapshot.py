"""A snapshot as text, table and JSON; nothing of the target's is taken for markup or control."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console

from sockscope.model.snapshot import Cause, Snapshot
from sockscope.model.sockaddr import V4_MAPPED_PREFIX
from sockscope.model.sockets import OWNER_DTYPE, SOCKET_DTYPE, Sockets
from sockscope.model.tcp import TcpState
from sockscope.reports import snapshot as report
from sockscope.reports.snapshot_text import plain

LOOPBACK = V4_MAPPED_PREFIX + bytes([127, 0, 0, 1])


def make(*, comm: str = "srv", count: int = 1) -> Snapshot:
    """`count` CLOSE_WAIT sockets held by pid 7, one not accepted, a listener, and one in TIME_WAIT."""
    rows = np.zeros(count + 3, SOCKET_DTYPE)
    rows["protocol"], rows["family"] = 6, 2
    rows["local"] = rows["peer"] = np.frombuffer(LOOPBACK, np.uint8)
    rows["local_port"], rows["peer_port"] = 80, np.arange(1, len(rows) + 1) % 65536
    rows["state"] = TcpState.CLOSE_WAIT
    rows["state"][0], rows["state"][1] = TcpState.TIME_WAIT, TcpState.LISTEN
    rows["inode"][3:] = np.arange(100, 100 + count)
    rows["recv_q"][2] = 6
    rows["peer_port"][1] = 0
    owners = np.zeros(count, OWNER_DTYPE)
    owners["inode"], owners["tgid"], owners["fd"] = rows["inode"][3:], 7, np.arange(count) + 4
    causes = np.zeros(len(rows), np.uint8)
    causes[2], causes[3:] = Cause.NEVER_ACCEPTED, Cause.OWNED
    return Snapshot(
        sockets=Sockets(records=rows, owners=owners), causes=causes, comms={7: comm}, realtime_ns=1_700_000_000 * 10**9
    )


def rendered(found: Snapshot, width: int = 160) -> str:
    console = Console(width=width, record=True, force_terminal=False)
    console.print(report.table(found, narrow=width < 120)[0])
    return console.export_text()


def test_the_summary_counts_states_and_causes() -> None:
    text = report.summary(make(count=2))
    assert text == "TCP 5: CLOSE_WAIT 3 (2 owned, 1 never accepted), LISTEN 1, TIME_WAIT 1"


def test_plain_text_has_a_line_a_socket_with_owner_and_cause_and_unusual_first() -> None:
    lines = plain(make()).splitlines()
    assert len(lines) == 2 + 4
    assert "never accepted: waits in the listener's queue" in lines[2]
    assert "127.0.0.1:80" in lines[3]
    assert "srv[7] fd 4" in lines[3]
    assert "owned: the peer has closed" in lines[3]
    assert lines[4].split()[1] == "LISTEN"
    assert lines[5].split()[1] == "TIME_WAIT"


def test_plain_text_is_never_cut() -> None:
    found = make(comm="x" * 15, count=1)
    owners = np.repeat(found.sockets.owners, 30)
    owners["fd"] = np.arange(30)
    several = Snapshot(
        sockets=Sockets(records=found.sockets.records, owners=owners),
        causes=found.causes,
        comms=found.comms,
        realtime_ns=0,
    )
    assert "fd 29" in plain(several)


@pytest.mark.parametrize("comm", ["\x1b[2J", "a\nb", "\x9b31m", "[bold]x[/bold]", "[/]"])
def test_a_hostile_name_stays_text(comm: str) -> None:
    for text in (plain(make(comm=comm)), rendered(make(comm=comm))):
        assert "\x1b" not in text
        assert "\x9b" not in text
        assert "\nb[7]" not in text
    if comm.startswith("[b"):
        assert "[bold]x[/bold][7]" in rendered(make(comm=comm))


def test_a_terminal_of_80_cuts_nothing() -> None:
    text = rendered(make(), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "127.0.0.1:80" in text
    assert "srv[7] fd 4" in text
    assert "program holds on to it" in " ".join(text.split())


def test_many_rows_are_summed_up_on_a_terminal_and_whole_in_a_pipe() -> None:
    found = make(count=report.TABLE_ROWS + 1)
    table, left_out = report.table(found)
    assert table.row_count == report.ROWS_OF_MANY
    assert left_out == report.TABLE_ROWS + 4 - report.ROWS_OF_MANY
    assert len(plain(found).splitlines()) == report.TABLE_ROWS + 4 + 2


def test_json() -> None:
    data = json.loads(report.to_json(make()))
    assert data["schema"] == "sockscope-snapshot/1"
    assert data["time"] == "2023-11-14T22:13:20+00:00"
    queued, owned, listener, _ = data["sockets"]
    assert queued["cause"] == "never-accepted"
    assert queued["owners"] == []
    assert owned["owners"] == [{"tgid": 7, "comm": "srv", "fd": 4}]
    assert (owned["state"], owned["local"], owned["peer"]) == ("CLOSE_WAIT", "127.0.0.1:80", "127.0.0.1:4")
    assert listener["peer"] is None
    assert listener["cause"] is None
    assert listener["tcp_info"] is None


def test_unix_rows() -> None:
    rows = np.zeros(2, SOCKET_DTYPE)
    rows["family"], rows["state"], rows["type"], rows["inode"] = 1, 1, 1, [5, 6]
    rows["path"][0] = "/run/ü\x1b".encode()
    rows["peer_inode"] = [6, 5]
    found = Snapshot(
        sockets=Sockets(records=rows, owners=np.zeros(0, OWNER_DTYPE)),
        causes=np.zeros(2, np.uint8),
        comms={},
        realtime_ns=0,
    )
    assert "/run/ü\\x1b:5" in plain(found)
    named, unnamed = json.loads(report.to_json(found))["sockets"]
    assert (named["path"], named["type"], named["peer_inode"]) == ("/run/ü\\x1b", "stream", 6)
    assert unnamed["path"] is None


def test_nothing() -> None:
    found = Snapshot(sockets=Sockets.empty(), causes=np.zeros(0, np.uint8), comms={}, realtime_ns=0)
    assert report.summary(found) == "no sockets"
    assert json.loads(report.to_json(found))["sockets"] == []
    assert plain(found).startswith("no sockets\n")
