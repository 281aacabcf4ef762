"""poll, select and epoll, in the notations of strace 4 to 7."""

from __future__ import annotations

import struct

import pytest

from sockscope.model.events import EventFlag, Section
from tests.sources.syscalls.strace_log.encoding import of, section, sections


def pollfds(*entries: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<iHH", *entry) for entry in entries)


@pytest.mark.parametrize(
    ("line", "raw"),
    [
        ("poll([{fd=3, events=POLLIN}], 1, 5) = 1 ([{fd=3, revents=POLLIN|POLLHUP}])", pollfds((3, 1, 0x11))),
        ("poll([{fd=3<TCP:[1->2]>, events=POLLIN}, {fd=-1}], 2, 5) = 0 (Timeout)", pollfds((3, 1, 0), (-1, 0, 0))),
        (
            (
                "poll([{fd=3, events=POLLIN}, {fd=3, events=POLLOUT}, {fd=4, events=0}], 3, 5) = 2 "
                "([{fd=3, revents=POLLIN}, {fd=3, revents=POLLOUT}])"
            ),
            pollfds((3, 1, 1), (3, 4, 4), (4, 0, 0)),
        ),
        ("poll([{fd=3, events=POLLIN}], 1, 5) = -1 EINTR (Interrupted system call)", pollfds((3, 1, 0))),
        ("poll([{fd=3, events=POLLIN}], 1, -1) = ?", pollfds((3, 1, 0))),
        (
            "ppoll([{fd=3, events=0x1 /* POLLIN */}], 1, {5, 6}, NULL, 8) = 1 ([{fd=3, revents=0x1}], left {4, 1})",
            pollfds((3, 1, 1)),
        ),
        ("poll(0x7ffe, 3, 5) = 1", None),
        ("poll(NULL, 0, 5) = 0 (Timeout)", None),
    ],
)
def test_poll(line: str, raw: bytes | None) -> None:
    assert section(line, Section.POLLFDS) == raw


def test_a_cut_poll_says_so() -> None:
    encoded = of("poll([{fd=3, events=POLLIN}, ...], 9, 5) = 0 (Timeout)")
    assert encoded.flags == EventFlag.TRUNCATED


def sets(*bits: tuple[int, ...]) -> bytes:
    return b"".join(sum(1 << bit for bit in each).to_bytes(8, "little") for each in bits)


@pytest.mark.parametrize(
    ("line", "before", "after"),
    [
        (
            "select(6, [3 5], [4], NULL, {5, 6}) = 2 (in [3], out [4], left {4, 1})",
            ((3, 5), (4,), ()),
            ((3,), (4,), ()),
        ),
        ("select(6, [3 5], [], [4], NULL) = 1 (except [4])", ((3, 5), (), (4,)), ((), (), (4,))),
        (
            "pselect6(6, [3<pipe:[1]>], NULL, NULL, {tv_sec=1, tv_nsec=2}, {NULL, 8}) = 0 (Timeout)",
            ((3,), (), ()),
            ((), (), ()),
        ),
        ("select(6, [3], NULL, NULL, NULL) = -1 EBADF (Bad file descriptor)", ((3,), (), ()), None),
        ("select(6, [3], NULL, NULL, NULL) = ?", ((3,), (), ()), None),
        ("select(6, 0x70, NULL, NULL, 0x50) = 1", None, None),
    ],
)
def test_select(
    line: str, before: tuple[tuple[int, ...], ...] | None, after: tuple[tuple[int, ...], ...] | None
) -> None:
    assert section(line, Section.FDSETS_IN) == (None if before is None else sets(*before))
    assert section(line, Section.FDSETS) == (None if after is None else sets(*after))


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        ("select(0, NULL, NULL, NULL, {5, 6}) = 0 (Timeout)", (5, 6)),
        ("select(0, NULL, NULL, NULL, {tv_sec=5, tv_usec=6}) = 0 (Timeout)", (5, 6)),
        ("ppoll(NULL, 0, {tv_sec=5, tv_nsec=6}, NULL, 8) = 0 (Timeout)", (5, 6)),
        ("epoll_pwait2(4, [], 8, {tv_sec=0, tv_nsec=1000}, NULL, 8) = 0", (0, 1000)),
        ("ppoll(NULL, 0, NULL, NULL, 8) = 0 (Timeout)", None),
    ],
)
def test_timeouts(line: str, seconds: tuple[int, int] | None) -> None:
    assert section(line, Section.TIMEOUT) == (None if seconds is None else struct.pack("<qq", *seconds))


@pytest.mark.parametrize("result", ["2 (in [3]])", "2 (in [3<pipe:[1]>]])", "2 (in [3]], left {4, 1})"])
def test_select_that_found_more_than_is_printed(result: str) -> None:
    encoded = of(f"select(6, [3 5], NULL, NULL, {{5, 6}}) = {result}")
    assert sections(encoded)[Section.FDSETS] == sets((3,), (), ())
    assert encoded.flags == EventFlag.TRUNCATED


DATA = 0x1234567890ABCDEF


@pytest.mark.parametrize(
    "event",
    [
        f"{{events=EPOLLIN|EPOLLET, data={{u32={DATA & 0xFFFFFFFF}, u64={DATA}}}}}",
        f"{{EPOLLIN|EPOLLET, {{u32={DATA & 0xFFFFFFFF}, u64={DATA}}}}}",
        f"{{events=0x80000001, data={DATA:#x}}}",
        f"{{events=0x80000001 /* EPOLLIN|EPOLLET */, data={{ptr={DATA:#x}, u64={DATA}}}}}",
    ],
)
def test_epoll_events(event: str) -> None:
    raw = struct.pack("<IQ", 0x80000001, DATA)
    assert section(f"epoll_ctl(4, EPOLL_CTL_ADD, 5, {event}) = 0", Section.EPOLL_EVENTS) == raw
    assert section(f"epoll_wait(4, [{event}, {event}], 9, -1) = 2", Section.EPOLL_EVENTS) == raw * 2
    assert section(f"epoll_wait(4, {{{event}}}, 9, -1) = 1", Section.EPOLL_EVENTS) == raw
    cut = of(f"epoll_pwait(4, [{event}, ...], 9, -1, NULL, 8) = 3")
    assert cut.flags == EventFlag.TRUNCATED


def test_epoll_without_events() -> None:
    assert of("epoll_wait(4, [], 9, 0) = 0").blob == b""
    assert of("epoll_wait(4, {}, 9, 0) = 0").blob == b""
    assert of("epoll_ctl(4, EPOLL_CTL_DEL, 5, 0x7ffe) = 0").blob == b""
