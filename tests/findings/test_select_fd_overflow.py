"""select-fd-overflow: nfds beyond an fd_set, and connections that select cannot be asked about."""

from __future__ import annotations

from sockscope.model.calls import Call
from sockscope.model.findings import Confidence, Severity
from tests.analysis.builders import Script
from tests.findings.conftest import MS, SERVER, Run, S, accept, ask, peer, server

SLUG = "select-fd-overflow"
READ_SET, WRITE_SET = 0x7FFD_0000_1000, 0x7FFD_0000_1080


def select(script: Script, nfds: int, read: int = READ_SET, write: int = WRITE_SET, *, ret: int = 1) -> None:
    script.event(100, 100, Call.select, nfds, read, write, 0, 0, ret=ret)


def test_neighbouring_sets_overlap(run: Run) -> None:
    script = server()
    accept(script, 0, 1027)
    select(script, 4)
    select(script, 1028)
    select(script, 1028)
    (finding,) = run(script.session(), SLUG)
    assert (finding.severity, finding.confidence, finding.fd) == (Severity.ERROR, Confidence.CERTAIN, 1027)
    assert finding.connections == (0,)
    assert "2 times with nfds above 1024" in finding.explanation
    assert "128 bytes apart and 129 bytes of each" in finding.explanation
    assert "poll" in finding.remedy


def test_sets_that_may_be_large_enough(run: Run) -> None:
    script = server()
    accept(script, 0, 1027)
    select(script, 1028, write=READ_SET + 4096)
    (finding,) = run(script.session(), SLUG)
    assert (finding.severity, finding.confidence) == (Severity.WARNING, Confidence.LIKELY)


def test_one_set_alone(run: Run) -> None:
    script = server()
    accept(script, 0, 1027)
    select(script, 1028, write=0)
    (finding,) = run(script.session(), SLUG)
    assert finding.severity is Severity.WARNING


def test_nfds_of_1024_fits(run: Run) -> None:
    script = server()
    accept(script, 0, 1023)
    select(script, 1024)
    assert not run(script.session(), SLUG, least=Severity.INFO)


def unread(script: Script, fd: int) -> Script:
    for at in (200, 700, 1300):
        script.snapshot(at=at * MS)
        script.socket_row(SERVER, peer(0), inode=70, recv_q=5, owners=[(100, fd)])
    return script.ends(2 * S)


def test_a_connection_that_is_never_asked_about(run: Run) -> None:
    script = server()
    accept(script, 0, 1030)
    select(script, 4, write=0)
    (finding,) = run(unread(script, 1030).session(), SLUG)
    assert (finding.severity, finding.confidence, finding.fd) == (Severity.ERROR, Confidence.LIKELY, 1030)
    assert "nfds 4 at most" in finding.explanation
    assert "5 bytes wait" in finding.explanation


def test_it_is_served_by_a_thread(run: Run) -> None:
    script = server()
    accept(script, 0, 1030)
    select(script, 4, write=0)
    ask(script, 0, 1030)
    assert not run(unread(script, 1030).session(), SLUG, least=Severity.INFO)


def test_poll_is_asked_as_well(run: Run) -> None:
    script = server()
    accept(script, 0, 1030)
    select(script, 4, write=0)
    script.event(100, 100, Call.poll, 0, 1, 100, ret=0, poll=[(1030, 1, 0)])
    assert not run(unread(script, 1030).session(), SLUG, least=Severity.INFO)


def test_nothing_waits_on_it(run: Run) -> None:
    script = server()
    accept(script, 0, 1030)
    select(script, 4, write=0)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_numbers_below_are_not_looked_at(run: Run) -> None:
    script = server()
    accept(script, 0, 30)
    select(script, 4, write=0)
    assert not run(unread(script, 30).session(), SLUG, least=Severity.INFO)


def test_what_was_seen_counts_though_other_events_were_lost(run: Run) -> None:
    script = server()
    script.lost = {"ring full": 3}
    accept(script, 0, 1027)
    select(script, 1028)
    assert run(script.session(), SLUG)


def test_calls_that_failed_for_bits_of_another_set(run: Run) -> None:
    script = server()
    accept(script, 0, 1028)
    select(script, 1029, ret=-9)
    (finding,) = run(script.session(), SLUG)
    assert "1 of these calls failed with EBADF" in finding.explanation
