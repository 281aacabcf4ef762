"""The Perfetto trace, read back with the official schema and by Perfetto's own trace processor."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sockscope.errors import UsageError
from sockscope.model.calls import Call
from sockscope.model.events import EVENT_DTYPE, EventFlag, Events
from sockscope.model.report import Report
from sockscope.model.tables import SessionTables
from sockscope.model.tcp import SegmentMark, TcpState
from sockscope.reports import perfetto_calls, perfetto_connections
from sockscope.reports.perfetto import write_perfetto
from sockscope.reports.perfetto_lanes import lanes
from sockscope.reports.perfetto_wire import varint
from tests.analysis.builders import START_NS, Script, address
from tests.reports.exported import CLIENT, SERVER, exported, leaking, listening, marked
from tests.reports.perfetto_support import Read, Slice, query, read

MS = 1_000_000
LIFE = "Connections/lives"


def written(report: Report, tables: SessionTables, folder: Path) -> Read:
    write_perfetto(report, tables, folder / "trace.pftrace")
    return read(folder / "trace.pftrace")


def trace_of(script: Script, folder: Path) -> Read:
    return written(*exported(script, folder), folder)


def only(found: list[Slice]) -> Slice:
    (one,) = found
    return one


class TestCalls:
    def test_a_call_is_a_slice_of_its_thread(self, tmp_path: Path) -> None:
        sent = only(trace_of(leaking(), tmp_path).named("sendto"))
        assert sent.track == "process 100, thread 100"
        assert (sent.begin_ns, sent.end_ns) == (START_NS + 5 * MS, START_NS + 5 * MS + 1000)
        assert sent.notes == {
            "fd": 7,
            "bytes": 19,
            "connection": "#0 10.0.0.9:4000",
            "call": 'sendto(7, "HTTP/1.1 200 OK\\r\\n\\r\\n", 19, 0) = 19',
        }

    def test_an_error_has_its_name(self, tmp_path: Path) -> None:
        script = leaking()
        script.event(100, 100, Call.sendto, 0, 5, fd=7, ret=-32, at=9 * MS)
        failed = trace_of(script, tmp_path).named("sendto")[-1]
        assert failed.notes["error"] == "EPIPE"
        assert "bytes" not in failed.notes

    def test_one_that_never_returned_has_no_end(self, tmp_path: Path) -> None:
        script = listening(Script())
        script.event(100, 100, Call.accept4, fd=3, flags=EventFlag.ENTERED_ONLY)
        waiting = only(trace_of(script, tmp_path).named("accept4"))
        assert waiting.end_ns is None
        assert waiting.notes["note"] == "had not returned when the watching ended"
        assert "result" not in waiting.notes

    def test_one_entered_before_begins_with_the_watching(self, tmp_path: Path) -> None:
        script = listening(Script())
        script.event(100, 100, Call.accept4, fd=3, ret=-11, flags=EventFlag.NO_ENTRY, at=3 * MS)
        blocked = only(trace_of(script, tmp_path).named("accept4"))
        assert (blocked.begin_ns, blocked.end_ns) == (START_NS, START_NS + 3 * MS + 1000)
        assert blocked.notes["note"] == "was entered before the watching began"

    def test_what_an_io_uring_did_lies_beside_the_threads(self, tmp_path: Path) -> None:
        script = leaking()
        for at in (0, 100, 200):
            script.event(100, 100, Call.recvfrom, fd=7, flags=EventFlag.URING, at=8 * MS + at, took=1000)
        found = [one for one in trace_of(script, tmp_path).slices if one.notes.get("note") == "io_uring"]
        assert {one.track for one in found} == {"nginx[100]/io_uring"}
        assert len(found) == 3

    def test_a_task_event_is_an_instant(self, tmp_path: Path) -> None:
        script = leaking()
        script.signal(100, 15)
        assert only(trace_of(script, tmp_path).named("signal")).instant

    def test_beyond_the_limit_calls_with_findings_are_decoded_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        script = listening(Script())
        script.event(100, 100, Call.poll, 0, 0, 0, ret=0, at=1)
        monkeypatch.setattr(perfetto_calls, "MOST_TEXTS", 1)
        trace = trace_of(leaking(script), tmp_path)
        assert [one.name for one in trace.slices if "call" in one.notes] == ["accept4"]


class TestConnections:
    def test_a_life_lasts_while_the_connection_is_there(self, tmp_path: Path) -> None:
        life = only(trace_of(leaking(), tmp_path).on(LIFE))
        assert life.name.startswith("#0 10.0.0.9:4000 GET /")
        assert (life.begin_ns, life.end_ns) == (START_NS + MS, START_NS + 12_000 * MS)
        assert life.notes["findings"] == "close-wait-leak"

    def test_too_many_at_once_are_instants(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(perfetto_connections, "MOST_LANES", 1)
        script = leaking()
        script.event(100, 100, Call.accept4, fd=3, ret=8, sockaddr=address("10.0.0.9", 4001), at=9 * MS)
        assert [one.instant for one in trace_of(script, tmp_path).on(LIFE)] == [False, True]

    def test_a_flow_joins_the_life_the_calls_and_the_packets(self, tmp_path: Path) -> None:
        names = [one.name for one in trace_of(leaking(), tmp_path).slices if one.flows == (1,)]
        assert names[0].startswith("#0")
        assert names[1:-1] == [
            *("<- SYN", "-> SYN,ACK", "accept4", "<- PSH,ACK", "recvfrom", "sendto", "-> PSH,ACK", "<- FIN,ACK"),
            "recvfrom",
        ]
        assert names[-1].startswith("close-wait-leak")

    def test_states_are_slices_up_to_the_end(self, tmp_path: Path) -> None:
        state = only(trace_of(leaking(), tmp_path).on("Connections/#0 10.0.0.9:4000"))
        assert (state.name, state.end_ns) == ("CLOSE_WAIT", START_NS + 12_000 * MS)

    def test_states_that_the_kernel_told(self, tmp_path: Path) -> None:
        script = leaking()
        script.states(
            SERVER, CLIENT, TcpState.SYN_RECV, TcpState.ESTABLISHED, TcpState.CLOSE_WAIT, cookie=5, at=MS, step=5 * MS
        )
        states = trace_of(script, tmp_path).on("Connections/#0 10.0.0.9:4000")
        assert [one.name for one in states] == ["ESTABLISHED", "CLOSE_WAIT"]
        assert states[0].end_ns == states[1].begin_ns == START_NS + 6 * MS

    def test_packets_are_instants_with_their_marks(self, tmp_path: Path) -> None:
        report, tables = exported(leaking(), tmp_path)
        told = written(report, marked(tables, {3: SegmentMark.RETRANSMISSION}), tmp_path)
        request = only(told.named("<- PSH,ACK"))
        assert request.track == "Connections/#0 10.0.0.9:4000/packets"
        assert request.instant
        assert (request.notes["payload bytes"], request.notes["seq"]) == (18, 1001)
        assert request.notes["segment"] == "retransmission"

    def test_the_counter_counts_open_ones(self, tmp_path: Path) -> None:
        assert trace_of(leaking(), tmp_path).counters == [
            ("open connections", START_NS + MS, 1),
            ("open connections", START_NS + 12_000 * MS, 0),
        ]


class TestRequests:
    def test_from_the_first_byte_to_the_answers_last(self, tmp_path: Path) -> None:
        request = only(trace_of(leaking(), tmp_path).named("request"))
        assert request.track == "nginx[100]/requests"
        assert (request.begin_ns, request.end_ns) == (START_NS + 3 * MS, START_NS + 5 * MS + 1000)
        assert request.notes == {
            "connection": "#0 10.0.0.9:4000",
            "bytes read": 18,
            "bytes written": 19,
            "lay unread ns": MS + 1000,
            "thought about ns": MS - 1000,
            "written ns": 1000,
            "ACK of the peer ns": 970_000,
        }

    def test_one_without_an_answer_is_an_instant(self, tmp_path: Path) -> None:
        script = listening(Script())
        script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=CLIENT)
        script.event(100, 100, Call.recvfrom, 0, 99, fd=7, ret=18)
        assert only(trace_of(script, tmp_path).named("request without an answer")).instant


class TestFindings:
    def test_told_for_all_and_where_it_happened(self, tmp_path: Path) -> None:
        found = [one for one in trace_of(leaking(), tmp_path).slices if one.name.startswith("close-wait-leak")]
        assert {one.track for one in found} == {"Findings", "process 100, thread 100"}
        assert all(one.instant and one.begin_ns == START_NS + 7 * MS + 1000 for one in found)
        assert found[0].notes["severity"] == "error"
        assert found[0].notes["remedy"]
        assert found[0].notes["fd"] == 7


class TestFile:
    def test_an_empty_session(self, tmp_path: Path) -> None:
        assert trace_of(Script(), tmp_path).slices == []

    def test_only_its_owner_reads_it(self, tmp_path: Path) -> None:
        trace_of(leaking(), tmp_path)
        assert stat.S_IMODE((tmp_path / "trace.pftrace").stat().st_mode) == 0o600

    def test_no_such_folder(self, tmp_path: Path) -> None:
        report, tables = exported(leaking(), tmp_path)
        with pytest.raises(UsageError, match="cannot write"):
            write_perfetto(report, tables, tmp_path / "none" / "trace")

    def test_progress(self, tmp_path: Path) -> None:
        told: list[tuple[str, int, int]] = []
        report, tables = exported(leaking(), tmp_path)
        write_perfetto(report, tables, tmp_path / "trace", progress=lambda *now: told.append(now))
        assert told == [("requests", 1, 1), ("syscalls", 4, 4), ("packets", 7, 7)]


def test_perfettos_own_trace_processor_reads_it(tmp_path: Path) -> None:
    script = leaking()
    script.event(100, 100, Call.recvfrom, fd=7, flags=EventFlag.URING, at=8 * MS)
    script.event(100, 100, Call.accept4, fd=3, flags=EventFlag.ENTERED_ONLY, at=9 * MS)
    write_perfetto(*exported(script, tmp_path), tmp_path / "trace.pftrace")
    troubles, calls, flows, instants, arguments, tracks = query(
        tmp_path / "trace.pftrace",
        "select name, value from stats where value > 0 and severity != 'info'",
        "select s.name, s.dur, t.tid, p.pid, p.name as process from slice s join thread_track k on s.track_id = k.id"
        " join thread t using (utid) join process p using (upid) where s.category in ('network', 'transfers')"
        " order by s.ts",
        "select count(*) as n from flow",
        "select s.name, t.name as track from slice s join track t on s.track_id = t.id where t.name = 'Findings'",
        "select a.key, a.display_value as value from slice s join args a using (arg_set_id) where s.name = 'sendto'",
        "select name from track where name is not null",
    )
    assert troubles == []
    assert [(one["name"], one["dur"]) for one in calls] == [
        *(("accept4", 1000), ("recvfrom", 1000), ("sendto", 1000), ("recvfrom", 1000), ("accept4", -1))
    ]
    assert {(one["tid"], one["pid"], one["process"]) for one in calls} == {(100, 100, "nginx")}
    assert flows[0]["n"] == 11
    assert [one["track"] for one in instants] == ["Findings"]
    assert {"key": "debug.bytes", "value": "19"} in arguments
    assert {"io_uring", "lives", "open connections"} <= {one["name"] for one in tracks}


@given(value=st.integers(-(2**63), 2**64 - 1))
def test_varints(value: int) -> None:
    found = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(varint(value)))
    assert found == value % 2**64


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(-1, 12)), max_size=30))
def test_lanes_never_overlap(spans: list[tuple[int, int, int]]) -> None:
    ends = [(key, begin, begin + took if took >= 0 else -1) for key, begin, took in spans]
    ends.sort(key=lambda one: (one[1], one[2] if one[2] >= 0 else 10**9))
    table = np.array(ends, np.int64).reshape(-1, 3)
    found = lanes(table[:, 0], table[:, 1], table[:, 2])
    last: dict[tuple[int, int], int] = {}
    for (key, begin, end), lane in zip(ends, found.tolist(), strict=True):
        assert last.get((key, lane), 0) <= begin
        last[key, lane] = end if end >= 0 else 10**9


def test_what_never_ended_overlaps_all_that_follows() -> None:
    begin = np.array([0, 2**63 - 1], np.int64)
    assert lanes(np.zeros(2, np.int64), begin, np.array([-1, 2**63 - 1], np.int64)).tolist() == [0, 1]


TIMES = st.one_of(st.integers(-5, 60), st.sampled_from([0, 2**62, 2**63 - 1]))
ROWS = st.tuples(
    TIMES,
    TIMES,
    st.one_of(st.integers(-4200, 300), st.sampled_from([-(2**63), 2**63 - 1])),
    st.sampled_from([0, 7, 2**32 - 1, 2**64 - 1]),
    st.sampled_from([-1, 0, 1, 100, 2**31 - 1]),
    st.sampled_from([*(int(call) for call in Call), 9999]),
    st.integers(0, 127),
    st.integers(-1, 0),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(rows=st.lists(ROWS, max_size=25), text=st.text(max_size=600), comm=st.text(max_size=16))
def test_odd_times_and_texts(
    rows: list[tuple[int, ...]], text: str, comm: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    report, tables = exported(leaking(), folder)
    records = np.zeros(len(rows), EVENT_DTYPE)
    for at, (enter, leave, ret, argument, task, call, flags, _) in enumerate(rows):
        records[at] = (enter, leave, ret, [argument] * 6, 0, 0, task, task, call, flags)
    odd = replace(
        tables,
        events=Events(records=records, blob=np.zeros(0, np.uint8)),
        event_connection=np.array([row[-1] for row in rows], np.int32),
        order=np.arange(len(rows), dtype=np.int64),
        event_text=lambda event: text,
        comm=lambda tgid: comm,
    )
    report = replace(report, processes=(replace(report.processes[0], comm=comm, cmdline=(text,)),))
    written(report, odd, folder)
