"""The line on a terminal that says how far it is."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from sockscope.cli import progress
from sockscope.cli.progress import Line, told


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called by the test itself: pytest changes standard error between a fixture and its test."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_AFTER_S", 0.0)
    monkeypatch.setattr(progress, "_EVERY_S", 0.0)


def test_one_line_is_written_over_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    line = Line()
    line.put("one")
    line.put("two")
    line.clear()
    line.clear()
    assert terminal.getvalue() == "\r\x1b[Ksockscope: one\r\x1b[Ksockscope: two\r\x1b[K"


def test_what_is_not_there_is_not_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    Line().clear()
    assert terminal.getvalue() == ""


@pytest.mark.usefixtures("at_once")
def test_nothing_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    line = Line()
    line.put("one")
    line.show("reading", 1, 2)
    line.clear()
    assert capsys.readouterr().err == ""


def test_what_takes_no_time_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    told(Path("t.pcapng"))("packets", 1, 2)
    assert terminal.getvalue() == ""


@pytest.mark.usefixtures("at_once")
def test_how_far_a_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    show = told(Path("some/t.pcapng"))
    show("packets", 1, 4)
    show("packets", 4, 4)
    assert terminal.getvalue() == "\r\x1b[Ksockscope: writing t.pcapng: packets: 25 %\r\x1b[K"


@pytest.mark.usefixtures("at_once")
def test_where_the_whole_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    Line().show("reading", 7, 0)
    assert terminal.getvalue() == "\r\x1b[Ksockscope: reading: 7"
