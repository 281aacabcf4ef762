"""Signals and ends of processes in words."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockscope.model.signals import exit_words, signal_name


@pytest.mark.parametrize(
    ("number", "name"), [(9, "SIGKILL"), (17, "SIGCHLD"), (33, "SIGRT_1"), (0, "signal 0"), (99, "signal 99")]
)
def test_signals_have_names(number: int, name: str) -> None:
    assert signal_name(number) == name


@pytest.mark.parametrize(
    ("status", "told"),
    [(0, "exit 0"), (3 << 8, "exit 3"), (9, "killed by SIGKILL"), (0x86, "killed by SIGABRT, core dumped")],
)
def test_ends_are_told(status: int, told: str) -> None:
    assert exit_words(status) == told


def test_an_end_that_nobody_saw_is_just_that() -> None:
    assert exit_words(None) == "ended"
    assert exit_words(256, exited="exit status") == "exit status 1"


@given(st.integers(0, 0xFFFF).filter(lambda status: status & 0x7F != 0x7F))
def test_ends_agree_with_the_c_library(status: int) -> None:
    told = exit_words(status)
    assert told.startswith("exit") == os.WIFEXITED(status)
    assert ("core dumped" in told) == (os.WIFSIGNALED(status) and os.WCOREDUMP(status))
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in set(signal.Signals) and os.WTERMSIG(status) < 32:
        assert signal.Signals(os.WTERMSIG(status)).name in told
