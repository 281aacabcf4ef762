"""The page of more connections than it shows: bounded, exact in its sums, without dead links."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockscope.model.connections import Connection, Protocol, Role
from sockscope.model.report import ConnectionRow, Report
from sockscope.model.sockaddr import Address
from sockscope.model.tcp import TcpState
from sockscope.reports.html import render_html
from sockscope.reports.html_choice import EACH_GROUP, MOST_OF_A_FINDING, WHOLE_COUNT, choose
from sockscope.reports.html_groups import GROUP_COUNT, Grouped, group_rows, shape
from tests.reports.example import LOCAL, START_NS, empty_report, example_report, peer
from tests.reports.large_example import FAULTY_EVERY, WORST, CountedTimelines, large_report, large_row

COUNT = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Large:
    report: Report
    asked: list[int]
    text: str
    shown: list[int]


@pytest.fixture(scope="module")
def large() -> Large:
    timelines = CountedTimelines()
    report = large_report(COUNT, timelines)
    text = render_html(report)
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return Large(report=report, asked=timelines.asked, text=text, shown=json.loads(found[1])["connections"]["id"])


def test_the_page_of_a_hundred_thousand_connections_stays_small(large: Large) -> None:
    size = len(large.text.encode())
    print(f"{COUNT:,} connections: {size / 1e6:.1f} MB, {len(large.shown):,} shown")
    assert size < 5_000_000


def test_no_timeline_is_made_of_what_is_not_shown(large: Large) -> None:
    assert sorted(large.asked) == sorted(large.shown)
    assert 1000 < len(large.shown) < 2500


def test_totals_are_exact_and_visible(large: Large) -> None:
    grouped = choose(large.report).grouped
    assert grouped is not None
    lead = re.search(r'<p class="lead">(.*?)</p>', large.text, re.DOTALL)
    assert lead is not None
    shown = len(large.shown)
    told = re.sub(r"<[^>]+>", "", lead[1])
    assert told.startswith(f"100,000 connections: {shown:,} shown one by one, {COUNT - shown:,} only summed.")
    assert f"these {len(grouped.groups)} groups, all at 127.0.0.1:18135" in told
    assert sum(group.count for group in grouped.groups) == COUNT
    written = sum(600 + number for number in range(COUNT))
    assert sum(group.written_bytes for group in grouped.groups) == grouped.whole.written_bytes == written
    buttons = re.findall(r'data-group="\d+"[^>]*>([\d,]+)<', large.text)
    assert sum(int(text.replace(",", "")) for text in buttons) == shown
    assert len(buttons) == len(grouped.groups)


def test_a_finding_shows_its_worst_and_no_link_is_dead(large: Large) -> None:
    shown = set(large.shown)
    links = {int(number) for number in re.findall(r'data-connection="(\d+)"', large.text)}
    assert {WORST, 41, 42} <= links <= shown
    leaking = [number for number in shown if number % FAULTY_EVERY == 0]
    assert f"{len(leaking):,} of 2,500 in the table" in large.text
    assert MOST_OF_A_FINDING <= len(leaking) < MOST_OF_A_FINDING + 50
    assert f"Of each finding up to {MOST_OF_A_FINDING}: the worst" in large.text


def test_the_sample_has_the_extremes_and_some_of_each_group(large: Large) -> None:
    sound = [number for number in large.shown if number % FAULTY_EVERY and number not in (41, 42)]
    assert set(range(COUNT - 50, COUNT)) - set(range(0, COUNT, FAULTY_EVERY)) <= set(sound)  # moved most
    assert set(range(1, 40)) <= set(sound)  # began first
    assert {number for number in range(999, COUNT, 1000) if number % FAULTY_EVERY} <= set(sound)  # lasted longest
    choice = choose(large.report)
    assert choice.grouped is not None
    per_group = np.bincount(choice.groups, minlength=len(choice.grouped.groups))
    sizes = np.array([group.count for group in choice.grouped.groups])
    assert (per_group >= np.minimum(EACH_GROUP, sizes)).all()


@pytest.mark.parametrize(("count", "is_whole"), [(WHOLE_COUNT, True), (WHOLE_COUNT + 1, False)])
def test_everything_is_shown_up_to_the_threshold(count: int, is_whole: bool) -> None:
    row = large_row(1)
    choice = choose(replace(empty_report(), connections=(row,) * count))
    assert (choice.grouped is None, len(choice.rows) == count) == (is_whole, is_whole)
    assert not is_whole or choice.drawn == ()


def test_a_finding_of_all_connections_leaves_the_rest_to_the_sums() -> None:
    report = large_report(WHOLE_COUNT * 3)
    rows = tuple(replace(row, finding_indexes=(0,)) for row in report.connections)
    everywhere = replace(report.findings[0], connections=tuple(range(len(rows))))
    report = replace(report, connections=rows, findings=(everywhere,), latency=())
    choice = choose(report)
    assert WORST in {row.connection.id for row in choice.rows}
    assert MOST_OF_A_FINDING <= len(choice.rows) < 2 * MOST_OF_A_FINDING
    assert not any("without findings" in sentence for sentence in choice.drawn)


def test_wire_words_are_in_the_page() -> None:
    report = example_report()
    row = replace(report.connections[0], wire="2 retransmissions <1 RTO>")
    text = render_html(replace(report, connections=(row, *report.connections[1:])))
    assert r"2 retransmissions \u003c1 RTO\u003e" in text


def test_evidence_names_addresses_as_the_terminal_does() -> None:
    report = example_report()
    long = '{sa_family=AF_INET, sin_port=htons(40112), sin_addr="127.0.0.1"}'
    fact = replace(report.findings[0].evidence[0], text=f"python3[812] accept4(3, {long}, SOCK_CLOEXEC) = 7")
    told = replace(report.findings[0], evidence=(fact,))
    text = render_html(replace(report, findings=(told, *report.findings[1:])))
    assert "python3[812] accept4(3, {127.0.0.1:40112}, SOCK_CLOEXEC) = 7" in text
    assert "sa_family" not in text


@pytest.mark.parametrize(
    ("summary", "kind"),
    [
        ("", ""),
        ("GET /index.html → 200, 615 bytes", "GET /index.html → 200"),
        ("GET /item/7 → 200, 1 234 bytes ×12; and 3 more requests", "GET /item/… → 200"),
        ("GET /a → 200, 1 byte; GET /a → 404, 9 bytes; GET /a → 200, 3 bytes", "GET /a → 200; GET /a → 404"),
        ("GET /x?id=5&t=abc → no answer", "GET /x → no answer"),
        ("POST /u/550e8400-e29b-41d4-a716-446655440000/x → 201, 9 bytes", "POST /u/…/x → 201"),
        ("in 5 bytes, out 9 bytes", "other data"),
    ],
)
def test_what_connections_did_is_told_alike_where_it_was_alike(summary: str, kind: str) -> None:
    assert shape(summary) == kind


def _row(number: int, told: tuple[int, int, int, int, int, bool]) -> ConnectionRow:
    server, state, process, did, lasted, faulty = told
    connection = Connection(
        id=number,
        protocol=Protocol.TCP,
        role=Role.CLIENT if server == 1 else Role.SERVER,
        local=None if server == 2 else Address.inet(bytes([10, 0, 0, server]), 80),
        peer=peer(number) if server == 1 else LOCAL,
        first_ns=START_NS,
        last_ns=START_NS + lasted,
        state=list(TcpState)[state],
        read_bytes=lasted * 2**20,
        written_bytes=number,
    )
    return ConnectionRow(
        connection=connection,
        processes=(process,) if process else (),
        event_count=0,
        packet_count=0,
        finding_indexes=(0,) if faulty else (),
        summary=f"GET /{'abcdefghijkl'[did]} → 200, {number} bytes",
    )


TOLD = st.tuples(
    st.integers(0, 4), st.integers(0, 4), st.integers(0, 30), st.integers(0, 11), st.integers(0, 2**40), st.booleans()
)


def _grouped(told: list[tuple[int, int, int, int, int, bool]]) -> tuple[Report, Grouped]:
    rows = tuple(_row(number, one) for number, one in enumerate(told))
    report = replace(example_report(), connections=rows)
    return report, group_rows(report)


@given(st.lists(TOLD, min_size=1, max_size=150))
def test_groups_add_up_to_the_session(told: list[tuple[int, int, int, int, int, bool]]) -> None:
    report, grouped = _grouped(told)
    assert len(grouped.groups) <= GROUP_COUNT
    connections = [row.connection for row in report.connections]
    for index, group in enumerate(grouped.groups):
        members = [connections[at] for at in np.flatnonzero(grouped.of_row == index).tolist()]
        assert group.count == len(members) > 0
        assert group.read_bytes == sum(one.read_bytes for one in members)
        assert group.written_bytes == sum(one.written_bytes for one in members)
        lasted = sorted(one.last_ns - one.first_ns for one in members)
        assert group.lasted.max_ns == lasted[-1]
        assert sum(ns <= group.lasted.median_ns for ns in lasted) * 2 >= len(lasted)
        assert {group.lasted.median_ns, group.lasted.p95_ns} <= set(lasted)
    assert sum(group.count for group in grouped.groups) == len(connections) == grouped.whole.count
    assert sum(group.read_bytes for group in grouped.groups) == grouped.whole.read_bytes
