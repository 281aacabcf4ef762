from __future__ import annotations

from sockscope.analysis.narration.idle import idle_words
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.model.seed import FileKind
from tests.analysis.builders import Script

POLL = ((3, 1, 0),)
MS = 1_000_000


def test_polling_with_its_period() -> None:
    script = Script().process(812, comm="python3")
    for tick in range(5):
        script.event(812, 812, Call.poll, 4096, 1, 500, poll=POLL, at=tick * 500 * MS, took=499 * MS)
    assert idle_words(script.session()) == (
        "python3[812]: poll([fd 3], 500 ms) again and again: wakes every 500 ms to look around",
    )


def test_blocked_without_a_limit() -> None:
    script = Script().process(33, comm="nginx", tids=(33, 34, 35))
    script.event(33, 33, Call.epoll_wait, 4096, 512, -1, fd=5, flags=EventFlag.ENTERED_ONLY)
    script.event(33, 34, Call.accept4, fd=3, flags=EventFlag.ENTERED_ONLY)
    script.event(33, 35, Call.accept4, fd=3, flags=EventFlag.ENTERED_ONLY)
    assert idle_words(script.session()) == (
        "nginx[33] (2 threads): blocked in accept4(3)",
        "nginx[33]: blocked in epoll_wait(5) without a time limit",
    )


def test_a_limit_not_reached() -> None:
    script = Script().process(33, comm="redis")
    script.event(33, 33, Call.epoll_wait, 4096, 512, 60000, fd=5, flags=EventFlag.ENTERED_ONLY)
    assert idle_words(script.session()) == ("redis[33]: blocked in epoll_wait(5) for up to 60 s",)


def test_looking_without_waiting_is_no_rest() -> None:
    script = Script().process(33)
    for _ in range(5):
        script.event(33, 33, Call.epoll_wait, 4096, 512, 0, fd=5)
    assert idle_words(script.session()) == ()
    assert idle_words(Script().session()) == ()


def test_the_period_is_that_of_rest_not_of_work() -> None:
    script = Script().process(812, comm="python3")
    at = 0
    for _ in range(4):
        for _ in range(2):
            script.event(812, 812, Call.poll, 4096, 1, 500, poll=POLL, at=at * MS, took=499 * MS)
            at += 500
        script.event(812, 812, Call.accept4, fd=3, ret=7, at=at * MS)
        at += 900
    assert idle_words(script.session()) == (
        "python3[812]: poll([fd 3], 500 ms) again and again: wakes every 500 ms to look around",
    )


def test_a_timer_wakes_it() -> None:
    script = Script().process(33, comm="ticker").seed_fd(33, 5, kind=FileKind.EPOLL)
    script.seed_fd(33, 6, kind=FileKind.TIMERFD)
    script.seed_epoll(33, 5, 6, 1, data=0x7F0000000010)
    for tick in range(5):
        script.event(33, 33, Call.epoll_wait, 4096, 8, -1, fd=5, ret=1, epoll=[(1, 0x7F0000000010)], at=tick * 250 * MS)
        script.event(33, 33, Call.read, 4096, 8, fd=6, ret=8)
    assert idle_words(script.session()) == (
        "ticker[33]: epoll_wait(5) again and again: its timer (timerfd) wakes it every 250 ms",
    )


def test_threads_that_wait_for_work() -> None:
    script = Script().process(33, comm="pool", tids=(33, 34, 35))
    script.event(33, 33, Call.accept4, fd=3, flags=EventFlag.ENTERED_ONLY)
    lines = idle_words(script.session())
    assert lines[0].startswith("pool[33] (2 threads): no watched call")
    assert lines[1] == "pool[33]: blocked in accept4(3)"


def test_many_loops() -> None:
    script = Script().process(33, comm="loops", tids=range(33, 41))
    for tid in range(33, 41):
        script.event(33, tid, Call.epoll_wait, 4096, 512, -1, fd=tid, flags=EventFlag.ENTERED_ONLY)
    assert idle_words(script.session())[-1] == "loops[33]: and 5 more threads, each in a wait of its own"
