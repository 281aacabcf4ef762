"""The page as a file: self-contained, inert and bounded, without a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sockscope.errors import UsageError
from sockscope.model.connections import Protocol
from sockscope.model.report import Report, TimelineTable
from sockscope.reports.html import render_html, write_html
from sockscope.reports.html_choice import choose
from sockscope.reports.html_data import page_data
from tests.reports import example
from tests.reports.example import SCRIPT, empty_report, example_report, sound_report


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    text: str
    data: dict[str, object]


def page_of(report: Report) -> Page:
    text = render_html(report)
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return Page(text=text, data=json.loads(found[1]))


@pytest.mark.parametrize(
    "report",
    [example_report(), example_report(packets=False), sound_report(), empty_report()],
    ids=["faulty", "no-packets", "sound", "empty"],
)
def test_html_names_nothing_outside_itself(report: Report) -> None:
    text = page_of(report).text
    assert not re.search(r"""\b(src|href|action)\s*=\s*["']?[^"'#\s]""", text.split("<script>", 1)[0])
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket|innerHTML", text)


def test_html_policy_allows_only_the_script_and_style_it_carries() -> None:
    text = page_of(example_report()).text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy[1] or "default-src 'none'" in policy[1]
    for tag in ("script", "style"):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert body is not None
        digest = base64.b64encode(hashlib.sha256(body[1].encode()).digest()).decode()
        assert f"sha256-{digest}" in policy[1].replace("&#43;", "+")
    assert "unsafe" not in policy[1]


def test_html_lets_no_target_text_become_markup() -> None:
    text = page_of(example_report()).text
    assert SCRIPT not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; wakes" in text
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    assert "\x1b" not in text
    assert r"\x1b[31mred" in text


@pytest.mark.parametrize("hostile", ["</script><b>", "<!--<script>", "\u2028'\"`${1}", "\udcff\x00", "]]>&amp;"])
def test_html_keeps_any_name_as_it_was(hostile: str) -> None:
    report = example_report()
    row = replace(report.connections[8], summary=hostile)
    page = page_of(replace(report, connections=(*report.connections[:8], row)))
    assert page.text.count("<script") == 2
    assert page.text.count("<!--") == 0
    strings = page.data["strings"]
    assert isinstance(strings, list)
    shown = hostile.replace("\udcff", r"\udcff").replace("\x00", r"\x00").replace("\u2028", r"\u2028")
    assert shown in strings


def test_html_of_ten_thousand_connections_keeps_its_bounds(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_html(example_report(10_000), path)
    print(f"10,000 connections: {path.stat().st_size / 1e6:.1f} MB")
    assert path.stat().st_size < 15_000_000


def test_html_keeps_its_bounds_where_every_connection_has_much_to_tell() -> None:
    def talkative(connections: Sequence[int], limits: Sequence[int]) -> Iterator[TimelineTable]:
        for number in connections:
            items = example.told_of(number, leaking=40)
            more = (replace(item, text=f"{item.text} <&> {number}.{turn}") for turn in range(4) for item in items)
            yield TimelineTable.of_items(more)

    text = render_html(replace(example_report(10_000), timeline_tables=talkative))
    assert 10_000_000 < len(text) < 15_000_000
    assert "those with findings and as many others as fit" in text


def test_html_keeps_timelines_of_findings_first_and_says_for_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sockscope.reports.html_data.TIMELINE_BUDGET_BYTES", 60_000)
    report = example_report(2_000)
    page = page_of(report)
    kept = page.data["timelines"]
    assert isinstance(kept, dict)
    assert {str(c) for finding in report.findings for c in finding.connections} <= set(kept)
    assert len(kept) < 2_000
    assert f"Timeline kept for {len(kept)} of 2,000 connections" in page.text


def test_html_timelines_mark_what_failed_and_what_is_evidence() -> None:
    data, _ = page_data(example_report(), choose(example_report()))
    timelines, strings = data["timelines"], data["strings"]
    deltas, _, lanes, _, names, texts, _, bits = json.loads(timelines[0])
    told = example.told_of(0, leaking=4)
    assert sum(deltas) == told[-1].time_ns - example.START_NS
    # The fork that is evidence, though it is not on the connection, stands in its place.
    assert "new" in [strings[t] for t in names]
    assert [strings[t] for t in names if strings[t] != "new"] == [item.name for item in told]
    assert {0, 1, 2} == set(lanes)
    primary = [strings[texts[i]] for i, b in enumerate(bits) if b & 4]
    assert primary == ['recvfrom(7, "", 1024, 0) = 0']
    assert [strings[names[i]] for i, b in enumerate(bits) if b & 1] == ["sendto"]


def test_html_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*No such file"):
        write_html(example_report(), tmp_path / "none" / "report.html")


def test_html_without_findings_says_what_that_rests_on() -> None:
    text = page_of(sound_report()).text
    assert "No findings. 12 connections watched for 10.0 s" in text
    assert 'id="findings"' not in text


def test_idle_socketpairs_come_last_and_say_what_they_are() -> None:
    report = example_report()
    first = report.connections[0]
    pair = replace(
        first.connection, id=99, protocol=Protocol.UNIX, local=None, peer=None, read_bytes=0, written_bytes=0
    )
    idle = replace(first, connection=pair, finding_indexes=(), summary="")
    report = replace(
        report, connections=(idle, *report.connections), timeline_tables=example.ExampleTimelines(leaking=0, idle=True)
    )
    data, _ = page_data(report, choose(report))
    assert data["connections"]["id"][-1] == 99
    assert data["strings"][data["connections"]["peer"][-1]] == "unix pair"
    assert len(data["findings"]) == len(report.connections)
    assert data["findings"][0] == list(first.finding_indexes)


def test_html_tells_a_connections_life() -> None:
    report = replace(example_report(), stories=lambda number: f"life <of> {number}" if number < 2 else "")
    data, _ = page_data(report, choose(report))
    assert {number: data["strings"][at] for number, at in data["lives"].items()} == {0: "life <of> 0", 1: "life <of> 1"}


def test_html_says_what_the_server_is() -> None:
    text = page_of(example_report()).text
    assert ">What this server is</h2>" in text
    assert "waits in &lt;poll&gt; until somebody connects" in text
    assert "What this server is" not in page_of(empty_report()).text
