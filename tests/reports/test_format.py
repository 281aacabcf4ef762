"""Numbers and phrases that all reports share."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sockscope.model.connections import Protocol
from sockscope.model.descriptors import Process
from sockscope.model.findings import Evidence, Source
from sockscope.reports import format as words
from tests.reports.example import example_report


@pytest.mark.parametrize(
    ("ns", "said"),
    [
        (0, "0 ns"),
        (740, "740 ns"),
        (52_100, "52.1 µs"),
        (500_000_000, "500 ms"),
        (10_000_000_000, "10.0 s"),
        (725_000_000_000, "12 min 5 s"),
    ],
)
def test_duration(ns: int, said: str) -> None:
    assert words.duration(ns) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (1_234, "1.2 kB"), (3_400_000, "3.4 MB"), (5 * 10**12, "5000.0 GB")],
)
def test_byte_count(count: int, said: str) -> None:
    assert words.byte_count(count) == said


@pytest.mark.parametrize(
    ("status", "said"), [(0, "exit 0"), (256, "exit 1"), (9, "killed by SIGKILL"), (127, "killed by signal 127")]
)
def test_ended_words(status: int, said: str) -> None:
    assert words.ended_words(Process(tgid=1, exited_ns=1, exit_status=status)) == said


@pytest.mark.parametrize(
    ("text", "parted"),
    [
        ("nginx[812] close(5) = 0", ("nginx[812]", "close(5) = 0")),
        ("a b[c][8/9] new process 10", ("a b[c][8/9]", "new process 10")),
        ("close(5) = 0", ("", "close(5) = 0")),
    ],
)
def test_evidence_names_its_actor(text: str, parted: tuple[str, str]) -> None:
    assert words.actor_and_text(Evidence(source=Source.SYSCALL, time_ns=0, text=text)) == parted


def test_coverage_says_what_was_lost_or_missing() -> None:
    lines = {line.name: line for line in words.coverage_lines(example_report(packets=False))}
    assert lines["syscalls"].text.endswith("17 lost (17 ring full)")
    assert lines["syscalls"].doubt
    assert lines["packets"].text == "not captured"
    assert lines["note"].doubt


def test_skipped_rules_are_grouped_by_reason() -> None:
    groups = dict(words.skip_groups(example_report(packets=False)))
    assert groups["needs packets"] == ["retransmissions", "slow-reader"]


def test_the_other_end_of_a_unix_connection() -> None:
    row = example_report().connections[0]
    assert words.far_end(row) == words.address(row.connection.peer)
    unix = replace(row, connection=replace(row.connection, protocol=Protocol.UNIX, local=None, peer=None))
    assert words.far_end(unix) == "unix pair"
    assert words.far_end(replace(unix, far="psql[7], client of /run/app.sock")) == "psql[7], client of /run/app.sock"
