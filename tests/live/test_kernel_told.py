"""What the kernel tells, what snapshots show and what the wire carries agree, on real connections."""

from __future__ import annotations

import numpy as np
import pytest

from sockscope.analysis.joining.kernel_events import decode_kernel_events
from sockscope.analysis.narration.kernel_story import Told
from sockscope.analysis.session import Session
from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.tcp import TcpState
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.load import load_session
from sockscope.pipeline.options import EngineChoice
from tests.live.engines import need
from tests.live.rehearsals import Case, Rehearsals

pytestmark = pytest.mark.live

REMAINS = (TcpState.FIN_WAIT2, TcpState.TIME_WAIT)
"""Sockets of another kind, which take over at CLOSE."""
PROMPTLY_NS = 100_000_000


def play_of(slug: str, program: str) -> Case:
    """One that test_fixtures looks at too."""
    return Case(slug=slug, mode="attach", program=program, engine=EngineChoice.BPF)


def session_of(case: Case, rehearsals: Rehearsals) -> Session:
    need(case.engine)
    return load_session(rehearsals.recording(case))


@pytest.mark.parametrize(
    "case",
    [play_of("close-wait-leak", "faulty"), play_of("reset-on-close", "faulty"), play_of("missing-fin", "sound")],
    ids=str,
)
def test_the_three_sources_agree(case: Case, rehearsals: Rehearsals) -> None:
    session = session_of(case, rehearsals)
    assert session.connections
    for connection in session.connections:
        told = Told(session, np.array([connection.id], np.int64))
        changes = session.kernel[told.changes]
        assert len(changes), connection
        # One life: each change begins where the one before ended.
        assert (changes["old"][1:] == changes["new"][:-1]).all(), connection
        rows = session.samples_of(connection.id)
        rows = rows[~told.stamped_early(np.zeros(len(rows), np.int64), rows)]
        shown = session.sockets.records[rows]
        states = told.at(np.zeros(len(rows), np.int64), shown["time_ns"].astype(np.int64))
        closed = (states == TcpState.CLOSE) & np.isin(shown["state"], REMAINS)
        assert ((shown["state"] == states) | (states == TcpState.UNKNOWN) | closed).all(), connection
        flow = session.flows[connection.flow]
        fin_ns = flow.fin_ns[1 - connection.local_side]
        arrived = changes["time_ns"][changes["new"] == TcpState.CLOSE_WAIT]
        assert len(arrived) == (fin_ns is not None) or TcpState.FIN_WAIT2 in changes["new"], connection
        if len(arrived) and fin_ns is not None:
            assert abs(int(arrived[0]) - fin_ns) < PROMPTLY_NS
        resets = session.kernel["call"][session.kernel_of(connection.id)]
        assert (Call.tcp_reset_sent in resets) == (flow.rst_ns[connection.local_side] is not None), connection


@pytest.mark.parametrize("case", [play_of("fin-withheld", "faulty")], ids=str)
def test_the_same_findings_with_the_kernels_word_left_out(case: Case, rehearsals: Rehearsals) -> None:
    """One session, once as it was and once as if nobody had heard the kernel."""
    session = session_of(case, rehearsals)
    heard = [(f.rule, f.severity, f.confidence, f.count, f.fd, f.holder) for f in run_rules(session)[0]]
    assert heard
    assert make_report(session).kernel.state_change_count > 0
    none = np.zeros(0, np.int64)
    session.kernel, session.kernel_connection = decode_kernel_events(session.events, none), none.astype(np.int32)
    del session._kernel_by_connection
    assert [(f.rule, f.severity, f.confidence, f.count, f.fd, f.holder) for f in run_rules(session)[0]] == heard
