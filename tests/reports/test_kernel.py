"""What the kernel told, in every report."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import jsonschema
from rich.console import Console

from sockscope.reports.format import coverage_lines
from sockscope.reports.html_choice import choose
from sockscope.reports.html_data import page_data
from sockscope.reports.json import render_json, schema_text
from sockscope.reports.terminal_timeline import whole
from tests.reports.example import example_report
from tests.reports.kernel_example import heard_report

MS = 1_000_000


def test_json_has_exact_changes_and_keeps_the_schema() -> None:
    document = json.loads(render_json(heard_report()))
    jsonschema.Draft202012Validator(json.loads(schema_text())).validate(document)
    first, second = document["connections"]
    assert [(c["from"], c["to"]) for c in first["state_changes"]] == [
        ("LISTEN", "SYN_RECV"),
        ("SYN_RECV", "ESTABLISHED"),
        ("ESTABLISHED", "CLOSE_WAIT"),
    ]
    assert first["state_changes"][2]["time_ns"] == 900 * MS + 4000
    assert (first["retransmits"], first["resets"]) == (1, [{"time_ns": 9500 * MS, "sent": False}])
    assert (second["state_changes"], second["retransmits"], second["resets"]) == ([], 0, [])
    assert (first["io_uring_events"], second["io_uring_events"]) == (0, 2)
    assert document["coverage"]["kernel"] == {"state_changes": 5, "retransmits": 1, "resets": 1, "unassigned": 2}
    assert "kernel event" not in document["coverage"]["unassigned"]


def test_json_says_null_where_the_kernel_was_not_heard() -> None:
    document = json.loads(render_json(example_report()))
    assert document["coverage"]["kernel"]["state_changes"] == 0
    assert {c["state_changes"] for c in document["connections"]} == {None}


def test_the_terminal_tells_changes_in_words() -> None:
    report = heard_report()
    console = Console(file=io.StringIO(), width=160, force_terminal=False)
    for ascii_only in (False, True):
        lines = whole(report, report.connections[0], limit=200, console=console, ascii_only=ascii_only)
        text = "\n".join(line.plain for line in lines)
        arrow = "->" if ascii_only else "→"
        assert f"kernel: ESTABLISHED {arrow} CLOSE_WAIT" in text
        assert "the peer's FIN arrived" in text
        assert "RST came in" in text
        assert "a segment was sent again" in text
        # The snapshot at 0.5 s shows what is known.
        assert "recv-q 0 send-q 0" not in text


def test_the_coverage_says_how_much_was_told() -> None:
    report = heard_report()
    (line,) = [line for line in coverage_lines(report) if line.name == "kernel"]
    assert line.text == "told 5 state changes, 1 retransmission, 1 reset as they happened; 2 of other sockets"
    assert not [line for line in coverage_lines(example_report()) if line.name == "kernel"]


def test_the_page_knows_states_marks_and_what_is_exact() -> None:
    report = heard_report()
    data, _ = page_data(report, choose(report))
    lanes, names, bits = (json.loads(data["timelines"][0])[column] for column in (2, 4, 7))
    told = [(data["strings"][name], bit & 24) for lane, name, bit in zip(lanes, names, bits, strict=True) if lane == 1]
    assert told == [("SYN_RECV", 8), ("ESTABLISHED", 8), ("retransmit", 24), ("CLOSE_WAIT", 8), ("RST", 24)]
    silent = replace(report, kernel_stories=lambda connection: heard_report().kernel_stories(1))
    assert json.loads(render_json(silent))["connections"][0]["state_changes"] == []
