"""Recordings of real servers, exported, and opened by tshark and by Perfetto's trace processor."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from sockscope import fixture
from sockscope.model.report import Report
from sockscope.model.tables import SessionTables
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.export import session_tables
from sockscope.pipeline.load import load_session
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.pipeline.record import Watcher, record
from sockscope.recording import layout
from sockscope.reports.pcapng import write_pcapng
from sockscope.reports.perfetto import write_perfetto
from sockscope.sources.packets.files import read_packets
from tests.live import servers
from tests.live.engines import bpf_problem
from tests.reports.exported import tshark
from tests.reports.perfetto_support import query, read

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

REQUESTS = 20


def loaded(recording: Path) -> tuple[Report, SessionTables]:
    session = load_session(recording)
    return make_report(session), session_tables(session)


@pytest.fixture(scope="module", params=[EngineChoice.PTRACE, EngineChoice.BPF], ids=str)
def leak(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of the close-wait-leak fixture."""
    problem = bpf_problem() if request.param is EngineChoice.BPF else None
    if problem is not None:
        pytest.skip(problem)
    folder = tmp_path_factory.mktemp("leak") / "recording"
    fixture.rehearse(fixture.load("close-wait-leak"), folder, engine=request.param)
    return folder


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of nginx with two workers, asked a few times."""
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx")
    folder = tmp_path_factory.mktemp("nginx") / "recording"
    with servers.ground() as ground:
        server = servers.nginx(ground)
        with servers.running(server) as pid:
            watcher = Watcher()

            def act() -> None:
                try:
                    servers.curl_many(server.port, REQUESTS)
                finally:
                    watcher.stop.set()

            watcher.on_ready = lambda tgids, seed: threading.Thread(target=act, daemon=True).start()
            record(RecordOptions(pids=(pid,)), folder, watcher)
    return folder


def same_packets(recording: Path, written: Path) -> None:
    before, after = read_packets(recording / layout.PACKETS), read_packets(written)
    assert after.damage is None
    assert after.frame_count == len(before.packets)
    for name in ("time_ns", "seq", "payload_bytes", "captured_payload_bytes", "wire_bytes"):
        assert (before.packets.records[name] == after.packets.records[name]).all()
    for row in range(len(before.packets)):
        assert before.packets.payload_of(row) == after.packets.payload_of(row)


def test_a_leak_in_tshark(leak: Path, tmp_path: Path) -> None:
    report, tables = loaded(leak)
    path = tmp_path / "leak.pcapng"
    write_pcapng(report, tables, path)
    same_packets(leak, path)
    (finding,) = [each for each in report.findings if each.rule == "close-wait-leak"]
    shown = tshark(path, "-Y", 'frame.comment contains "close-wait-leak"', "-T", "fields", "-e", "tcp.stream")
    assert len(set(shown)) == len(finding.connections)
    said = subprocess.run(["capinfos", str(path)], capture_output=True, text=True, check=True).stdout
    assert f"sockscope: close-wait-leak (error): {finding.title}" in said


def test_a_leak_in_perfetto(leak: Path, tmp_path: Path) -> None:
    report, tables = loaded(leak)
    path = tmp_path / "leak.pftrace"
    write_perfetto(report, tables, path)
    told = read(path)
    (finding,) = [each for each in report.findings if each.rule == "close-wait-leak"]
    (shown,) = [one for one in told.on("Findings") if one.name.startswith("close-wait-leak")]
    assert shown.begin_ns == finding.evidence[0].time_ns
    troubles, states = query(
        path,
        "select name, value from stats where value > 0 and severity != 'info'",
        "select count(*) as n from slice where name = 'CLOSE_WAIT'",
    )
    assert troubles == []
    assert states[0]["n"] >= len(finding.connections)


def test_every_payload_of_nginx_has_its_call(nginx: Path, tmp_path: Path) -> None:
    report, tables = loaded(nginx)
    path = tmp_path / "nginx.pcapng"
    write_pcapng(report, tables, path)
    same_packets(nginx, path)
    records = tables.packets.records
    payload = (records["payload_bytes"] > 0) & (tables.packet_connection >= 0)
    assert payload.sum() >= 2 * REQUESTS
    assert (tables.packet_event[payload] >= 0).all()
    texts = [tables.event_text(event) for event in tables.packet_event[payload & tables.local_is_source].tolist()]
    assert all(text.startswith(("writev(", "write(", "sendto(", "sendfile(")) for text in texts)
    # Which is what their times say, too.
    sent = np.flatnonzero(payload & tables.local_is_source)
    calls = tables.events.records[tables.packet_event[sent]]
    inside = (calls["enter_ns"] <= tables.packet_ns[sent]) & (tables.packet_ns[sent] <= calls["exit_ns"])
    assert inside.mean() > 0.9
    requests = tshark(path, "-Y", "http.request", "-T", "fields", "-e", "frame.comment")
    assert len(requests) == REQUESTS
    assert all("recvfrom(" in said and "GET / HTTP/1.1" in said and said.startswith("nginx[") for said in requests)
    closes = tshark(
        path, "-Y", "tcp.flags.fin == 1 && frame.packet_flags_direction == 2", "-T", "fields", "-e", "frame.comment"
    )
    assert closes
    assert all("close(" in said or "shutdown(" in said for said in closes)


def test_nginx_in_perfetto(nginx: Path, tmp_path: Path) -> None:
    report, tables = loaded(nginx)
    path = tmp_path / "nginx.pftrace"
    write_perfetto(report, tables, path)
    told = read(path)
    assert len({one.track for one in told.named("epoll_wait")}) == 2
    assert len(told.on("Connections/lives")) == len(report.connections)
    calls = tables.events.records["call"] < 200
    troubles, slices, joined = query(
        path,
        "select name, value from stats where value > 0 and severity != 'info'",
        "select count(*) as n from slice join thread_track t on track_id = t.id where category != 'task'",
        "select count(distinct t.utid) as n from flow f join slice a on f.slice_out = a.id"
        " join slice b on f.slice_in = b.id join thread_track t on b.track_id = t.id where a.name glob '*PSH*'",
    )
    assert troubles == []
    assert slices[0]["n"] == calls.sum()
    assert joined[0]["n"] >= 1
