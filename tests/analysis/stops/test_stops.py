"""Stops: who is part of one, what they did, and what the clients saw."""

from __future__ import annotations

from sockscope.analysis.stops.stops import STOP_COUNT, stops
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.model.ids import NO_ID
from sockscope.model.stops import Disposition, StopAct, StopAudit
from sockscope.model.tcp import TcpFlag
from tests.analysis.builders import Script
from tests.findings.conftest import MS, SERVER, S, accept, answer, ask, peer, server

SIGHUP, SIGINT, SIGKILL, SIGTERM = 1, 2, 9, 15
SHUT_RD, SHUT_WR = 0, 1


def busy() -> Script:
    """Client 0 has its answer and stays, client 1 has asked."""
    script = server()
    for number in range(2):
        accept(script, number, 7 + number)
        ask(script, number, 7 + number)
    answer(script, 7)
    return script


def fin(script: Script, number: int, flag: TcpFlag = TcpFlag.FIN) -> None:
    script.packet(SERVER, peer(number), flag | TcpFlag.ACK, seq=5001, ack=1007)


def one(script: Script, *, end: int = 5 * S) -> StopAudit:
    (stop,) = stops(script.ends(end).session())
    return stop


def acts(stop: StopAudit, tgid: int = 100) -> list[StopAct]:
    return [step.act for step in stop.steps if step.tgid == tgid]


def test_no_signal_no_stop() -> None:
    assert stops(busy().session()) == ()


def test_killed_where_it_stood() -> None:
    script = busy()
    script.signal(100, SIGTERM, si_pid=7, at=S)
    script.exit(100, status=SIGTERM, at=S + MS)
    fin(script, 0)
    fin(script, 1, TcpFlag.RST)
    stop = one(script)
    assert (stop.signal, stop.sender, stop.tgid) == (SIGTERM, 7, 100)
    assert stop.ended_ns == stop.time_ns + MS == stop.last_ended_ns
    assert acts(stop) == [StopAct.SIGNALLED, StopAct.ENDED]
    assert (stop.steps[-1].listener_count, stop.steps[-1].connection_count) == (1, 2)
    clients = stop.clients
    assert (clients.open_count, clients.running_count, clients.cut_count) == (2, 1, 1)
    assert (clients.fin_count, clients.reset_count, clients.untold_count) == (1, 1, 0)
    assert stop.listeners_first is None


def test_it_ends_well() -> None:
    script = busy()
    script.look(100, at=0, caught=(SIGTERM,))
    script.signal(100, SIGTERM, at=S)
    script.event(100, 100, Call.close, fd=3)
    answer(script, 8)
    script.event(100, 100, Call.shutdown, SHUT_WR, fd=8)
    for fd in (7, 8):
        script.event(100, 100, Call.close, fd=fd)
    script.packet(peer(9), SERVER, TcpFlag.SYN, seq=1)
    script.packet(SERVER, peer(9), TcpFlag.RST | TcpFlag.ACK, seq=0, ack=2)
    script.exit(100)
    stop = one(script)
    assert acts(stop) == [
        StopAct.SIGNALLED,
        StopAct.CLOSED,
        StopAct.ANSWERED,
        StopAct.SHUT,
        StopAct.CLOSED,
        StopAct.ENDED,
    ]
    assert stop.process.disposition is Disposition.HANDLER
    assert stop.listeners_first is True
    both = stop.steps[4]
    assert (both.count, both.fds, both.is_listener) == (2, (7, 8), False)
    assert stop.steps[1].address == "127.0.0.1:80"
    clients = stop.clients
    assert (clients.running_count, clients.answered_count, clients.cut_count) == (1, 1, 0)
    assert clients.refused_count == 1


def test_connections_first() -> None:
    script = busy()
    script.signal(100, SIGTERM, at=S)
    for fd in (7, 8, 3):
        script.event(100, 100, Call.close, fd=fd)
    script.exit(100)
    assert one(script).listeners_first is False


def test_a_client_that_had_gone_does_not_count() -> None:
    script = busy()
    script.signal(100, SIGTERM, at=S)
    script.event(100, 100, Call.recvfrom, 0, 4096, fd=7, ret=0)
    for fd in (7, 3, 8):
        script.event(100, 100, Call.close, fd=fd)
    script.exit(100)
    assert one(script).listeners_first is True


def test_a_half_that_was_ended_before_reading_is_no_close() -> None:
    script = busy()
    script.signal(100, SIGTERM, at=S)
    script.event(100, 100, Call.shutdown, SHUT_RD, fd=7)
    script.exit(100)
    assert StopAct.SHUT not in acts(one(script))


def test_what_was_closed_before_is_no_part_of_it() -> None:
    script = busy()
    script.event(100, 100, Call.close, fd=7)
    script.signal(100, SIGTERM, at=S)
    script.exit(100)
    stop = one(script)
    assert stop.clients.open_count == 1
    assert stop.steps[-1].connection_count == 1


def test_one_that_lives_on_closes_as_every_day() -> None:
    script = busy()
    script.look(100, at=0, ignored=(SIGTERM,))
    script.signal(100, SIGTERM, at=S)
    script.event(100, 100, Call.close, fd=7)
    stop = one(script)
    assert acts(stop) == [StopAct.SIGNALLED]
    assert stop.process.disposition is Disposition.IGNORED
    assert (stop.ended_ns, stop.last_ended_ns) == (None, None)


def with_children(*children: int) -> Script:
    script = busy()
    for child in children:
        script.fork(100, child)
    return script


def test_a_parent_that_passes_it_on_and_waits() -> None:
    script = with_children(200, 201)
    script.signal(100, SIGTERM, at=S)
    for child in (200, 201):
        script.event(100, 100, Call.kill, child, SIGTERM)
        script.signal(child, SIGTERM, si_pid=100)
        script.exit(child, status=SIGTERM)
    script.event(100, 100, Call.wait4, 200, ret=200)
    script.event(100, 100, Call.waitid, 1, 201, ret=0)
    script.exit(100)
    stop = one(script)
    assert [process.tgid for process in stop.processes] == [100, 200, 201]
    assert [process.waited_by for process in stop.processes] == [NO_ID, 100, 100]
    assert all(process.signalled_ns is not None for process in stop.processes)
    assert acts(stop).count(StopAct.SENT) == 2
    (fetched,) = (step for step in stop.steps if step.act is StopAct.FETCHED)
    assert (fetched.other, fetched.count) == (200, 2)
    assert [step.other for step in stop.steps if step.act is StopAct.SIGNALLED] == [NO_ID, 100, 100]


def test_a_child_that_is_left() -> None:
    script = with_children(200)
    script.signal(100, SIGTERM, at=S)
    script.exit(100)
    stop = one(script)
    assert stop.processes[1].ended_ns is None
    assert stop.processes[1].signalled_ns is None
    assert stop.last_ended_ns is None
    # Its copy of the listener is open still.
    assert stop.clients.still_open_count == 2


def test_a_whole_group_is_one_stop() -> None:
    script = with_children(200)
    script.signal(200, SIGINT, at=S)
    script.signal(100, SIGINT, at=S + MS)
    script.exit(200)
    script.exit(100)
    stop = one(script)
    assert (stop.tgid, stop.signal) == (100, SIGINT)
    assert [process.tgid for process in stop.processes] == [100, 200]


def test_a_worker_that_went_long_before_is_a_stop_of_its_own() -> None:
    script = with_children(200)
    script.signal(200, SIGTERM, at=S)
    script.exit(200)
    script.signal(100, SIGTERM, at=3 * S)
    script.exit(100)
    first, second = stops(script.ends(5 * S).session())
    assert [process.tgid for process in first.processes] == [200]
    assert [process.tgid for process in second.processes] == [100]


def test_a_helper_that_serves_nobody_is_no_server() -> None:
    script = Script().process(100)
    script.signal(100, SIGTERM, at=S)
    script.exit(100, status=SIGTERM)
    assert stops(script.session()) == ()


def test_hangup_is_a_reload() -> None:
    script = busy()
    script.signal(100, SIGHUP, at=S)
    assert stops(script.session()) == ()


def test_a_shell_above_that_keeps_it() -> None:
    script = server().process(50, comm="sh")
    script.look(50, at=0, ns_tgid=1, init_tgid=50, comm="sh")
    script.look(100, at=0, ppid=50, ns_tgid=2, init_tgid=50, caught=(SIGTERM,))
    accept(script, 0, 7)
    script.signal(50, SIGTERM, si_pid=0, at=S)
    # In there the server is 2; nobody is 100.
    script.event(50, 50, Call.kill, 2, 18, at=S + MS)
    script.exit(50, status=SIGKILL, at=3 * S)
    script.exit(100, status=SIGKILL, at=3 * S)
    stop = one(script)
    assert (stop.process.comm, stop.process.ns_tgid, stop.process.disposition) == ("sh", 1, Disposition.UNHEARD)
    below = stop.processes[1]
    assert (below.ns_tgid, below.signalled_ns, below.disposition) == (2, None, Disposition.HANDLER)
    (sent,) = (step for step in stop.steps if step.act is StopAct.SENT)
    assert (sent.other, sent.signal) == (100, 18)
    assert stop.ended_ns == stop.time_ns + 2 * S


def test_who_blocks_it() -> None:
    script = busy()
    script.look(100, at=0, blocked=(SIGTERM,))
    script.signal(100, SIGTERM, at=S)
    assert one(script).process.disposition is Disposition.BLOCKED


def test_a_wait_that_never_returned_fetched_nobody() -> None:
    script = with_children(200)
    script.signal(100, SIGTERM, at=S)
    script.event(100, 100, Call.wait4, 200, flags=EventFlag.ENTERED_ONLY)
    script.exit(100)
    assert StopAct.FETCHED not in acts(one(script))


def test_accepted_meanwhile() -> None:
    script = busy()
    script.signal(100, SIGTERM, at=S)
    accept(script, 2, 9)
    script.exit(100)
    stop = one(script)
    assert (stop.clients.open_count, stop.clients.accepted_count) == (2, 1)
    assert StopAct.ACCEPTED in acts(stop)


def test_a_collector_leaves_no_request_open() -> None:
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7)
    script.signal(100, SIGTERM, at=S)
    script.exit(100)
    assert one(script).clients.running_count == 0


def test_without_packets_nobody_knows_who_was_refused() -> None:
    script = server()
    script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=peer(0))
    script.signal(100, SIGTERM, at=S)
    script.exit(100)
    stop = one(script)
    assert stop.clients.refused_count is None
    assert stop.clients.untold_count == 1


def test_not_more_than_somebody_reads() -> None:
    script = server()
    for number in range(30):
        script.fork(100, 200 + number, at=number * S)
        script.signal(200 + number, SIGTERM, at=number * S + 500 * MS)
        script.exit(200 + number)
    assert len(stops(script.ends(60 * S).session())) == STOP_COUNT


def test_a_channel_between_processes_is_no_client() -> None:
    script = server()
    script.event(100, 100, Call.socketpair, 1, 1, pair=(5, 6))
    script.signal(100, SIGTERM, at=S)
    script.event(100, 100, Call.close, fd=5)
    script.exit(100)
    stop = one(script)
    assert stop.clients.open_count == 0
    assert acts(stop) == [StopAct.SIGNALLED, StopAct.ENDED]
