"""The guardian's book: masks by number, tasks that come and go."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from sockscope.sources.syscalls.ptrace import guardian


@given(st.sets(st.integers(0, 1055), min_size=1), st.integers(0, 1000))
def test_masks_survive_the_pipe(cpus: set[int], number: int) -> None:
    book = guardian.Book()
    book.read(guardian.encode(guardian.MASK, number, 0, cpus))
    assert book.masks == {number: cpus}


def test_tasks_come_and_go() -> None:
    book = guardian.Book()
    book.read(guardian.encode(guardian.NEW, 7, 1))
    book.read(guardian.encode(guardian.NEW, 8, 1))
    book.read(guardian.encode(guardian.GONE, 7, -1))
    book.read(guardian.encode(guardian.GONE, 9, -1))
    assert book.tasks == {8: 1}


def test_messages_do_not_mix_in_the_pipe() -> None:
    assert guardian.RECORD.size <= 512  # _POSIX_PIPE_BUF


def test_only_what_is_still_pinned_is_restored() -> None:
    """A mask that the program has chosen itself meanwhile is left alone; so are tasks that are gone."""
    book = guardian.Book()
    before = os.sched_getaffinity(0)
    elsewhere = max(before) + 1
    book.read(guardian.encode(guardian.MASK, 0, 0, {min(before)}))
    book.read(guardian.encode(guardian.NEW, os.getpid(), 0))
    book.read(guardian.encode(guardian.NEW, 4194303, 0))
    guardian.restore(book, elsewhere)
    assert os.sched_getaffinity(0) == before
