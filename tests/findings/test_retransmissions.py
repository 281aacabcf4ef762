"""retransmissions: what was sent again, why, and when it is too much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sockscope.model.calls import Call
from sockscope.model.facts import NETNS_FACT_DTYPE, Facts
from sockscope.model.findings import Confidence, Severity
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import START_NS, Script
from tests.findings.conftest import MS, SERVER, Run, accept, ask, peer, server

SLUG = "retransmissions"
PSH = TcpFlag.PSH | TcpFlag.ACK
ANSWER = b"x" * 100


def sent(script: Script, number: int, *, nth: int = 0, at: int, length: int = 100) -> None:
    """The server's `nth` segment, at a time in ms."""
    script.packet(SERVER, peer(number), PSH, seq=5001 + nth * 100, ack=1007, payload=ANSWER[:length], at=at * MS)


def acked(script: Script, number: int, nth: int, *, at: int, window: int = 1000) -> None:
    script.packet(peer(number), SERVER, TcpFlag.ACK, seq=1007, ack=5101 + nth * 100, window=window, at=at * MS)


def lossy(clients: int = 3, *, times: tuple[int, ...] = (220, 640)) -> Script:
    """Each client's answer is sent, and again after so many ms."""
    script = server()
    for number in range(clients):
        begins = 10 + number * 2000
        accept(script, number, 7 + number, at=begins * MS)
        ask(script, number, 7 + number)
        script.event(100, 100, Call.sendto, 0, 100, fd=7 + number, ret=100)
        sent(script, number, at=begins + 10)
        for after in times:
            sent(script, number, at=begins + 10 + after)
        acked(script, number, 0, at=begins + 1000)
    return script


def test_after_the_timer(run: Run) -> None:
    (finding,) = run(lossy().session(), SLUG)
    assert (finding.severity, finding.confidence, finding.count) == (Severity.WARNING, Confidence.CERTAIN, 3)
    assert finding.tgid == 100
    assert finding.title == "6 segments of 9 (67%) sent again, 1.92 s lost in timeouts"
    assert "all 3 connections" in finding.explanation
    assert "640.0 ms of it on fd" in finding.explanation
    assert "127.0.0.1" in finding.remedy
    assert finding.evidence[0].text.endswith("(sent again after a timeout, 220.0 ms after the first time)")


@pytest.mark.parametrize(("segments", "severity"), [(20, Severity.WARNING), (400, Severity.INFO), (2000, None)])
def test_share_decides(run: Run, segments: int, severity: Severity | None) -> None:
    """Five segments in the middle are sent again, as three ACKs told."""
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7)
    for nth in range(segments):
        sent(script, 0, nth=nth, at=20 + nth)
        if nth and nth % (segments // 5) == 0:
            sent(script, 0, nth=nth - 1, at=20 + nth)
    sent(script, 0, nth=0, at=20 + segments)
    findings = run(script.session(), SLUG, least=Severity.INFO)
    assert [finding.severity for finding in findings] == ([] if severity is None else [severity])
    assert all("timer" not in finding.explanation for finding in findings)


def test_single_ones_are_normal(run: Run) -> None:
    assert not run(lossy(2, times=(220,)).session(), SLUG, least=Severity.INFO)


def test_tail_loss_probes_are_not_counted(run: Run) -> None:
    """The last segment again after some milliseconds: the client only delays its ACK."""
    assert not run(lossy(8, times=(5,)).session(), SLUG, least=Severity.INFO)


def test_a_full_buffer_is_the_peers(run: Run) -> None:
    script = lossy(3)
    for number in range(3):
        acked(script, number, 0, at=7000 + number, window=0)
    assert not run(script.session(), SLUG, least=Severity.INFO)


def test_syn_ack_again_is_not_counted(run: Run) -> None:
    script = server()
    for number in range(8):
        for _ in range(3):
            script.packet(peer(number), SERVER, TcpFlag.SYN, seq=1000)
            script.packet(SERVER, peer(number), TcpFlag.SYN | TcpFlag.ACK, seq=5000, ack=1001)
        accept(script, number, 7 + number)
    assert not run(script.session(), SLUG, least=Severity.INFO)


def test_what_the_peer_sends_again_is_not_ours(run: Run) -> None:
    script = server()
    for number in range(3):
        accept(script, number, 7 + number)
        for _ in range(4):
            script.packet(
                peer(number), SERVER, PSH, seq=1001, ack=5001, payload=b"hello\n", at=script.now_ns + 200 * MS
            )
    assert not run(script.session(), SLUG, least=Severity.INFO)


def test_by_the_kernels_account(run: Run) -> None:
    """Without packets the share is not known."""
    script = server().seed_fd(100, 7, inode=7)
    script.snapshot(at=MS)
    script.socket_row(SERVER, peer(0), inode=7, owners=[(100, 7)])
    for _ in range(6):
        script.kernel(Call.tcp_retransmit, SERVER, peer(0), TcpState.ESTABLISHED)
        script.kernel(Call.tcp_retransmit, SERVER, peer(1), TcpState.SYN_RECV)
    (finding,) = run(script.session(), SLUG, least=Severity.INFO)
    assert (finding.severity, finding.confidence, finding.count) == (Severity.INFO, Confidence.LIKELY, 1)
    assert finding.title == "6 segments sent again"


def test_by_the_sockets_counter(run: Run) -> None:
    script = server().seed_fd(100, 7, inode=7)
    for at, total in ((1, 40), (500, 43), (1000, 47)):
        script.snapshot(at=at * MS)
        script.socket_row(SERVER, peer(0), inode=7, total_retrans=total, owners=[(100, 7)])
    (finding,) = run(script.session(), SLUG, least=Severity.INFO)
    assert finding.title == "7 segments sent again"


def test_what_the_namespace_says(run: Run) -> None:
    facts = np.zeros(2, NETNS_FACT_DTYPE)
    facts["time_ns"], facts["netns"], facts["retrans_segs"] = (START_NS, START_NS + 1), 1, (100, 160)
    session = replace(lossy().session(), facts=Facts(namespaces=facts))
    (finding,) = run(session, SLUG)
    assert "sent 60 segments again" in finding.explanation


def test_a_filter_of_the_programs_own_is_named(run: Run) -> None:
    script = lossy()
    for number in range(3):
        script.event(100, 100, Call.setsockopt, 1, 26, fd=7 + number, option=bytes(8) + b"\1" * 8, at=15 * MS)
    (finding,) = run(script.session(), SLUG)
    assert "attached a packet filter to fd" in finding.explanation


def test_what_had_arrived_already_is_told(run: Run) -> None:
    """Each answer again after its acknowledgment."""
    (finding,) = run(lossy(4, times=(220, 1300)).session(), SLUG)
    assert "4 segments had been acknowledged already, and went out in vain." in finding.explanation
