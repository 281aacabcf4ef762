"""Listings of others: nothing is concluded from what they were not asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sockscope.analysis.build import build_session
from sockscope.analysis.session import Session
from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.descriptors import Process
from sockscope.model.facts import PROCESS_FACT_DTYPE, Facts
from sockscope.model.info import SocketCoverage
from sockscope.model.sockets import STAND_IN_INODE
from sockscope.model.tcp import TcpState
from tests.analysis.builders import Script, address

MS = 1_000_000
S = 1_000_000_000
SERVER, CLIENT = address("10.0.0.1", 80), address("10.0.0.2", 40000)


def joined(script: Script, *, facts: Facts | None = None, **covers: bool) -> Session:
    info = script.info()
    return build_session(
        info=replace(info, sockets=SocketCoverage(snapshot_count=info.sockets.snapshot_count, **covers)),
        seed=script.seed(),
        events=script.events(),
        packets=script.packets(),
        sockets=script.sockets(),
        facts=facts,
    )


def listed(*, inode: int, seconds: int = 20) -> Script:
    """A connection to a listener in two listings, no syscalls."""
    script = Script(engine="")
    for at in (0, seconds):
        script.snapshot(at=at * S)
        script.socket_row(SERVER, None, TcpState.LISTEN, inode=3, recv_q=1, send_q=5, owners=[(100, 3)])
        script.socket_row(SERVER, CLIENT, TcpState.ESTABLISHED, inode=inode)
    return script


def test_inode_0_is_what_waits_for_accept() -> None:
    (made,) = joined(listed(inode=0)).connections
    assert made.never_accepted
    assert made.owners == []


def test_a_stand_in_is_no_inode_0() -> None:
    session = joined(listed(inode=STAND_IN_INODE + 7), has_inodes=False)
    (made,) = session.connections
    assert not made.never_accepted
    findings, skips, _ = run_rules(session, select=["unaccepted-connection"])
    assert not findings
    assert "no inodes" in skips[0].reason


@pytest.mark.parametrize(
    ("lacks", "slug", "reason"),
    [("limits", "backlog-overflow", "netstat"), ("inodes", "unaccepted-connection", "inodes")],
)
def test_rules_say_what_a_listing_lacks(lacks: str, slug: str, reason: str) -> None:
    session = joined(listed(inode=STAND_IN_INODE), has_limits=lacks != "limits", has_inodes=lacks != "inodes")
    _, skips, _ = run_rules(session, select=[slug])
    assert reason in skips[0].reason


def test_a_rule_on_idle_connections_needs_timers() -> None:
    session = joined(listed(inode=9), has_timers=False)
    session.info = replace(session.info, syscalls=replace(session.info.syscalls, engine="strace"))
    _, skips, _ = run_rules(session, select=["idle-without-keepalive"])
    assert "no timers" in skips[0].reason


@pytest.mark.parametrize("timed", [True, False])
def test_guessed_times_make_no_certainty(timed: bool) -> None:
    (finding,), _, _ = run_rules(joined(listed(inode=0), times_known=timed), select=["unaccepted-connection"])
    assert (finding.confidence.value == "certain") == timed
    assert finding.tgid == 100
    assert finding.fd == 3
    assert ("guessed" in finding.explanation) != timed


@pytest.mark.parametrize("whole", [True, False])
def test_what_another_listing_leaves_out_is_gone_only_where_both_show_all(whole: bool) -> None:
    script = listed(inode=5)
    script.snapshot(at=30 * S)
    script.socket_row(SERVER, None, TcpState.LISTEN, inode=3, owners=[(100, 3)])
    (made,) = joined(script, whole=whole).connections
    assert (made.gone_ns is not None) == whole


@pytest.mark.parametrize("state", [TcpState.FIN_WAIT2, TcpState.LAST_ACK])
def test_a_closed_connection_is_found_in_a_listing_without_inodes(state: TcpState) -> None:
    script = Script(ports=(80,)).process(100, tids=(100,)).seed_fd(100, 3, inode=3)
    script.snapshot(at=0)
    script.socket_row(SERVER, None, TcpState.LISTEN, inode=STAND_IN_INODE, owners=[(100, 3)])
    script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=CLIENT, at=S)
    script.event(100, 100, Call.close, fd=7, at=2 * S)
    script.snapshot(at=9 * S)
    script.socket_row(SERVER, CLIENT, state, inode=STAND_IN_INODE + 1)
    session = joined(script, has_inodes=False)
    assert [one.state for one in session.connections] == [state]


def test_names_come_from_what_was_said_beside() -> None:
    rows = np.zeros(1, PROCESS_FACT_DTYPE)
    rows["tgid"], rows["comm"] = 100, b"nginx"
    script = listed(inode=9)
    script.socket_row(SERVER, address("10.0.0.3", 5), TcpState.ESTABLISHED, inode=11, owners=[(100, 8)])
    session = joined(script, facts=Facts(processes=rows))
    assert session.processes == {100: Process(tgid=100, comm="nginx")}
    assert session.comm(100) == "nginx"
