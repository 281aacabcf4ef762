"""A capture that misses what the calls must have sent is not whole, and no rule takes its silence for the wire's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sockscope.analysis.session import Session
from sockscope.findings.run import missing
from sockscope.model.findings import Need, Rule, Severity
from sockscope.model.tcp import TcpFlag
from tests.analysis.alignment.evidence import Evidence

RULE = Rule(
    slug="any", severity=Severity.WARNING, summary="any", needs=frozenset({Need.SYSCALLS, Need.PACKETS}), times=False
)


def kept(evidence: Evidence, share: float = 1.0, without: int = 0) -> Session:
    """Joined with the first part of the capture, and of that what lacks these flags."""
    packets = evidence.packets()
    records = packets.records[: int(len(packets) * share)]
    return evidence.session(packets=replace(packets, records=records[(records["flags"] & without) == 0]))


def test_a_whole_capture() -> None:
    session = kept(Evidence().connections(30, requests=2))
    assert session.info.packets.whole
    assert not session.info.packets.gap


def test_a_capture_that_ends_before_the_log() -> None:
    session = kept(Evidence().connections(30, requests=2), 0.6)
    assert not session.info.packets.whole
    assert session.info.packets.gap.startswith("the capture ends 0.")
    assert any(session.info.packets.gap in note for note in session.info.notes)
    asked = replace(session.info, packets=replace(session.info.packets, available=True))
    assert missing(RULE, asked) == session.info.packets.gap
    assert not missing(replace(RULE, bears_loss=True), asked)


def test_a_server_that_is_idle_at_the_end_sends_nothing() -> None:
    evidence = Evidence()
    evidence.connection(1, ended=False)
    session = kept(evidence)
    assert session.info.packets.whole


def test_a_capture_without_connections_in_common() -> None:
    evidence = Evidence().connections(3)
    evidence.connection(7, captured=False)
    assert kept(evidence, 0.0).info.packets.whole


def test_no_fin_of_ours_is_no_gap_before_the_captures_end() -> None:
    """It may be withheld by somebody who is not seen: only what comes after the last packet tells of the capture."""
    session = kept(Evidence().connections(30), without=int(TcpFlag.FIN))
    closes = session.info.packets.gap
    assert not closes or closes.startswith("the capture ends")
    assert np.count_nonzero(session.packet_flow >= 0) == len(session.packets)
