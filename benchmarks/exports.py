"""How long the exports of a big session take, and how much memory, beside the libraries that could write them.

    python -m benchmarks.exports [--events 1000000] [--connections 50000] [--packets 200000] [--folder DIR]

The Perfetto trace is of the synthetic session of benchmarks/analysis.py, the pcapng of as many packets of 300 bytes,
half of them with the text of a call. Peers: the same number of bare TrackEvent packets (two a slice, no annotation)
by `perfetto.trace_builder`, and of packets with one comment by scapy's PcapNgWriter, a tenth of them each. Seconds are
CPU time; memory is what the export adds to the peak of the process.

Last, on two cores of a busy machine:

    perfetto, 950000 events               8.3 s     134 MB,    75 MB of memory
      the package perfetto, bare slices: 8.7 s, 1.1 times as long
    pcapng, 2000000 packets              21.7 s     822 MB,   184 MB of memory
      the writing alone: 4.0 s; scapy: 15.4 s, 3.8 times as long
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.analysis import PORT, synthesise
from sockscope.analysis.build import build_session
from sockscope.model.packets import PACKET_DTYPE, Packets, RawFrame
from sockscope.model.report import Report
from sockscope.model.tables import Int64s, SessionTables
from sockscope.model.tcp import TcpFlag
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.export import session_tables
from sockscope.reports.pcapng import write_pcapng
from sockscope.reports.pcapng_blocks import comment, enhanced_packet, interface_description, section_header
from sockscope.reports.perfetto import write_perfetto

PEER_SHARE = 10
FRAME_BYTES = 300


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def with_packets(tables: SessionTables, count: int) -> SessionTables:
    """The tables with `count` packets in place of theirs, half of them sent by calls of the session."""
    records = np.zeros(count, PACKET_DTYPE)
    records["time_ns"] = np.arange(count) * 1000
    records["protocol"], records["sport"], records["flags"] = 6, PORT, TcpFlag.PSH | TcpFlag.ACK
    records["payload_bytes"], records["wire_bytes"] = FRAME_BYTES - 54, FRAME_BYTES
    calls = np.arange(count) % len(tables.events)
    data = bytes(FRAME_BYTES)

    def frames(rows: Int64s) -> Iterator[RawFrame]:
        return (RawFrame(data=data, link=1, wire_bytes=FRAME_BYTES) for _ in rows)

    return replace(
        tables,
        packets=Packets(records=records, raw=np.zeros(0, np.uint8)),
        packet_ns=records["time_ns"].astype(np.int64),
        packet_connection=np.zeros(count, np.int32),
        packet_marks=np.zeros(count, np.uint16),
        local_is_source=np.ones(count, np.bool_),
        packet_event=np.where(np.arange(count) % 2, calls, -1).astype(np.int32),
        frames=frames,
    )


def perfetto_package(path: Path, slices: int) -> float:
    """Seconds for as many bare slices."""
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent
    from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder

    began = time.process_time()
    with path.open("wb") as file:
        builder = StreamingTraceProtoBuilder(file)
        for number in range(slices):
            for kind in (TrackEvent.TYPE_SLICE_BEGIN, TrackEvent.TYPE_SLICE_END):
                packet = builder.create_packet()
                packet.timestamp = number * 1000 + kind
                packet.trusted_packet_sequence_id = 1
                packet.track_event.type = kind
                packet.track_event.track_uuid = 1
                packet.track_event.name_iid = 1
                builder.write_packet(packet)
    return time.process_time() - began


def scapy(path: Path, count: int) -> float:
    """Seconds for as many packets."""
    from scapy.utils import PcapNgWriter

    data = bytes(FRAME_BYTES)
    began = time.process_time()
    writer = PcapNgWriter(str(path))
    writer.write_header(data)
    for number in range(count):
        writer._write_packet(
            data, linktype=1, sec=number, usec=1, caplen=FRAME_BYTES, wirelen=FRAME_BYTES, comments=[b"x" * 80]
        )
    writer.close()
    return time.process_time() - began


def blocks(path: Path, count: int) -> float:
    """Seconds for the same by our own blocks."""
    data = bytes(FRAME_BYTES)
    began = time.process_time()
    with path.open("wb") as file:
        file.write(section_header("benchmark", ()) + interface_description("", 1))
        for number in range(count):
            file.write(
                enhanced_packet(data, wire_bytes=FRAME_BYTES, time_ns=number, interface=0, comments=comment("x" * 80))
            )
    return time.process_time() - began


def told(what: str, seconds: float, path: Path, before_mb: float) -> None:
    size = path.stat().st_size / 1e6
    print(f"{what:34} {seconds:6.1f} s {size:7.0f} MB, {max(0.0, peak_mb() - before_mb):5.0f} MB of memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=50_000)
    parser.add_argument("--packets", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, help="keep the files there")
    given = parser.parse_args()
    seed, events, packets, sockets, info = synthesise(given.events, given.connections)
    session = build_session(info=info, seed=seed, events=events, packets=packets, sockets=sockets)
    report: Report = make_report(session)
    tables = session_tables(session)
    with tempfile.TemporaryDirectory() as made:
        folder = given.folder or Path(made)
        began, before = time.process_time(), peak_mb()
        trace = folder / "trace.pftrace"
        write_perfetto(report, tables, trace)
        ours = time.process_time() - began
        told(f"perfetto, {len(events)} events", ours, trace, before)
        try:
            theirs = perfetto_package(folder / "peer.pftrace", len(events) // PEER_SHARE) * PEER_SHARE
            print(f"  the package perfetto, bare slices: {theirs:.1f} s, {theirs / ours:.1f} times as long")
        except ImportError:
            print("  pip install perfetto, to compare")
        began, before = time.process_time(), peak_mb()
        capture = folder / "annotated.pcapng"
        write_pcapng(report, with_packets(tables, given.packets), capture)
        ours = time.process_time() - began
        told(f"pcapng, {given.packets} packets", ours, capture, before)
        alone = blocks(folder / "blocks.pcapng", given.packets // PEER_SHARE) * PEER_SHARE
        theirs = scapy(folder / "peer.pcapng", given.packets // PEER_SHARE) * PEER_SHARE
        print(f"  the writing alone: {alone:.1f} s; scapy: {theirs:.1f} s, {theirs / alone:.1f} times as long")


if __name__ == "__main__":
    main()
