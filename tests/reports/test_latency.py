"""Where the time went, in every report: the numbers, what is not known, and hostile names as text."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from sockscope.reports.html import render_html
from sockscope.reports.html_choice import choose
from sockscope.reports.html_data import page_data
from sockscope.reports.json import render_json
from sockscope.reports.latency_words import reservation, rows
from sockscope.reports.terminal import print_report
from tests.reports.example import COLOUR, SCRIPT, empty_report, example_report
from tests.reports.latency_example import START_NS, busy_server, quiet_server


def test_json_has_percentiles_or_all_durations() -> None:
    busy, quiet = json.loads(render_json(example_report()))["latency"]
    thinking = next(one for one in busy["phases"] if one["phase"] == "read to write")
    assert (thinking["place"], thinking["count"], thinking["durations_ns"]) == ("program", 1204, None)
    assert [thinking[name] for name in ("p50_ns", "p95_ns", "p99_ns", "max_ns")] == [
        410_000,
        2_000_000,
        9_000_000,
        1_250_000_000,
    ]
    few = quiet["phases"][0]
    assert (few["p50_ns"], few["durations_ns"]) == (None, [900_000, 3_100_000, 990_000])
    assert (busy["on_wire"], quiet["on_wire"]) == (1204, 0)


def test_json_shows_the_slowest_whole_from_the_start_of_the_session() -> None:
    busy, quiet = json.loads(render_json(example_report()))["latency"]
    slowest = busy["slowest"]
    assert slowest["duration_ns"] == sum(span["duration_ns"] for span in slowest["phases"])
    assert slowest["phases"][0]["start_ns"] == 110_000_000
    assert slowest["fin_ns"] > slowest["phases"][-1]["start_ns"]
    assert quiet["slowest"]["fin_ns"] is None


def test_html_has_a_bar_as_wide_as_the_whole() -> None:
    text = render_html(example_report())
    section = text.split('<section id="latency"', 1)[1].split("</section>", 1)[0]
    bar = section.split("</svg>", 1)[0]
    widths = [
        float(width) for width in re.findall(r'<rect class="place-[a-z]+" x="[\d.]+" y="0" width="([\d.]+)"', bar)
    ]
    assert sum(widths) == pytest.approx(1000, abs=0.1)
    assert "style=" not in section
    assert SCRIPT not in section
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in section
    assert "Only the program&#39;s part is known" in section
    assert 'data-connection="8"' in section


def test_html_keeps_the_timeline_of_the_slowest() -> None:
    """It comes before thousands of others for which there may be no room."""
    report = example_report(500)
    slowest = replace(report.latency[0], slowest=replace(report.latency[0].slowest, connection=499))
    report = replace(report, latency=(slowest,))
    data, _ = page_data(report, choose(report))
    assert list(data["timelines"]).index(499) < 10


def test_html_without_answers_has_no_such_section() -> None:
    assert 'id="latency"' not in render_html(empty_report())


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_terminal_bars_stay_in_their_place(encoding: str) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_report(example_report(), console=Console(file=file, width=80))
    file.flush()
    text = file.buffer.getvalue().decode(encoding)
    assert COLOUR not in text
    bars = [line for line in text.splitlines() if re.match(r"  [a-z ]+ +[\d.]+ (ns|µs|us|ms|s)  ", line)]
    assert len(bars) == 8
    assert max(map(len, bars)) <= 2 + 21 + 9 + 2 + 29


def test_a_phase_that_never_took_time_is_left_out() -> None:
    server = busy_server("10.0.0.1:80", 0, 1, "server", "GET /")
    still = replace(server, phases=tuple(replace(one, max_ns=0) for one in server.phases))
    assert [row.name for row in rows(still)] == ["whole"]


def test_what_is_known_of_some_is_said() -> None:
    server = busy_server("10.0.0.1:80", 0, 1, "server", "GET /")
    assert reservation(server) == ""
    assert reservation(replace(server, wire_count=200)).startswith("200 of 1,204 were found on the wire")
    assert "no packets" in reservation(quiet_server("10.0.0.1:80", 0, 1, "server"))
    assert server.slowest.phases[0].start_ns == START_NS + 110_000_000
