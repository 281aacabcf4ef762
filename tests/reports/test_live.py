from __future__ import annotations

import io

from rich.console import Console

from sockscope.model.live import LineKind, LiveBatch, LiveLine
from sockscope.reports.live import print_batch


def line(**changes: object) -> LiveLine:
    values: dict[str, object] = {
        "time_ns": 1_500_000_000,
        "duration_ns": 2_000_000,
        "tgid": 77,
        "tid": 812,
        "comm": "python3",
        "connection": "127.0.0.1:40112",
        "text": 'recvfrom(7, "GET / HTTP/1.1"..., 8192, 0) = 78',
        "words": "read 78 bytes: request GET /",
        "kind": LineKind.CONNECTION,
    }
    return LiveLine(**(values | changes))  # type: ignore[arg-type]


def printed(*lines: LiveLine, left_out: int = 0, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, color_system="standard" if terminal else None)
    print_batch(LiveBatch(lines=lines, left_out_count=left_out), console=console, started_ns=1_000_000_000)
    return out.getvalue()


def test_a_line() -> None:
    assert printed(line()) == (
        '  +0.500000 python3[77/812] 127.0.0.1:40112  recvfrom(7, "GET / HTTP/1.1"..., 8192, 0) = 78 <2 ms>'
        "  # read 78 bytes: request GET /\n"
    )


def test_a_repetition() -> None:
    shown = printed(
        line(tid=77, connection="", text="poll([], 0, 500) = 0 (timeout)", repeated=12, period_ns=500_000_000)
    )
    assert shown.endswith("python3[77]  poll([], 0, 500) = 0 (timeout) <2 ms>  ×12 more, every 500 ms\n")


def test_what_was_left_out() -> None:
    assert "… 1,234 events more" in printed(left_out=1234)
    assert printed() == ""


def test_neither_control_sequences_nor_markup_of_the_target() -> None:
    shown = printed(line(text="[bold]x[/bold] \x1b[2J", words="\u202e", comm="[red]\x07"), terminal=True)
    assert "[bold]x[/bold]" in shown
    assert "\\x1b[2J" in shown
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown


def test_a_connection_keeps_its_colour() -> None:
    first, second = printed(line(), line(), terminal=True).splitlines()
    assert first == second
    assert "\x1b[" in first
