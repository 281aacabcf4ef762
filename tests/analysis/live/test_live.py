from __future__ import annotations

import pytest

from sockscope.analysis.live.live import LiveNarrator
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag, Events
from sockscope.model.live import LineKind, LiveBatch, LiveLine
from sockscope.model.sockaddr import Family
from sockscope.model.tcp import TcpState
from tests.analysis.builders import START_NS, Script, address, unix_address

CLIENT = address("127.0.0.1", 40112)
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
FOREVER = 1 << 62
MS = 1_000_000


def flask(connections: int = 1) -> Script:
    script = Script().process(77, comm="python3").seed_fd(77, 3, inode=11)
    for _ in range(3):
        script.event(77, 77, Call.poll, 4096, 1, 500, ret=0, poll=[(3, 1, 0)], took=500 * MS)
        script.now_ns += 500 * MS
    for number in range(connections):
        tid = 812 + number
        script.event(77, 77, Call.poll, 4096, 1, 500, ret=1, poll=[(3, 1, 1)])
        peer = address("127.0.0.1", 40112 + number)
        script.event(77, 77, Call.accept4, 1, 1, 0, fd=3, ret=7, sockaddr=peer)
        script.thread(77, tid)
        script.event(77, tid, Call.recvfrom, 4096, 8192, 0, fd=7, ret=len(REQUEST), payload=REQUEST)
        script.event(77, tid, Call.write, 4096, 5, fd=2, ret=5, payload=b"log\r\n")
        script.event(77, tid, Call.sendto, 4096, 17, 0, fd=7, ret=17, payload=b"HTTP/1.1 200 OK\r\n")
        script.event(77, tid, Call.close, fd=7)
    return script


def told(lines: tuple[LiveLine, ...]) -> list[tuple[int, str, str]]:
    return [(line.tid, line.connection, line.text.split("(")[0]) for line in lines]


def test_a_request_as_it_comes() -> None:
    script = flask()
    lines = LiveNarrator(script.seed()).feed(script.events(), FOREVER).lines
    peer = "127.0.0.1:40112"
    assert told(lines) == [
        (77, "", "poll"),
        (77, "", "poll"),
        (77, "", "poll"),
        (77, peer, "accept4"),
        (77, "", "new thread 812"),
        (812, peer, "recvfrom"),
        (812, peer, "sendto"),
        (812, peer, "close"),
    ]
    assert (lines[0].repeated, lines[1].repeated, lines[2].repeated) == (0, 2, 0)
    assert lines[1].period_ns == 501 * MS
    assert [line.kind for line in lines[3:6]] == [LineKind.CONNECTION, LineKind.TASK, LineKind.CONNECTION]
    assert lines[5].words == f"read {len(REQUEST)} bytes: request GET / HTTP/1.1"
    assert lines[6].words == "sent 17 bytes: status line 200 OK"
    assert {line.comm for line in lines} == {"python3"}


def test_one_number_many_connections_in_one_batch() -> None:
    script = flask(connections=5)
    lines = LiveNarrator(script.seed()).feed(script.events(), FOREVER).lines
    reads = [line for line in lines if line.text.startswith("recvfrom")]
    assert [line.connection for line in reads] == [f"127.0.0.1:{40112 + n}" for n in range(5)]


def pieces(events: Events, sizes: list[int]) -> list[Events]:
    at = 0
    found = []
    for size in sizes:
        found.append(Events(records=events.records[at : at + size].copy(), blob=events.blob))
        at += size
    return found


@pytest.mark.parametrize("size", [1, 3, 7])
def test_in_pieces_as_at_once(size: int) -> None:
    script = flask(connections=3)
    events = script.events()
    # Else the first accept shows what the descriptor is, which a whole batch knows before its first line.
    whole = LiveNarrator(script.seed(), listeners=[11])
    expected = whole.feed(events, FOREVER).lines + whole.finish().lines
    narrator = LiveNarrator(script.seed(), listeners=[11])
    lines: tuple[LiveLine, ...] = ()
    for piece in pieces(events, [size] * (len(events) // size + 1)):
        lines += narrator.feed(piece, FOREVER).lines
    assert lines + narrator.finish().lines == expected


def test_what_is_not_complete_is_held_back() -> None:
    script = flask()
    events = script.events()
    late = Events(records=events.records[::-1].copy(), blob=events.blob)
    narrator = LiveNarrator(script.seed())
    early = narrator.feed(late, START_NS + 1).lines
    assert early == ()
    lines = narrator.feed(Events.empty(), FOREVER).lines
    assert told(lines) == told(LiveNarrator(script.seed()).feed(events, FOREVER).lines)


def test_more_than_there_is_room_for_is_counted() -> None:
    script = flask(connections=50)
    batch = LiveNarrator(script.seed()).feed(script.events(), FOREVER, max_lines=10)
    assert len(batch.lines) in (10, 11)
    assert batch.left_out_count > 200


def test_connections_of_before_the_attach_are_named_by_their_inode() -> None:
    script = Script().process(77).seed_fd(77, 9, inode=500)
    script.event(77, 77, Call.recvfrom, 4096, 10, 0, fd=9, ret=2, payload=b"hi")
    (line,) = LiveNarrator(script.seed(), {500: "10.0.0.9:1234"}).feed(script.events(), FOREVER).lines
    assert (line.connection, line.kind) == ("10.0.0.9:1234", LineKind.CONNECTION)


def test_idle_is_told_again_now_and_then() -> None:
    script = Script().process(77)
    for tick in range(45):
        script.event(77, 77, Call.poll, 4096, 1, 500, poll=[(3, 1, 0)], at=tick * 500 * MS, took=500 * MS)
    narrator = LiveNarrator(script.seed())
    lines = narrator.feed(script.events(), FOREVER).lines + narrator.finish().lines
    assert [line.repeated for line in lines] == [0, 20, 20, 4]
    assert {line.period_ns for line in lines[1:]} == {500 * MS}


def test_nothing() -> None:
    narrator = LiveNarrator(Script().seed())
    assert narrator.feed(Events.empty(), FOREVER) == LiveBatch()
    assert narrator.finish() == LiveBatch()


def test_a_call_under_way_before_the_attach_is_told_at_the_beginning() -> None:
    script = Script().process(77).seed_fd(77, 3, inode=11)
    script.event(77, 77, Call.accept4, 0, 0, 0, fd=3, ret=7, sockaddr=CLIENT)
    script.event(77, 78, Call.accept4, 0, 0, 0, fd=3, flags=EventFlag.ENTERED_ONLY)
    events = script.events()
    events.records["enter_ns"][1] = events.records["exit_ns"][1] = -1
    lines = LiveNarrator(script.seed()).feed(events, FOREVER).lines
    assert {line.time_ns >= START_NS for line in lines} == {True}


def heard() -> Script:
    """A client that is served, leaves, and resets; the kernel tells of its end and of the client's own."""
    server, client = address("127.0.0.1", 80), address("127.0.0.1", 40112)
    script = Script().process(77, comm="python3").seed_fd(77, 3, inode=11)
    script.states(server, client, TcpState.LISTEN, TcpState.SYN_RECV, TcpState.ESTABLISHED, at=9 * MS)
    script.event(77, 77, Call.accept4, 1, 1, 0, fd=3, ret=7, sockaddr=client, at=11 * MS)
    script.states(client, server, TcpState.ESTABLISHED, TcpState.FIN_WAIT1, TcpState.FIN_WAIT2, at=20 * MS)
    script.states(server, client, TcpState.ESTABLISHED, TcpState.CLOSE_WAIT, at=20 * MS)
    script.event(77, 77, Call.recvfrom, 1, 100, fd=7, ret=0, at=19 * MS, took=2 * MS)
    for turn in range(4):
        script.kernel(Call.tcp_retransmit, server, client, TcpState.CLOSE_WAIT, at=(30 + 400 * turn) * MS)
    script.kernel(Call.tcp_reset_received, server, client, TcpState.CLOSE_WAIT, at=2000 * MS)
    script.kernel(Call.tcp_reset_received, client, server, TcpState.ESTABLISHED, at=2000 * MS)
    return script


def test_what_the_kernel_does_to_a_shown_connection_is_told_where_it_matters() -> None:
    script = heard()
    lines = LiveNarrator(script.seed()).feed(script.events(), FOREVER).lines
    assert [(line.comm, line.connection, line.text.split("(", 1)[0]) for line in lines] == [
        ("python3", "127.0.0.1:40112", "accept4"),
        ("kernel", "127.0.0.1:40112", "peer closed "),
        ("python3", "127.0.0.1:40112", "recvfrom"),
        ("kernel", "127.0.0.1:40112", "a segment was sent again "),
        ("kernel", "127.0.0.1:40112", "a segment was sent again "),
        ("kernel", "127.0.0.1:40112", "RST came in "),
    ]
    assert lines[1].text == "peer closed (FIN) → CLOSE_WAIT"
    assert {line.kind for line in lines} == {LineKind.CONNECTION, LineKind.KERNEL}
    assert {line.tgid for line in lines} == {0, 77}


def test_kernel_lines_come_in_pieces_as_at_once() -> None:
    script = heard()
    events = script.events()
    narrator = LiveNarrator(script.seed())
    texts = [line.text for line in narrator.feed(events, START_NS + 20 * MS).lines]
    assert texts[-1] == "peer closed (FIN) → CLOSE_WAIT"
    texts += [line.text for line in narrator.feed(Events.empty(), FOREVER).lines]
    assert texts == [line.text for line in LiveNarrator(script.seed()).feed(events, FOREVER).lines]


def test_a_wait_says_who_it_was_woken_for() -> None:
    script = flask()
    told = LiveNarrator(script.seed(), listeners=[11]).feed(script.events(), FOREVER).lines
    woken = [line.words for line in told if line.words.startswith("woken")]
    assert woken[0] == "woken: a client waits to be accepted (listener, descriptor 3)"


def test_a_connection_that_is_handed_on_keeps_its_name() -> None:
    script = Script().process(100, comm="master").process(101, comm="worker")
    script.seed_fd(100, 3, inode=11).seed_fd(100, 5, inode=50).seed_fd(101, 6, inode=60)
    peer = address("127.0.0.1", 40112)
    script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=peer)
    script.event(100, 100, Call.sendmsg, fd=5, ret=1, payload=b"c", control=[7])
    script.event(100, 100, Call.close, fd=7)
    script.event(101, 101, Call.recvmsg, fd=6, ret=1, payload=b"c", control=[9])
    script.event(101, 101, Call.close, fd=9)
    told = LiveNarrator(script.seed()).feed(script.events(), FOREVER).lines
    assert {line.connection for line in told} == {str(peer)}
    assert [line.words for line in told[1:]] == [
        "hands this connection on (SCM_RIGHTS) to worker[101], which has it as fd 9",
        "closes its copy: the message that carries the connection keeps it open",
        "receives this connection as fd 9 from master[100] (fd 7 there)",
        "closes the last copy: only now the connection ends (FIN)",
    ]


def test_clients_of_a_unix_socket_are_named_by_it() -> None:
    """Seen from its bind on, and there before."""
    script = Script().process(77).seed_fd(77, 9, inode=90)
    script.event(77, 77, Call.socket, Family.UNIX, 1, 0, ret=3)
    script.event(77, 77, Call.bind, fd=3, sockaddr=unix_address("/run/new.sock"))
    script.event(77, 77, Call.listen, 16, fd=3)
    for listener, fd in ((3, 4), (9, 5)):
        script.event(77, 77, Call.accept4, fd=listener, ret=fd, sockaddr=b"\x01\x00")
        script.event(77, 77, Call.recvfrom, 4096, 100, 0, fd=fd, ret=1, payload=b"x")
    narrator = LiveNarrator(script.seed(), {90: "client of @old"})
    lines = narrator.feed(script.events(), FOREVER).lines
    assert [line.connection for line in lines if line.text.startswith("recvfrom")] == [
        "client of /run/new.sock",
        "client of @old",
    ]
