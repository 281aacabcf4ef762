"""What tshark says of each TCP segment of a capture, in our words, beside what we say."""

from __future__ import annotations

import csv
import io
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sockscope.analysis.wire.flows import WireTables, build_wire
from sockscope.model.packets import Packets
from sockscope.model.tcp import SegmentMark
from sockscope.sources.packets.files import read_packets

FIELDS = {
    "retransmission": SegmentMark.RETRANSMISSION,
    "fast_retransmission": SegmentMark.RETRANSMISSION | SegmentMark.FAST_RETRANSMISSION,
    "spurious_retransmission": SegmentMark.RETRANSMISSION | SegmentMark.SPURIOUS_RETRANSMISSION,
    "out_of_order": SegmentMark.OUT_OF_ORDER,
    "lost_segment": SegmentMark.LOST_BEFORE,
    "ack_lost_segment": SegmentMark.ACKED_UNSEEN,
    "duplicate_ack": SegmentMark.DUPLICATE_ACK,
    "zero_window": SegmentMark.ZERO_WINDOW,
    "zero_window_probe": SegmentMark.ZERO_WINDOW_PROBE,
    "zero_window_probe_ack": SegmentMark.ZERO_WINDOW_PROBE_ACK,
    "window_full": SegmentMark.WINDOW_FULL,
    "window_update": SegmentMark.WINDOW_UPDATE,
    "keep_alive": SegmentMark.KEEP_ALIVE,
    "keep_alive_ack": SegmentMark.KEEP_ALIVE_ACK,
    "reused_ports": SegmentMark.PORT_REUSED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One capture seen by both.

    Attributes:
        packets, wire: ours.
        stream: shape (packets,), tshark's number of the connection.
        theirs: shape (packets,), uint16, what tshark says as `SegmentMark`.
        initial_rtt_ns: stream → tshark's round trip of the handshake.
    """

    packets: Packets
    wire: WireTables
    stream: npt.NDArray[np.int64]
    theirs: npt.NDArray[np.uint16]
    initial_rtt_ns: dict[int, int]


def compare(capture: Path) -> Compared:
    """Both read the file; every frame of it must be TCP."""
    found = read_packets(capture)
    names = [f"tcp.analysis.{name}" for name in FIELDS]
    arguments = ["tshark", "-r", str(capture), "-T", "fields", "-E", "separator=,", "-E", "occurrence=f"]
    for name in ("tcp.stream", "tcp.analysis.initial_rtt", *names):
        arguments += ["-e", name]
    said = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    stream, theirs, rtt = [], [], {}
    for number, initial, *flags in csv.reader(io.StringIO(said)):
        stream.append(int(number))
        marks = SegmentMark(0)
        for flag, mark in zip(flags, FIELDS.values(), strict=True):
            marks |= mark if flag else SegmentMark(0)
        theirs.append(int(marks))
        if initial:
            rtt[int(number)] = round(float(initial) * 1e9)
    assert len(stream) == len(found.packets)
    return Compared(
        packets=found.packets,
        wire=build_wire(found.packets, found.packets.records["time_ns"].astype(np.int64)),
        stream=np.array(stream, np.int64),
        theirs=np.array(theirs, np.uint16),
        initial_rtt_ns=rtt,
    )
