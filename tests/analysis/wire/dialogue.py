"""Hand-made packet tables that read as dialogues."""

from __future__ import annotations

import ipaddress

import numpy as np

from sockscope.analysis.narration.wire_words import mark_words
from sockscope.analysis.wire.flows import WireTables, build_flows, build_wire
from sockscope.model.connections import Flow
from sockscope.model.packets import PACKET_DTYPE, Packets
from sockscope.model.tcp import TcpFlag

MS = 1_000_000
FLAGS = {"S": TcpFlag.SYN, "A": TcpFlag.ACK, "F": TcpFlag.FIN, "R": TcpFlag.RST, "P": TcpFlag.PSH}


class Wire:
    """Packets said one after another, one millisecond apart."""

    def __init__(self, client: str = "10.0.0.1", server: str = "10.0.0.2", *, first: int = 1000, answer: int = 5000):
        self.client, self.server = client, server
        self.isn = [first, answer]
        self.rows: list[tuple[object, ...]] = []
        self.now = 0

    def say(
        self,
        side: int,
        flags: str,
        *,
        at: int = 0,
        ack: int = 0,
        size: int = 0,
        port: int = 40000,
        after_ms: float = 1,
        window: int = 500,
        protocol: int = 6,
        scale: int = -1,
    ) -> Wire:
        """`at` and `ack` count from the initial sequence numbers (the SYN is 0, the first byte 1)."""
        self.now += int(after_ms * MS)
        bits = 0
        for letter in flags:
            bits |= FLAGS[letter]
        ends = ((self.client, port), (self.server, 80))
        (src, sport), (dst, dport) = ends if side == 0 else ends[::-1]
        self.rows.append(
            (
                self.now,
                key(src),
                key(dst),
                sport,
                dport,
                (self.isn[side] + at) % 2**32,
                (self.isn[1 - side] + ack) % 2**32 if "A" in flags else 0,
                window,
                bits,
                protocol,
                size,
                size + 54,
                0,
                0,
                0,
                scale,
                0,
            )
        )
        return self

    def handshake(self, port: int = 40000) -> Wire:
        self.say(0, "S", port=port).say(1, "SA", ack=1, port=port)
        return self.say(0, "A", at=1, ack=1, port=port)

    def packets(self) -> Packets:
        return Packets(records=np.array(self.rows, PACKET_DTYPE), raw=np.zeros(0, np.uint8))

    def flows(self) -> list[Flow]:
        packets = self.packets()
        flows, packet_flow = build_flows(packets, packets.records["time_ns"].copy())
        assert len(packet_flow) == len(packets)
        assert [f.id for f in flows] == list(range(len(flows)))
        for flow in flows:
            assert int((packet_flow == flow.id).sum()) == sum(flow.packet_count)
        return list(flows)

    def flow(self) -> Flow:
        (flow,) = self.flows()
        return flow

    def tables(self) -> WireTables:
        packets = self.packets()
        return build_wire(packets, packets.records["time_ns"].copy())

    def told(self) -> list[str]:
        """Each packet's mark in words."""
        return [mark_words(mark) for mark in self.tables().packet_marks.tolist()]

    def facts(self) -> np.void:
        """Of the one flow."""
        found: np.void
        (found,) = self.tables().flow_facts
        return found


def key(address: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    packed = ipaddress.ip_address(address).packed
    return np.frombuffer(packed if len(packed) == 16 else b"\0" * 10 + b"\xff\xff" + packed, np.uint8)
