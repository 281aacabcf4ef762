"""What the terminal shows, kept as snapshots: made anew with SOCKSCOPE_SNAPSHOTS=write."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from sockscope.model.report import Report
from sockscope.reports.escape import safe
from sockscope.reports.shortened import short
from sockscope.reports.terminal import print_report, print_timeline
from tests.reports.example import COLOUR, SCRIPT, empty_report, example_report, sound_report

SNAPSHOTS = Path(__file__).parent / "snapshots"
REPORTS = {
    "faulty": example_report(),
    "no-packets": example_report(packets=False),
    "many": example_report(2000),
    "sound": sound_report(),
    "empty": empty_report(),
}


def printed(report: Report, width: int, *, verbose: bool = False, colour: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colour, color_system="standard" if colour else None)
    print_report(report, console=console, verbose=verbose)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", sorted(REPORTS))
def test_terminal_text(name: str, width: int) -> None:
    text = printed(REPORTS[name], width)
    kept = SNAPSHOTS / f"terminal-{name}-{width}.txt"
    if os.environ.get("SOCKSCOPE_SNAPSHOTS") == "write":
        kept.write_text(text)
    assert text == kept.read_text()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_terminal_keeps_to_its_width_and_cuts_nothing(width: int) -> None:
    text = printed(example_report(), width)
    assert max(map(len, text.splitlines())) <= width
    joined = "".join(text.split())
    for finding in example_report().findings:
        assert "".join(finding.remedy.split()) in joined
    assert "…" not in text


def test_terminal_says_what_to_do_in_the_first_lines() -> None:
    first = printed(example_report(), 80).splitlines()[:15]
    assert first[2].startswith("ERROR  fin-withheld")
    assert any(line.strip().startswith("Held by: ") for line in first)
    assert any(line.strip().startswith("Mend: ") for line in first)


@pytest.mark.parametrize("colour", [False, True])
def test_terminal_prints_hostile_strings_as_text(colour: bool) -> None:
    text = printed(example_report(), 200, colour=colour, verbose=True)
    assert SCRIPT in text
    assert "[bold]loud[/bold]" in text
    assert COLOUR not in text
    assert r"\x1b[31mred\x1b[0m" in text
    assert ("\x1b" in text) is colour


def test_terminal_has_no_colour_where_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    print_report(example_report(), console=Console(file=file, width=80, force_terminal=True))
    assert "\x1b[31m" not in file.getvalue()
    assert "\x1b[1;31m" not in file.getvalue()


def test_terminal_without_utf8() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    print_report(example_report(), console=Console(file=file, width=80))
    file.flush()
    assert b"=>" in raw.getvalue()
    assert b"Mend: " in raw.getvalue()


def test_terminal_verbose_tells_the_whole_timeline() -> None:
    short, long = (printed(example_report(), 120, verbose=v) for v in (False, True))
    assert short.count("(Timeout)") < long.count("(Timeout)") == 12
    assert "⋮" in short
    assert "⋮" not in long


def test_terminal_marks_the_primary_evidence() -> None:
    lines = [line for line in printed(example_report(), 120).splitlines() if "▶" in line]
    assert len(lines) == 3
    assert 'recvfrom(7, "", 1024, 0) = 0 — the last read; told: ' in lines[0]


def test_terminal_with_ten_thousand_connections_stays_short() -> None:
    text = printed(example_report(10_000), 80)
    assert len(text[text.index("10,000 connections at 127.0.0.1:18135") :].splitlines()) < 80


def timeline(report: Report, connection: int, width: int, *, limit: int = 1000) -> list[str]:
    file = io.StringIO()
    print_timeline(report, connection, console=Console(file=file, width=width), limit=limit)
    return [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_one_connection_is_told_whole(width: int) -> None:
    report = example_report()
    lines = timeline(report, 0, width)
    assert max(map(len, lines)) <= width
    joined = "".join("".join(lines).split())
    for item in report.timelines(0, limit=1000):
        assert "".join(safe(item.words).split()) in joined
    assert "⋮" not in joined
    assert "▶" in joined
    assert lines[0].startswith("#0 127.0.0.1:18135 ← ")
    if width == 200:
        assert lines[0].endswith("tcp  CLOSE_WAIT")
        assert lines[1] == "  held by: python3[813] fd 7"
        assert any(line.startswith("  ERROR  fin-withheld  Another process keeps") for line in lines)


def test_one_connection_hides_no_control_characters_and_keeps_markup_as_text() -> None:
    joined = "\n".join(timeline(example_report(), 0, 200))
    assert SCRIPT in joined
    assert "[bold]loud[/bold]" in joined
    assert COLOUR not in joined
    assert r"\x1b[31mred\x1b[0m" in joined


def test_one_connection_without_utf8() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    print_timeline(example_report(), 0, console=Console(file=file, width=80), limit=100)
    file.flush()
    assert b"=>" in raw.getvalue()


def test_addresses_as_people_write_them() -> None:
    v4 = 'accept4(4, {sa_family=AF_INET, sin_port=htons(42126), sin_addr="127.0.0.1"}, SOCK_CLOEXEC) = 5'
    v6 = 'connect(4, {sa_family=AF_INET6, sin6_port=htons(80), sin6_addr="::1", sin6_flowinfo=0, sin6_scope_id=2}) = 0'
    said = r'sendto(4, "{sa_family=AF_INET, sin_port=htons(1), sin_addr=\"1.1.1.1\"}", 55, 0) = 55'
    told = "epoll_wait(3, [{EPOLLIN, fd/data=5, u64=0x7f5800000005}], 3, 200) = 1"
    assert short(v4) == "accept4(4, {127.0.0.1:42126}, SOCK_CLOEXEC) = 5"
    assert short(v6) == "connect(4, {[::1]:80}) = 0"
    assert short(said) == said
    assert short(told) == "epoll_wait(3, [{EPOLLIN, fd/data=5}], 3, 200) = 1"
    zeros, dashes = r"\0" * 32, r"\"" + "-" * 32 + r"\""
    assert short(f'sendto(4, "{zeros}"..., 2097152, 0) = 2097152') == r'sendto(4, "\0\0\0…"..., 2097152, 0) = 2097152'
    assert short(f'recvfrom(4, "{dashes}", 99, 0) = 34') == f'recvfrom(4, "{dashes}", 99, 0) = 34'
