"""What is told of clocks laid side by side."""

from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import pytest

from sockscope.model.info import Alignment
from sockscope.reports.format import coverage_lines
from sockscope.reports.json import render_json, schema_text
from tests.reports.example import example_report


@pytest.mark.parametrize(
    ("offset_ns", "uncertainty_ns", "packets", "text", "doubt"),
    [
        (
            3_600_000_212_400,
            38_000,
            True,
            "c.pcap laid beside the calls: +3600.000 212 s ± 38 µs, from 312 handshakes and 4,104 transfers",
            False,
        ),
        (
            -1_999_999_900,
            2_000_000,
            True,
            "c.pcap laid beside the calls: -2.000 000 s ± 2 ms, from 312 handshakes and 4,104 transfers",
            True,
        ),
        (
            0,
            40_000,
            True,
            "c.pcap and the calls share one clock, to ± 40 µs, from 312 handshakes and 4,104 transfers",
            False,
        ),
        (
            0,
            40_000,
            False,
            "c.pcap and the rest share one clock, to ± 40 µs, from 312 handshakes and 4,104 transfers",
            False,
        ),
        (0, -1, True, "c.pcap taken as it stands: 312 handshakes and 4,104 transfers", True),
    ],
)
def test_the_line(offset_ns: int, uncertainty_ns: int, packets: bool, text: str, doubt: bool) -> None:
    report = example_report()
    alignment = Alignment(
        source="c.pcap",
        offset_ns=offset_ns,
        uncertainty_ns=uncertainty_ns,
        basis="312 handshakes and 4,104 transfers",
        packets=packets,
    )
    told = coverage_lines(replace(report, info=replace(report.info, alignments=(alignment,))))
    (line,) = [one for one in told if one.name == "clocks"]
    assert (line.text, line.doubt) == (text, doubt)


def test_json() -> None:
    report = example_report()
    told = (
        Alignment(source="c.pcap", offset_ns=-5, uncertainty_ns=40, basis="1 handshake"),
        Alignment(source="d.pcap", offset_ns=0, uncertainty_ns=-1, basis="nothing in common"),
        Alignment(source="e.pcap", offset_ns=7, uncertainty_ns=3, basis="2 segments", beside="c.pcap"),
    )
    document = json.loads(render_json(replace(report, info=replace(report.info, alignments=told))))
    jsonschema.Draft202012Validator(json.loads(schema_text())).validate(document)
    assert document["coverage"]["alignments"] == [
        {"source": "c.pcap", "offset_ns": -5, "uncertainty_ns": 40, "basis": "1 handshake", "beside": ""},
        {"source": "d.pcap", "offset_ns": 0, "uncertainty_ns": None, "basis": "nothing in common", "beside": ""},
        {"source": "e.pcap", "offset_ns": 7, "uncertainty_ns": 3, "basis": "2 segments", "beside": "c.pcap"},
    ]
