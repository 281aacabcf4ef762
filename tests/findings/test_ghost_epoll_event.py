"""ghost-epoll-event: a registration that outlives its descriptor, and those that do not."""

from __future__ import annotations

from sockscope.model.calls import Call
from sockscope.model.findings import Confidence, Severity
from sockscope.model.seed import FileKind
from tests.analysis.builders import EPOLLIN, Script
from tests.findings.conftest import MS, Run, S, accept, server

SLUG = "ghost-epoll-event"


def registered(data: int = 7) -> Script:
    """A connection as fd 7, registered, and told of once."""
    script = server().seed_fd(100, 4, kind=FileKind.EPOLL)
    accept(script, 0, 7)
    script.event(100, 100, Call.epoll_ctl, 1, 7, fd=4, epoll=[(EPOLLIN, data)])
    told(script, data, at=20 * MS)
    return script


def told(script: Script, *data: int, at: int | None = None, epoll: int = 4) -> None:
    events = [(EPOLLIN, one) for one in data]
    script.event(100, 100, Call.epoll_wait, 0, 64, 500, fd=epoll, ret=len(data), epoll=events, at=at)


def deregister(script: Script) -> None:
    script.event(100, 100, Call.epoll_ctl, 2, 7, fd=4)


def close(script: Script, fd: int = 7, *, tgid: int = 100) -> None:
    script.event(tgid, tgid, Call.close, fd=fd)


def used(script: Script) -> None:
    """The child serves the connection, so that nothing else is wrong with its copy."""
    for _ in range(3):
        script.event(200, 200, Call.recvfrom, 0, 100, fd=7, ret=4, payload=b"tick")
        script.event(200, 200, Call.sendto, 0, 4, fd=7, ret=4, payload=b"tick")


def forked() -> Script:
    script = registered()
    script.fork(100, 200)
    close(script, 3, tgid=200)
    close(script, 4, tgid=200)
    return script


def test_a_forked_copy_keeps_it(run: Run) -> None:
    script = forked()
    close(script)
    used(script)
    for at in (100, 200, 300):
        told(script, 7, at=at * MS)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert (finding.severity, finding.confidence, finding.fd) == (Severity.WARNING, Confidence.CERTAIN, 7)
    assert (finding.count, finding.connections) == (1, (0,))
    assert finding.holder is not None
    assert (finding.holder.tgid, finding.holder.fd) == (200, 7)
    assert "reported fd 7 3 times since, first at +0.100 s within 200.0 ms" in finding.explanation
    assert "EPOLL_CTL_DEL" in finding.remedy


def test_a_dup_keeps_it_and_the_number_fails(run: Run) -> None:
    script = registered(data=0xDEAD_BEEF_0001)
    script.event(100, 100, Call.dup, fd=7, ret=9)
    close(script)
    told(script, 0xDEAD_BEEF_0001)
    script.event(100, 100, Call.epoll_ctl, 2, 7, fd=4, ret=-9)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert "a dup (fd 9" in finding.explanation
    assert "It tried epoll_ctl on it in vain" in finding.explanation


def test_closed_before_the_attach(run: Run) -> None:
    script = server().process(200).seed_fd(100, 4, kind=FileKind.EPOLL)
    script.seed_fd(200, 7, inode=70).seed_epoll(100, 4, 7, EPOLLIN, inode=70)
    told(script, 7)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert "had closed fd 7 before watching began" in finding.explanation
    assert finding.holder is not None
    assert finding.holder.tgid == 200


def test_taken_out_before(run: Run) -> None:
    script = forked()
    deregister(script)
    close(script)
    used(script)
    told(script, 3)
    assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)


def test_the_last_copy_is_closed(run: Run) -> None:
    script = registered()
    close(script)
    told(script, 7)
    assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)


def test_nothing_is_told_of_it(run: Run) -> None:
    script = forked()
    close(script)
    used(script)
    told(script, 3)
    assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)


def test_the_child_closes_its_copy(run: Run) -> None:
    script = forked()
    told(script, 7)
    close(script, tgid=200)
    told(script, 7)
    assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)


def test_the_number_is_registered_again(run: Run) -> None:
    """What is told from then on may be meant for the new connection."""
    script = forked()
    close(script)
    used(script)
    accept(script, 1, 7)
    script.event(100, 100, Call.epoll_ctl, 1, 7, fd=4, epoll=[(EPOLLIN, 7)])
    told(script, 7)
    assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)


def test_the_number_is_registered_again_and_nothing_is_there(run: Run) -> None:
    script = forked()
    close(script)
    used(script)
    accept(script, 1, 7)
    script.event(100, 100, Call.epoll_ctl, 1, 7, fd=4, epoll=[(EPOLLIN, 7)])
    for _ in range(4):
        told(script, 7)
        script.event(100, 100, Call.recvfrom, 0, 4096, fd=7, ret=-11)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert "reported fd 7 4 times" in finding.explanation


def test_another_instance_has_the_same_data(run: Run) -> None:
    script = forked()
    script.event(100, 100, Call.epoll_create1, 0, ret=5)
    script.event(100, 100, Call.epoll_ctl, 1, 3, fd=5, epoll=[(EPOLLIN, 7)])
    close(script)
    used(script)
    told(script, 7, epoll=5)
    assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)


def test_a_wait_that_began_before_the_close(run: Run) -> None:
    script = forked()
    script.event(100, 100, Call.epoll_wait, 0, 64, 500, fd=4, ret=1, epoll=[(EPOLLIN, 7)], at=50 * MS, took=10 * MS)
    script.event(100, 101, Call.close, fd=7, at=55 * MS)
    assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)


def worker_without_listener() -> Script:
    """A worker closes the listener that its parent keeps, and is told of clients on and on."""
    script = server().seed_fd(100, 4, kind=FileKind.EPOLL)
    script.fork(100, 200)
    script.event(200, 200, Call.epoll_ctl, 1, 3, fd=4, epoll=[(EPOLLIN, 3)])
    close(script, 3, tgid=200)
    for at in (100, 110, 120):
        script.event(200, 200, Call.epoll_wait, 0, 64, 500, fd=4, ret=1, epoll=[(EPOLLIN, 3)], at=at * MS)
    return script


def test_a_worker_that_goes_on_without_its_listener(run: Run) -> None:
    (finding,) = run(worker_without_listener().ends(S).session(), SLUG)
    assert (finding.tgid, finding.fd) == (200, 3)


def test_a_worker_that_ends_is_an_info(run: Run) -> None:
    script = worker_without_listener()
    script.exit(200, at=200 * MS)
    session = script.ends(S).session()
    assert not run(session, SLUG)
    (finding,) = run(session, SLUG, least=Severity.INFO)
    assert "It was ending" in finding.explanation
