from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from sockscope.sources.sockets import open_files
from sockscope.sources.sockets.open_files import KcmpRefusedError, Slot, group_open_files, kcmp_files


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def slots(*fds: int) -> list[Slot]:
    return [Slot(row=row, tgid=os.getpid(), fd=fd, likeness=(fd,)) for row, fd in enumerate(fds)]


def needs_kcmp() -> None:
    try:
        kcmp_files(os.getpid(), 0, os.getpid(), 0)
    except KcmpRefusedError as error:
        pytest.skip(f"kcmp is refused here: {os.strerror(error.args[0])}")


def test_a_dup_is_the_same_and_a_second_end_is_not(pipe: tuple[int, int]) -> None:
    needs_kcmp()
    reading, writing = pipe
    copy = os.dup(reading)
    try:
        groups = group_open_files(slots(reading, writing, copy))
        assert sorted(map(sorted, groups)) == [[0, 2], [1]]
    finally:
        os.close(copy)


def test_many_are_grouped_in_n_log_n(pipe: tuple[int, int]) -> None:
    needs_kcmp()
    copies = [os.dup(pipe[n % 2]) for n in range(64)]
    try:
        groups = group_open_files(slots(*copies))
        assert sorted(map(sorted, groups)) == [list(range(0, 64, 2)), list(range(1, 64, 2))]
    finally:
        for fd in copies:
            os.close(fd)


def test_where_kcmp_is_refused_the_likeness_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: int) -> int:
        raise KcmpRefusedError(1)

    monkeypatch.setattr(open_files, "kcmp_files", refused)
    alike = [Slot(row=0, tgid=1, fd=5, likeness=(5,)), Slot(row=1, tgid=2, fd=5, likeness=(5,))]
    other = Slot(row=2, tgid=2, fd=6, likeness=(6,))
    assert group_open_files([*alike, other]) == [[0, 1], [2]]


def test_a_descriptor_that_is_gone_is_refused() -> None:
    needs_kcmp()
    with pytest.raises(KcmpRefusedError):
        kcmp_files(os.getpid(), 0, os.getpid(), 1 << 20)
