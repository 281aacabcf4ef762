"""Sessions written by hand, with a real capture file of their packets, as exports are given them."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np

from sockscope.analysis.build import build_session
from sockscope.model.calls import Call
from sockscope.model.packets import Packets
from sockscope.model.report import Report
from sockscope.model.tables import SessionTables
from sockscope.model.tcp import TcpFlag, TcpState
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.export import session_tables
from sockscope.sources.packets.files import read_packets
from tests.analysis.builders import Script, address

SERVER, CLIENT = address("10.0.0.1", 80), address("10.0.0.9", 4000)
DATA = TcpFlag.PSH | TcpFlag.ACK


def listening(script: Script) -> Script:
    """One process, nginx[100], listening on SERVER as fd 3."""
    script.process(100, comm="nginx")
    script.seed_fd(100, 3, inode=11)
    script.snapshot(at=0)
    script.socket_row(SERVER, None, TcpState.LISTEN, inode=11, owners=[(100, 3)])
    return script


def leaking(script: Script | None = None) -> Script:
    """A request, its answer, the peer's FIN, and no close."""
    script = listening(script or Script())
    script.handshake(CLIENT, SERVER, at=1_000_000)
    script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=CLIENT, at=2_000_000)
    script.packet(CLIENT, SERVER, DATA, seq=1001, ack=5001, payload=b"GET / HTTP/1.1\r\n\r\n", at=3_000_000)
    script.event(100, 100, Call.recvfrom, 0, 1024, fd=7, ret=18, payload=b"GET / HTTP/1.1\r\n\r\n", at=4_000_000)
    script.event(100, 100, Call.sendto, 0, 19, fd=7, ret=19, payload=b"HTTP/1.1 200 OK\r\n\r\n", at=5_000_000)
    script.packet(SERVER, CLIENT, DATA, seq=5001, ack=1019, payload=b"HTTP/1.1 200 OK\r\n\r\n", at=5_030_000)
    script.packet(CLIENT, SERVER, TcpFlag.FIN | TcpFlag.ACK, seq=1019, ack=5020, at=6_000_000)
    script.packet(SERVER, CLIENT, TcpFlag.ACK, seq=5020, ack=1020, at=6_010_000)
    script.event(100, 100, Call.recvfrom, 0, 1024, fd=7, ret=0, at=7_000_000)
    script.snapshot(at=3_000_000_000)
    script.socket_row(SERVER, None, TcpState.LISTEN, inode=11, owners=[(100, 3)])
    script.socket_row(SERVER, CLIENT, TcpState.CLOSE_WAIT, inode=12, owners=[(100, 7)])
    return script.ends(12_000_000_000)


def frame(packets: Packets, row: int) -> bytes:
    """Ethernet, IPv4 and TCP around a packet's payload; checksums are left out."""
    one = packets.records[row]
    payload = packets.payload_of(row)
    tcp = struct.pack(
        "!HHIIBBHHH",
        *(int(one[name]) for name in ("sport", "dport", "seq", "ack")),
        5 << 4,
        int(one["flags"]),
        int(one["window"]),
        0,
        0,
    )
    source, destination = bytes(one["src"])[12:], bytes(one["dst"])[12:]
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + len(payload), 0, 0, 64, 6, 0, source, destination)
    return bytes(12) + b"\x08\x00" + ip + tcp + payload


def write_capture(packets: Packets, path: Path) -> Path:
    """A pcap file in nanoseconds (https://www.tcpdump.org/manpages/pcap-savefile.5.html)."""
    parts = [struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 1 << 18, 1)]
    for row in range(len(packets)):
        data = frame(packets, row)
        seconds, rest = divmod(int(packets.records["time_ns"][row]), 1_000_000_000)
        parts.append(struct.pack("<IIII", seconds, rest, len(data), len(data)) + data)
    path.write_bytes(b"".join(parts))
    return path


def exported(script: Script, folder: Path) -> tuple[Report, SessionTables]:
    """Read, joined and judged; the session's capture is `folder/capture.pcap`."""
    capture = write_capture(script.packets(), folder / "capture.pcap")
    info = script.info()
    session = build_session(
        info=replace(info, packets=replace(info.packets, interfaces=("eth7",))),
        seed=script.seed(),
        events=script.events(),
        packets=read_packets(capture).packets,
        sockets=script.sockets(),
        facts=script.facts(),
    )
    session.captures = (capture,)
    return make_report(session), session_tables(session)


def tshark(path: Path, *arguments: str) -> list[str]:
    """Its lines."""
    done = subprocess.run(
        ["tshark", "-n", "-r", str(path), *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.splitlines()


def marked(tables: SessionTables, marks: dict[int, int]) -> SessionTables:
    """The tables with these segment marks in place of theirs."""
    packet_marks = np.zeros(len(tables.packets), np.uint16)
    for row, mark in marks.items():
        packet_marks[row] = mark
    return replace(tables, packet_marks=packet_marks)
