"""The annotated capture, read back by tshark, capinfos and our own reader."""

from __future__ import annotations

import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sockscope.errors import DamagedInputError, UsageError
from sockscope.model.calls import Call
from sockscope.model.packets import RawFrame
from sockscope.model.report import Report
from sockscope.model.tables import Int64s, SessionTables
from sockscope.model.tcp import SegmentMark, TcpFlag
from sockscope.reports import pcapng
from sockscope.reports.pcapng import write_pcapng
from sockscope.reports.pcapng_blocks import MOST_COMMENT_BYTES, comment, enhanced_packet, section_header
from sockscope.sources.packets.files import read_packets
from tests.analysis.builders import Script
from tests.reports.exported import CLIENT, DATA, SERVER, exported, leaking, listening, marked, tshark

needs_tshark = pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")


def annotated(script: Script, folder: Path) -> Path:
    report, tables = exported(script, folder)
    write_pcapng(report, tables, folder / "out.pcapng")
    return folder / "out.pcapng"


def comments(path: Path) -> list[str]:
    """Of each packet, as tshark shows them, ` | ` between them."""
    return tshark(path, "-T", "fields", "-E", "aggregator=|", "-e", "frame.comment")


@needs_tshark
class TestComments:
    def test_who_got_and_sent_the_bytes_by_which_call(self, tmp_path: Path) -> None:
        found = comments(annotated(leaking(), tmp_path))
        assert found[3] == 'nginx[100] fd 7: recvfrom(7, "GET / HTTP/1.1\\r\\n\\r\\n", 1024, 0) = 18, 1.00 ms after'
        assert found[4] == 'nginx[100] fd 7: sendto(7, "HTTP/1.1 200 OK\\r\\n\\r\\n", 19, 0) = 19, 0.03 ms before'
        assert found[0].startswith("nginx[100] fd 7: accept4(3, ")
        assert (found[2], found[6]) == ("", "")

    def test_a_packet_of_no_known_call_has_its_process(self, tmp_path: Path) -> None:
        script = leaking()
        script.packet(SERVER, CLIENT, DATA, seq=5020, payload=b"unwritten", at=9_000_000)
        assert comments(annotated(script, tmp_path))[-1] == "nginx[100] fd 7"

    def test_an_owner_without_a_descriptor(self, tmp_path: Path) -> None:
        """netstat names none."""
        report, tables = exported(leaking(), tmp_path)
        (row,) = report.connections
        row = replace(row, connection=replace(row.connection, owners=[(100, -1)]))
        nobody = np.full(len(tables.packets), -1, np.int32)
        write_pcapng(replace(report, connections=(row,)), replace(tables, packet_event=nobody), tmp_path / "out.pcapng")
        assert comments(tmp_path / "out.pcapng")[3] == "nginx[100]"

    def test_findings_can_be_filtered(self, tmp_path: Path) -> None:
        path = annotated(leaking(), tmp_path)
        (found,) = tshark(path, "-Y", 'frame.comment contains "close-wait-leak"', "-T", "fields", "-e", "frame.number")
        assert found == "6"
        assert "|sockscope: close-wait-leak (error): 1 connection in CLOSE_WAIT" in comments(path)[5]

    def test_a_finding_without_a_packet_stands_on_the_connections_first(self, tmp_path: Path) -> None:
        report, tables = exported(leaking(), tmp_path)
        (finding,) = report.findings
        write_pcapng(replace(report, findings=(replace(finding, evidence=()),)), tables, tmp_path / "out.pcapng")
        assert [row for row, words in enumerate(comments(tmp_path / "out.pcapng")) if "close-wait-leak" in words] == [0]

    def test_marks_in_words(self, tmp_path: Path) -> None:
        report, tables = exported(leaking(), tmp_path)
        marks = {
            2: int(SegmentMark.RETRANSMISSION | SegmentMark.RTO),
            3: int(SegmentMark.RETRANSMISSION),
            6: int(SegmentMark.DUPLICATE_ACK | SegmentMark.ZERO_WINDOW),
        }
        write_pcapng(report, marked(tables, marks), tmp_path / "out.pcapng")
        found = comments(tmp_path / "out.pcapng")
        assert found[2] == "sockscope: retransmission after a timeout (RTO)"
        assert found[3].endswith("|sockscope: retransmission")
        assert found[6] == "sockscope: duplicate ACK, zero window"

    def test_the_section_says_what_it_is_and_what_was_found(self, tmp_path: Path) -> None:
        path = annotated(leaking(), tmp_path)
        said = subprocess.run(["capinfos", str(path)], capture_output=True, text=True, check=True).stdout
        assert "Packets of a sockscope session: 1 connections, 4 syscalls, 1 findings" in said
        assert "sockscope: close-wait-leak (error)" in said

    def test_beyond_the_limit_calls_are_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pcapng, "MOST_TEXTS", 1)
        assert comments(annotated(leaking(), tmp_path))[4] == "nginx[100] fd 7: sendto(7, …) = 19, 0.03 ms before"

    def test_direction(self, tmp_path: Path) -> None:
        path = annotated(leaking(), tmp_path)
        sent = tshark(path, "-Y", "frame.packet_flags_direction == 2", "-T", "fields", "-e", "frame.number")
        assert sent == ["2", "5", "7"]


class TestFile:
    def test_the_packets_are_the_captures(self, tmp_path: Path) -> None:
        path = annotated(leaking(), tmp_path)
        before, after = read_packets(tmp_path / "capture.pcap"), read_packets(path)
        assert after.damage is None
        assert after.interfaces == ("eth7",)
        for name in before.packets.records.dtype.names or ():
            if name != "payload_offset":
                assert (before.packets.records[name] == after.packets.records[name]).all(), name
        for row in range(len(before.packets)):
            assert before.packets.payload_of(row) == after.packets.payload_of(row)

    def test_only_its_owner_reads_it(self, tmp_path: Path) -> None:
        assert stat.S_IMODE(annotated(leaking(), tmp_path).stat().st_mode) == 0o600

    def test_no_packets(self, tmp_path: Path) -> None:
        report, tables = exported(listening(Script()), tmp_path)
        with pytest.raises(UsageError, match="no packets"):
            write_pcapng(report, tables, tmp_path / "out.pcapng")

    def test_the_capture_has_shrunk(self, tmp_path: Path) -> None:
        report, tables = exported(leaking(), tmp_path)
        with pytest.raises(DamagedInputError, match="fewer packets"):
            write_pcapng(report, replace(tables, frames=lambda rows: iter(())), tmp_path / "out.pcapng")

    def test_an_interface_a_link_type(self, tmp_path: Path) -> None:
        report, tables = exported(leaking(), tmp_path)

        def frames(rows: Int64s) -> Iterator[RawFrame]:
            for row in rows.tolist():
                yield RawFrame(data=bytes(40), link=101 if row % 2 else 1, wire_bytes=40)

        write_pcapng(report, replace(tables, frames=frames), tmp_path / "out.pcapng")
        assert read_packets(tmp_path / "out.pcapng").frame_count == 7
        assert read_packets(tmp_path / "out.pcapng").interfaces == ("eth7", "eth7")

    def test_progress(self, tmp_path: Path) -> None:
        told: list[tuple[str, int, int]] = []
        report, tables = exported(leaking(), tmp_path)
        write_pcapng(report, tables, tmp_path / "out", progress=lambda *now: told.append(now))
        assert told == [("packets", 7, 7)]


def options_of(block: bytes, at: int) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while True:
        code, size = struct.unpack_from("<HH", block, at)
        if code == 0:
            return found
        found.append((code, block[at + 4 : at + 4 + size]))
        at += 4 + (size + 3) // 4 * 4


@given(
    data=st.binary(max_size=70),
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=3),
    time_ns=st.integers(-(2**63), 2**63 - 1),
    wire=st.integers(0, 2**32 - 1),
)
def test_a_block_holds_what_was_put_in(data: bytes, texts: list[str], time_ns: int, wire: int) -> None:
    block = enhanced_packet(
        data,
        wire_bytes=wire,
        time_ns=time_ns,
        interface=3,
        direction=2,
        comments=b"".join(map(comment, texts)),
    )
    kind, total, interface, high, low, captured, said = struct.unpack_from("<7I", block)
    assert (kind, interface, captured, said) == (6, 3, len(data), wire)
    assert total == len(block) == struct.unpack_from("<I", block, len(block) - 4)[0]
    assert total % 4 == 0
    assert high << 32 | low == time_ns % 2**64
    assert block[28 : 28 + len(data)] == data
    found = options_of(block, 28 + (len(data) + 3) // 4 * 4)
    assert found == [*((1, text.encode()) for text in texts), (2, struct.pack("<I", 2))]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=3), st.integers(4000, 9000))
def test_a_long_comment_is_cut_between_characters(text: str, times: int) -> None:
    raw = comment(text * times)
    (size,) = struct.unpack_from("<H", raw, 2)
    assert size <= MOST_COMMENT_BYTES
    raw[4 : 4 + size].decode("utf-8")


def test_the_section_header_has_its_comments() -> None:
    block = section_header("sockscope", ["one", "two"])
    assert options_of(block, 24) == [(1, b"one"), (1, b"two"), (4, b"sockscope")]


@needs_tshark
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=8)
@given(text=st.text(max_size=600), comm=st.text(max_size=16), title=st.text(max_size=200))
def test_odd_texts(text: str, comm: str, title: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("odd")
    report, tables = exported(leaking(), folder)
    write_pcapng(*_odd(report, tables, text, comm, title), folder / "out.pcapng")
    assert len(tshark(folder / "out.pcapng", "-T", "fields", "-e", "frame.number")) == 7
    written = read_packets(folder / "out.pcapng")
    assert written.damage is None
    assert written.frame_count == 7


def _odd(report: Report, tables: SessionTables, text: str, comm: str, title: str) -> tuple[Report, SessionTables]:
    findings = tuple(replace(finding, title=title) for finding in report.findings)
    odd = replace(tables, event_text=lambda event: text, comm=lambda tgid: comm)
    return replace(report, findings=findings), odd


def test_no_syscalls_at_all(tmp_path: Path) -> None:
    script = Script(ports=(80,))
    script.handshake(CLIENT, SERVER)
    script.packet(CLIENT, SERVER, TcpFlag.RST, seq=1001)
    report, tables = exported(script, tmp_path)
    write_pcapng(report, tables, tmp_path / "out.pcapng")
    assert read_packets(tmp_path / "out.pcapng").frame_count == 4
    assert (tables.packet_event == -1).all()
    assert not np.any(tables.event_connection == 0)
    assert Call.unknown not in tables.events.records["call"]
