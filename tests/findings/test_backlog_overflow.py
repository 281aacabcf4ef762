"""backlog-overflow: a full accept queue, who was turned away, and what is only a moment."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sockscope.analysis.session import Session
from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.model.facts import NETNS_FACT_DTYPE, Facts
from sockscope.model.findings import Confidence, Severity
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import START_NS, Script, address
from tests.findings.conftest import MS, SERVER, Run, accept, ask, peer, server

SLUG = "backlog-overflow"


def shown(script: Script, waiting: int, *, at: int, limit: int = 2) -> None:
    """A snapshot of the listener, at a time in ms."""
    script.snapshot(at=at * MS)
    script.socket_row(SERVER, None, TcpState.LISTEN, inode=3, recv_q=waiting, send_q=limit, owners=[(100, 3)])


def ignored(script: Script, number: int, *, at: int, answered: int | None) -> None:
    """A SYN that the kernel drops, and that is repeated a second later (times in ms)."""
    script.packet(peer(number), SERVER, TcpFlag.SYN, seq=1000, at=at * MS)
    if answered is not None:
        script.handshake(peer(number), SERVER, at=answered * MS)


def busy() -> Script:
    """One client is being served; three wait, and three are ignored."""
    script = server()
    accept(script, 0, 7, at=10 * MS)
    ask(script, 0, 7)
    for number in (1, 2, 3):
        script.handshake(peer(number), SERVER, at=(100 + number) * MS)
    for number in (4, 5, 6):
        ignored(script, number, at=110 + number, answered=None)
    shown(script, 3, at=300)
    shown(script, 3, at=600)
    for number in (4, 5, 6):
        script.handshake(peer(number), SERVER, at=(1120 + number) * MS)
    return script


def with_facts(session: Session, *, overflows: int, somaxconn: int = 4096) -> Session:
    facts = np.zeros(2, NETNS_FACT_DTYPE)
    facts["time_ns"], facts["netns"], facts["somaxconn"] = (START_NS, START_NS + 1), 1, somaxconn
    facts["listen_overflows"] = (50, 50 + overflows)
    return replace(session, facts=Facts(namespaces=facts))


def test_full_and_clients_ignored(run: Run) -> None:
    (finding,) = run(busy().session(), SLUG)
    assert (finding.severity, finding.confidence, finding.count) == (Severity.WARNING, Confidence.CERTAIN, 3)
    assert (finding.tgid, finding.fd) == (100, 3)
    assert finding.title == "accept queue of port 80 full at 2+1: 3 clients turned away"
    assert "full in 2 snapshots (first at +0.300 s)" in finding.explanation
    assert "3 waited, where 2 and one find room" in finding.explanation
    assert "waited 1.01 s" in finding.explanation
    assert any("the first SYN was ignored" in fact.text for fact in finding.evidence)
    assert finding.worst in finding.connections
    assert "its last call, recvfrom" in finding.explanation


def test_the_call_that_set_it(run: Run) -> None:
    script = Script(ports=(80,)).process(100)
    script.event(100, 100, Call.socket, 2, 1, ret=3)
    script.event(100, 100, Call.bind, fd=3, sockaddr=SERVER)
    script.event(100, 100, Call.listen, 4096, fd=3)
    ignored(script, 4, at=110, answered=1112)
    shown(script, 129, at=300, limit=128)
    (finding,) = run(with_facts(script.session(), overflows=3, somaxconn=128), SLUG)
    assert "backlog of 4096, which net.core.somaxconn cuts to 128" in finding.explanation
    assert "grew by 3" in finding.explanation


def test_what_the_acceptor_hung_in(run: Run) -> None:
    script = server()
    accept(script, 0, 7, at=10 * MS)
    script.event(100, 100, Call.recvfrom, 0, 100, fd=7, at=20 * MS, flags=EventFlag.ENTERED_ONLY)
    ignored(script, 4, at=110, answered=1112)
    shown(script, 3, at=300)
    (finding,) = run(script.ends(1300 * MS).session(), SLUG)
    assert "was in recvfrom then" in finding.explanation


def test_a_syn_that_is_never_answered(run: Run) -> None:
    script = server()
    ignored(script, 4, at=110, answered=None)
    shown(script, 3, at=300)
    (finding,) = run(script.ends(700 * MS).session(), SLUG)
    assert finding.count == 1


def test_the_last_ack_is_ignored(run: Run) -> None:
    """The handshake was complete for the client; the server sends its SYN-ACK again."""
    script = server()
    script.handshake(peer(4), SERVER, at=110 * MS)
    shown(script, 3, at=300)
    script.packet(SERVER, peer(4), TcpFlag.SYN | TcpFlag.ACK, seq=5000, ack=1001, at=1110 * MS)
    (finding,) = run(script.session(), SLUG)
    assert "waited 1.00 s" in finding.explanation
    assert any("the client's ACK was ignored" in fact.text for fact in finding.evidence)


def test_no_packets_two_snapshots(run: Run) -> None:
    script = server()
    shown(script, 3, at=300)
    shown(script, 3, at=600)
    (finding,) = run(script.session(), SLUG)
    assert (finding.severity, finding.confidence) == (Severity.WARNING, Confidence.LIKELY)


def test_nobody_turned_away_is_of_interest_only(run: Run) -> None:
    script = server()
    for number in (1, 2, 3):
        script.handshake(peer(number), SERVER)
    shown(script, 3, at=300)
    shown(script, 3, at=600)
    (finding,) = run(script.session(), SLUG, least=Severity.INFO)
    assert finding.severity is Severity.INFO


def test_between_snapshots_the_counter_tells(run: Run) -> None:
    script = server()
    for number in (4, 5):
        ignored(script, number, at=110, answered=1112)
    shown(script, 0, at=300)
    assert not run(script.session(), SLUG, least=Severity.INFO)
    (finding,) = run(with_facts(script.session(), overflows=2), SLUG)
    assert finding.confidence is Confidence.LIKELY


@pytest.mark.parametrize("waiting", [1, 2])
def test_up_to_the_limit_is_health(run: Run, waiting: int) -> None:
    script = server()
    for at in (300, 600, 900):
        shown(script, waiting, at=at)
    assert not run(script.session(), SLUG, least=Severity.INFO)


def test_one_snapshot_alone(run: Run) -> None:
    script = server()
    script.handshake(peer(1), SERVER)
    shown(script, 3, at=300)
    shown(script, 0, at=600)
    assert not run(script.session(), SLUG, least=Severity.INFO)


def test_another_port(run: Run) -> None:
    script = server()
    other = address("127.0.0.1", 81)
    script.packet(peer(4), other, TcpFlag.SYN, seq=1000, at=110 * MS)
    shown(script, 3, at=300)
    assert not run(script.ends(1300 * MS).session(), SLUG, least=Severity.INFO)


def test_a_consequence_of_nobody_accepting() -> None:
    """The cause is told once."""
    script = server()
    accept(script, 0, 7, at=10 * MS)
    script.event(100, 100, Call.recvfrom, 0, 100, fd=7, at=20 * MS, flags=EventFlag.ENTERED_ONLY)
    for number in (1, 2, 3):
        script.handshake(peer(number), SERVER, at=(100 + number) * MS)
    ignored(script, 4, at=110, answered=None)
    for at in (300, 1300, 2300):
        shown(script, 3, at=at)
        for number in (1, 2, 3):
            script.socket_row(SERVER, peer(number), cookie=50 + number)
    findings, _, _ = run_rules(script.ends(2400 * MS).session())
    (finding,) = [one for one in findings if one.severity > Severity.INFO]
    assert finding.rule == "unaccepted-connection"
    assert [one.rule for one in finding.consequences] == [SLUG]
