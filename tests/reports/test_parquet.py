"""Every table as a Parquet file, as pyarrow reads it again."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sockscope.errors import UsageError
from sockscope.model import columns
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.model.findings import Evidence, Finding, Source
from sockscope.model.report import Report
from sockscope.model.tables import SessionTables
from sockscope.model.tcp import TcpFlag
from sockscope.reports.parquet import write_parquet
from tests.analysis.builders import REALTIME_OFFSET_NS, START_NS, Script
from tests.reports.exported import CLIENT, SERVER, exported, leaking

NAMES = ("connections", "events", "evidence", "exchanges", "findings", "packets", "sockets")


def written(report: Report, tables: SessionTables, folder: Path) -> dict[str, pa.Table]:
    """Each file, read again."""
    write_parquet(report, tables, folder)
    return {path.stem: pq.read_table(path) for path in sorted(folder.iterdir())}


def test_every_table_has_all_its_rows(tmp_path: Path) -> None:
    report, tables = exported(leaking(), tmp_path)
    found = written(report, tables, tmp_path / "out")
    assert tuple(found) == NAMES
    assert {name: table.num_rows for name, table in found.items()} == {
        "connections": len(report.connections),
        "events": len(tables.events),
        "evidence": sum(len(finding.evidence) for finding in report.findings),
        "exchanges": len(tables.exchanges),
        "findings": len(report.findings),
        "packets": len(tables.packets),
        "sockets": len(tables.sockets),
    }
    assert all(table.num_rows for table in found.values())


def test_rows_are_told_by_names_and_know_their_connection(tmp_path: Path) -> None:
    found = written(*exported(leaking(), tmp_path), tmp_path / "out")
    events = found["events"].to_pylist()
    assert [row["call"] for row in events] == ["accept4", "recvfrom", "sendto", "recvfrom"]
    assert [row["result"] for row in events] == [7, 18, 19, 0]
    assert {row["connection"] for row in events} == {0}
    first = found["packets"].to_pylist()[0]
    assert (first["source"], first["source_port"], first["destination"]) == ("10.0.0.9", 4000, "10.0.0.1")
    assert (first["connection"], first["from_target"], first["flags"]) == (0, False, int(TcpFlag.SYN))
    assert found["sockets"]["state"].to_pylist() == ["LISTEN", "LISTEN", "CLOSE_WAIT"]
    (connection,) = found["connections"].to_pylist()
    assert (connection["local"], connection["peer"], connection["tgids"]) == ("10.0.0.1:80", "10.0.0.9:4000", [100])
    assert connection["findings"] == ["close-wait-leak"]
    (finding,) = found["findings"].to_pylist()
    assert (finding["rule"], finding["severity"], finding["connections"]) == ("close-wait-leak", "error", [0])
    assert set(found["evidence"]["finding"].to_pylist()) == {finding["finding"]}


def test_what_was_never_called_is_no_event(tmp_path: Path) -> None:
    script = leaking()
    script.event(100, 100, Call.getpeername, fd=7, sockaddr=CLIENT, flags=EventFlag.SEEDED, at=3_500_000)
    last = script.event(100, 100, Call.getpeername, fd=7, sockaddr=CLIENT, at=8_000_000)
    found = written(*exported(script, tmp_path), tmp_path / "out")
    events = found["events"].to_pylist()
    assert [row["call"] for row in events] == ["accept4", "recvfrom", "sendto", "recvfrom", "getpeername"]
    assert (events[-1]["event"], events[-1]["connection"]) == (last, 0)


def test_what_is_not_known_is_null(tmp_path: Path) -> None:
    script = leaking()
    script.event(100, 100, Call.recvfrom, fd=55, ret=-9, at=8_000_000)
    script.event(100, 100, Call.accept4, fd=3, flags=EventFlag.ENTERED_ONLY, at=9_000_000)
    script.event(100, 100, Call.epoll_wait, fd=9, ret=0, flags=EventFlag.NO_ENTRY, at=9_500_000)
    report, tables = exported(script, tmp_path)
    records = tables.events.records
    records["exit_ns"][-2], records["enter_ns"][-1] = -1, -1
    found = written(report, tables, tmp_path / "out")
    stranger, waiting, unentered = found["events"].to_pylist()[-3:]
    assert stranger["connection"] is None
    assert stranger["result"] == -9
    assert (waiting["exit_ns"], waiting["duration_ns"]) == (None, None)
    assert waiting["time"] is not None
    assert (unentered["enter_ns"], unentered["duration_ns"]) == (None, None)
    assert unentered["time"] is not None
    assert found["sockets"]["rtt_us"].to_pylist() == [None, None, None]
    assert None not in found["sockets"]["recv_q"].to_pylist()
    for name, table in found.items():
        for column in table.column_names:
            if column in ("connection", "duration_ns") or (column.endswith("_ns") and name == "exchanges"):
                assert -1 not in table[column].to_pylist(), (name, column)


def test_a_finding_without_a_descriptor_has_null(tmp_path: Path) -> None:
    report, tables = exported(leaking(), tmp_path)
    (finding,) = report.findings
    found = written(replace(report, findings=(replace(finding, fd=None),)), tables, tmp_path / "out")
    assert found["findings"]["fd"].to_pylist() == [None]


def test_times_are_also_moments(tmp_path: Path) -> None:
    report, tables = exported(leaking(), tmp_path)
    found = written(report, tables, tmp_path / "out")
    first = found["events"].to_pylist()[0]
    assert first["enter_ns"] == START_NS + 2_000_000
    assert found["events"]["time"].cast(pa.int64()).to_pylist()[0] == first["enter_ns"] + REALTIME_OFFSET_NS
    assert str(found["packets"].schema.field("time").type) == "timestamp[ns, tz=UTC]"
    moment = found["packets"]["time"].cast(pa.timestamp("us", tz="UTC"), safe=False).to_pylist()[0]
    assert moment == datetime.fromtimestamp((REALTIME_OFFSET_NS + START_NS + 1_000_000) / 1e9, UTC)


def test_only_their_owner_reads_them(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        written(*exported(leaking(), tmp_path), tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o600}


def test_an_empty_session_has_all_columns(tmp_path: Path) -> None:
    full = written(*exported(leaking(), tmp_path), tmp_path / "full")
    empty = written(*exported(Script(), tmp_path), tmp_path / "empty")
    for name in NAMES:
        assert empty[name].num_rows == 0
        assert empty[name].schema.equals(full[name].schema), name


def test_more_rows_than_are_made_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, tables = exported(leaking(), tmp_path)
    whole = written(report, tables, tmp_path / "whole")
    monkeypatch.setattr(columns, "PIECE_ROWS", 2)
    parts = written(report, tables, tmp_path / "parts")
    assert pq.ParquetFile(tmp_path / "parts" / "packets.parquet").num_row_groups == 4
    assert {name: table.to_pylist() for name, table in parts.items()} == {
        name: table.to_pylist() for name, table in whole.items()
    }


@pytest.mark.parametrize("said", ["", "\x1b[31m\0\r\n\u202e", "\ud800 half", "naïve 日本 😀", "x" * 100_000])
def test_odd_text(said: str, tmp_path: Path) -> None:
    report, tables = exported(leaking(), tmp_path)
    (finding,) = report.findings
    odd: Finding = replace(
        finding,
        comm=said,
        title=said,
        explanation=said,
        remedy=said,
        evidence=(Evidence(source=Source.PROC, time_ns=-1, text=said),),
    )
    rows = (replace(report.connections[0], summary=said, wire=said),)
    found = written(replace(report, findings=(odd,), connections=rows), tables, tmp_path / "out")
    plain = said.replace("\ud800", "\\ud800")
    for name in ("comm", "title", "explanation", "remedy"):
        assert found["findings"][name].to_pylist() == [plain]
    assert found["evidence"].to_pylist()[0]["text"] == plain
    assert found["evidence"]["time"].to_pylist() == [None]
    assert (found["connections"]["summary"].to_pylist(), found["connections"]["wire"].to_pylist()) == ([plain], [plain])


def test_packets_alone(tmp_path: Path) -> None:
    script = Script(ports=(80,))
    script.handshake(CLIENT, SERVER)
    found = written(*exported(script, tmp_path), tmp_path / "out")
    assert (found["events"].num_rows, found["packets"].num_rows, found["connections"].num_rows) == (0, 3, 1)


def test_a_file_that_cannot_be_made(tmp_path: Path) -> None:
    report, tables = exported(leaking(), tmp_path)
    (tmp_path / "out" / "findings.parquet").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"cannot write .*findings\.parquet"):
        write_parquet(report, tables, tmp_path / "out")
