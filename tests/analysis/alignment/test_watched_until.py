"""The session's end: a server that sits in a call writes no line of how long it does so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sockscope.analysis.alignment.lay import watched_until
from sockscope.model.sockets import Sockets
from sockscope.model.tcp import TcpFlag
from tests.analysis.alignment.evidence import ACK, SECOND, SERVER, Evidence
from tests.analysis.builders import address

PEER = address("10.0.0.9", 20_001)


def ended_after(evidence: Evidence) -> int:
    """How long after the log's last line the session ends, ns."""
    session = evidence.session()
    records = session.events.records
    last = int(max(records["enter_ns"].max(), records["exit_ns"].max()))
    info = replace(session.info, ended_ns=last)
    return watched_until(info, session.packets, session.packet_ns, Sockets.empty()) - last


def test_bare_acknowledgements_ask_for_nothing() -> None:
    evidence = Evidence()
    evidence.connection(1, ended=False)
    evidence.script.packet(PEER, SERVER, ACK, seq=1, ack=1, at=4 * SECOND)
    assert ended_after(evidence) > 3 * SECOND


def test_a_request_that_the_log_does_not_answer_may_be_after_it() -> None:
    for flags, payload in ((ACK, b"GET /"), (TcpFlag.FIN | ACK, b""), (TcpFlag.SYN, b""), (TcpFlag.RST, b"")):
        evidence = Evidence()
        evidence.connection(1, ended=False)
        evidence.script.packet(PEER, SERVER, flags, seq=1, ack=1, payload=payload, at=2 * SECOND)
        evidence.script.packet(PEER, SERVER, ACK, seq=1, ack=1, at=4 * SECOND)
        assert SECOND < ended_after(evidence) < 2 * SECOND


def test_never_before_the_logs_end() -> None:
    assert ended_after(Evidence().connections(5)) >= 0


def test_a_listing_of_another_day_is_no_part_of_it() -> None:
    evidence = Evidence()
    evidence.connection(1, ended=False)
    session = evidence.session()
    listed = Sockets.empty()
    rows = np.zeros(2, listed.records.dtype)
    rows["time_ns"] = session.info.ended_ns + 5 * SECOND, session.info.ended_ns + 86_400 * SECOND
    ended = watched_until(session.info, session.packets, session.packet_ns, replace(listed, records=rows))
    assert ended == session.info.ended_ns + 5 * SECOND
