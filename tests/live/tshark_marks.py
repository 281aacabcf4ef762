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
class Told:
    """What tshark says of a capture's frames.

    Attributes:
        stream: shape (frames,), its number of the connection.
        marks: shape (frames,), uint16, as `SegmentMark`.
        initial_rtt_ns: stream → the round trip of the handshake.
    """

    stream: npt.NDArray[np.int64]
    marks: npt.NDArray[np.uint16]
    initial_rtt_ns: dict[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One capture seen by both.

    Attributes:
        packets, wire: ours.
        told: tshark's, of each packet.
    """

    packets: Packets
    wire: WireTables
    told: Told


def compare(capture: Path) -> Compared:
    """Both read the file; every frame of it must be TCP."""
    packets, told = read_packets(capture).packets, tshark(capture)
    assert len(told.stream) == len(packets)
    return Compared(packets=packets, wire=wire_of(packets), told=told)


def wire_of(packets: Packets) -> WireTables:
    return build_wire(packets, packets.records["time_ns"].astype(np.int64))


def tshark(capture: Path) -> Told:
    """Its TCP analysis, the frames' marks in our words."""
    names = [f"tcp.analysis.{name}" for name in FIELDS]
    arguments = ["tshark", "-r", str(capture), "-T", "fields", "-E", "separator=,", "-E", "occurrence=f"]
    for name in ("tcp.stream", "tcp.analysis.initial_rtt", *names):
        arguments += ["-e", name]
    said = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    stream, marks, rtt = [], [], {}
    for number, initial, *flags in csv.reader(io.StringIO(said)):
        stream.append(int(number))
        found = SegmentMark(0)
        for flag, mark in zip(flags, FIELDS.values(), strict=True):
            found |= mark if flag else SegmentMark(0)
        marks.append(int(found))
        if initial:
            rtt[int(number)] = round(float(initial) * 1e9)
    return Told(stream=np.array(stream, np.int64), marks=np.array(marks, np.uint16), initial_rtt_ns=rtt)
