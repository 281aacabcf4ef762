"""The JSON keeps its published schema and the names of DESIGN section 9."""

from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import pytest

from sockscope.model.report import Report
from sockscope.reports.json import PIECE_COUNT, json_pieces, render_json, schema_text
from tests.reports.example import COLOUR, HELPER, SERVER, empty_report, example_report, sound_report

SCHEMA = json.loads(schema_text())


@pytest.mark.parametrize(
    "report",
    [example_report(), example_report(packets=False), sound_report(), empty_report(), example_report(500)],
    ids=["faulty", "no-packets", "sound", "empty", "500"],
)
def test_json_keeps_the_schema(report: Report) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(render_json(report)))


def test_json_says_what_was_found() -> None:
    document = json.loads(render_json(example_report()))
    assert document["schema"] == "sockscope/1"
    assert document["started"] == "2023-11-14T22:13:20.123+00:00"
    assert document["duration_ns"] == 10_000_000_000
    assert document["target"] == {"command": [], "pids": [SERVER], "ports": [18135], "files": []}
    first = document["findings"][0]
    assert first["rule"] == "fin-withheld"
    assert (first["severity"], first["confidence"], first["fd"]) == ("error", "certain", 7)
    assert first["holder"] == {"tgid": HELPER, "comm": "<script>alert(1", "fd": 7}
    assert first["connections"] == [0, 1, 2, 3]
    assert first["evidence"][0] == {
        "source": "syscall",
        "time_ns": 2_412_048_000,
        "text": 'python3[812] recvfrom(7, "", 1024, 0) = 0 (the last read)',
    }


def test_json_times_count_from_the_start_of_the_session() -> None:
    document = json.loads(render_json(example_report()))
    assert document["connections"][0]["first_ns"] == -238_000_000
    assert [p["started_ns"] for p in document["processes"]] == [None, 800_000_000, 951_000_000, None]
    assert document["processes"][3]["ended_ns"] == 3_000_000_000


def test_json_marks_a_connection_nobody_accepted() -> None:
    waiting = json.loads(render_json(example_report()))["connections"][4]
    assert (waiting["never_accepted"], waiting["owners"], waiting["state"]) == (True, [], "CLOSE_WAIT")


def test_json_is_ascii_without_control_characters_and_keeps_the_strings() -> None:
    text = render_json(example_report())
    assert text.isascii()
    assert not [c for c in text if ord(c) < 32 and c != "\n"]
    assert json.loads(text)["findings"][2]["comm"] == COLOUR


def test_json_gives_every_connection_a_line_however_many_there_are() -> None:
    report = example_report(2 * PIECE_COUNT + 1)
    pieces = list(json_pieces(report))
    text = "".join(pieces)
    assert text == render_json(report)
    assert max(len(piece.splitlines()) for piece in pieces if '"peer"' in piece) <= PIECE_COUNT + 1
    connections = json.loads(text)["connections"]
    assert [one["id"] for one in connections] == list(range(2 * PIECE_COUNT + 1))
    lines = [line.strip().rstrip(",") for line in text.splitlines() if line.startswith('  {"id"')]
    assert [json.loads(line) for line in lines] == connections


def test_json_survives_bytes_that_are_not_utf8() -> None:
    report = example_report()
    odd = replace(report.findings[0], comm=b"\xff\xfe".decode("utf-8", "surrogateescape"))
    assert r"\udcff\udcfe" in render_json(replace(report, findings=(odd,)))


def test_schema_asks_for_what_the_contract_names() -> None:
    document = json.loads(render_json(example_report()))
    assert set(SCHEMA["required"]) == set(document)
    finding = SCHEMA["properties"]["findings"]["items"]
    assert set(finding["required"]) == set(document["findings"][0])
    assert finding["additionalProperties"] is True
