"""tshark's TCP analysis and ours, segment by segment: equal, but for the differences that docs/wire.md names.

Real stacks talk over a path that loses, doubles and reorders; both ends are captured; and of these captures, others
are made: with holes, begun in the middle, of one side only. With SOCKSCOPE_BY_HAND in the environment over many more
paths (about five minutes).
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from sockscope.model.tcp import SegmentMark as Mark
from sockscope.model.tcp import TcpFlag
from tests.live import wire_traffic
from tests.live.flow_story import Story
from tests.live.lossy_network import CLIENT, CLIENT_6, SERVER, SERVER_6, Network, Weather, captured, network
from tests.live.mark_differences import Differences
from tests.live.tshark_marks import Compared, compare

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("tshark", "tcpdump", "editcap"))), reason="needs tshark, tcpdump and editcap"
    ),
]

ROOT = Path(__file__).parents[2]
DOCUMENTED = (ROOT / "docs" / "wire.md").read_text("utf-8") if (ROOT / "docs" / "wire.md").exists() else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    """What is done, and over what."""

    weather: Weather
    host: str = SERVER
    offload: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    clients: Sequence[str] = (*wire_traffic.CLIENTS, *wire_traffic.MORE)
    client_captures: str = ""
    """The interface; empty: that of the path."""


FINE = Weather()
LOSS = Weather(delay_s=0.005, loss=0.03, duplicates=0.01, reordering=0.03)
JOURNEYS = {
    "fine": Journey(weather=FINE, clients=tuple(wire_traffic.CLIENTS)),
    "foul": Journey(weather=LOSS, clients=(*wire_traffic.CLIENTS, "bulk", "upload")),
    # Segments far above the MTU are what is lost here.
    "odd": Journey(weather=LOSS, host=SERVER_6, offload=True, settings={"tcp_fastopen": "3"}),
}
BY_HAND = {
    "calm": Journey(weather=FINE),
    "losing": Journey(weather=Weather(delay_s=0.005, loss=0.03)),
    "reordering": Journey(weather=Weather(delay_s=0.005, reordering=0.25, reordering_s=0.002)),
    "doubling": Journey(weather=Weather(delay_s=0.002, duplicates=0.02), client_captures="any"),
    "jitter": Journey(weather=Weather(delay_s=0.035, jitter_s=0.01)),
    "narrow": Journey(weather=Weather(delay_s=0.005, bytes_s=300_000, queued_s=0.03)),
    "no SACK": Journey(weather=LOSS, settings={"tcp_sack": "0"}),
    "no options": Journey(weather=LOSS, settings={"tcp_sack": "0", "tcp_timestamps": "0", "tcp_window_scaling": "0"}),
    "offload": Journey(weather=LOSS, offload=True),
    "IPv6": Journey(weather=LOSS, host=SERVER_6),
    "all at once": Journey(
        weather=Weather(
            delay_s=0.02, loss=0.05, duplicates=0.03, reordering=0.1, reordering_s=0.01, jitter_s=0.01, bytes_s=500_000
        ),
        offload=True,
        settings={"tcp_fastopen": "3"},
    ),
}
if "SOCKSCOPE_BY_HAND" in os.environ:
    JOURNEYS |= BY_HAND


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one end of a journey saw."""

    file: Path
    compared: Compared


@contextmanager
def serving(net: Network) -> Iterator[None]:
    program = ["ip", "netns", "exec", net.server, sys.executable, wire_traffic.__file__, "serve"]
    server = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == "ready\n"
        yield
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


@pytest.fixture(scope="module", params=JOURNEYS)
def captures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Seen, Seen]:
    """(the journey, what the client's end saw, what the server's end saw)."""
    name: str = request.param
    journey = JOURNEYS[name]
    folder = tmp_path_factory.mktemp(name)
    # tcpdump gives up root, and writes as somebody who may not look into a folder of root's.
    near, far = folder / "client.pcap", folder / "server.pcap"
    way = network(journey.weather, f"ssw{os.getpid() % 100000}", offload=journey.offload, settings=journey.settings)
    with (
        way as net,
        serving(net),
        captured(net.client, journey.client_captures or net.client, near),
        captured(net.server, net.server, far),
    ):
        program = ["ip", "netns", "exec", net.client, sys.executable, wire_traffic.__file__, journey.host]
        subprocess.run([*program, *journey.clients], check=True, timeout=90)
    return name, Seen(file=near, compared=compare(near)), Seen(file=far, compared=compare(far))


def differences(compared: Compared) -> Counter[str]:
    """How many of each kind; fails on one that none explains."""
    found = Counter[str]()
    unexplained = []
    for frame, names in Differences(compared).each():
        found.update(names.split())
        if not names:
            ours = Mark(int(compared.wire.packet_marks[frame - 1]))
            unexplained.append((frame, str(ours), str(Mark(int(compared.told.marks[frame - 1])))))
    assert not unexplained
    assert all(f"`{name}`" in DOCUMENTED for name in found)
    return found


def has(compared: Compared, mark: Mark) -> int:
    return int(((compared.wire.packet_marks & np.uint16(mark)) != 0).sum())


def facts_at(compared: Compared, port: int) -> np.void:
    """Of the first connection to that port."""
    flow = next(one for one in compared.wire.flows if one.ends[1].port == port)
    found: np.void = compared.wire.flow_facts[flow.id]
    return found


def test_every_segment_is_marked_alike_at_both_ends(captures: tuple[str, Seen, Seen]) -> None:
    name, *ends = captures
    for compared in (end.compared for end in ends):
        found = differences(compared)
        assert len(compared.wire.flows) == compared.told.stream.max() + 1 > len(wire_traffic.CLIENTS)
        for mark in (
            Mark.ZERO_WINDOW,
            Mark.ZERO_WINDOW_PROBE,
            Mark.WINDOW_FULL,
            Mark.WINDOW_UPDATE,
            Mark.KEEP_ALIVE,
            Mark.KEEP_ALIVE_ACK,
            Mark.PORT_REUSED,
        ):
            assert has(compared, mark), mark
        if name == "foul":
            for mark in (Mark.FAST_RETRANSMISSION, Mark.RTO, Mark.DUPLICATE_ACK, Mark.LOST_BEFORE):
                assert has(compared, mark), mark
        if name == "fine":
            assert set(found) == {"closed-window"}


def test_the_round_trip_of_each_handshake_is_the_same(captures: tuple[str, Seen, Seen]) -> None:
    _, *ends = captures
    for compared in (end.compared for end in ends):
        records = compared.packets.records
        opens = records["flags"] & np.uint8(TcpFlag.SYN | TcpFlag.ACK) == np.uint8(TcpFlag.SYN)
        acks = records["flags"] & np.uint8(TcpFlag.SYN | TcpFlag.ACK) == np.uint8(TcpFlag.ACK)
        for flow in range(len(compared.wire.flows)):
            assert Story(compared, flow).round_trip_ns() == compared.wire.flow_facts["handshake_rtt_ns"][flow]
        for stream, theirs in compared.told.initial_rtt_ns.items():
            rows = np.flatnonzero(compared.told.stream == stream)
            ours = compared.wire.flow_facts["handshake_rtt_ns"][compared.wire.packet_flow[rows[0]]]
            # tshark takes the first ACK of all for the end of the handshake.
            end = rows[acks[rows]][0]
            begin = rows[opens[rows] & (rows < end)][-1]
            assert theirs in (ours, records["time_ns"][end] - records["time_ns"][begin])


def test_what_each_connection_went_through(captures: tuple[str, Seen, Seen]) -> None:
    name, near, _ = captures
    compared = near.compared
    assert (compared.wire.flow_facts["seen_sides"] == 3).all()
    assert not compared.wire.flow_facts["began_before"].any()
    assert facts_at(compared, 7999)["reset_side"] == 1
    assert facts_at(compared, wire_traffic.IDLE)["keep_alives"].sum() >= 2
    assert facts_at(compared, wire_traffic.SLOW)["zero_windows"].tolist()[1] == 0
    assert facts_at(compared, wire_traffic.SLOW)["zero_windows"].tolist()[0] >= 2
    assert facts_at(compared, wire_traffic.HALF)["half_close_ns"] > 150_000_000
    assert compared.wire.flow_facts["port_reused"].any()
    if name == "fine":
        # The answers' second halves wait for the client's delayed ACK; at first Linux does not delay it.
        stalls = facts_at(compared, wire_traffic.PIECES)
        assert stalls["delayed_ack_stalls"].tolist()[0] >= 1
        assert stalls["longest_stall_ns"].tolist()[0] > 35_000_000


def test_captures_with_holes(captures: tuple[str, Seen, Seen], tmp_path: Path) -> None:
    for number, end in enumerate(captures[1:]):
        count = len(end.compared.packets)
        gone = random.Random(number).sample(range(1, count), count // 20)
        holed = tmp_path / f"holed{number}.pcap"
        subprocess.run(["editcap", str(end.file), str(holed), *map(str, sorted(gone)[:500])], check=True)
        compared = compare(holed)
        differences(compared)
        assert has(compared, Mark.ACKED_UNSEEN)


def test_captures_that_begin_in_the_middle(captures: tuple[str, Seen, Seen], tmp_path: Path) -> None:
    for number, end in enumerate(captures[1:]):
        rest = tmp_path / f"rest{number}.pcap"
        subprocess.run(["editcap", str(end.file), str(rest), "1-300"], check=True)
        compared = compare(rest)
        differences(compared)
        assert compared.wire.flow_facts["began_before"].any()


@pytest.mark.parametrize("side", [0, 1])
def test_captures_of_one_side(captures: tuple[str, Seen, Seen], tmp_path: Path, side: int) -> None:
    """As the other end saw it: with what the path did to it."""
    _, *ends = captures
    half = tmp_path / "half.pcap"
    wanted = " or ".join(f"src host {host}" for host in ((CLIENT, CLIENT_6), (SERVER, SERVER_6))[side])
    arguments = ["tcpdump", "-Z", "root", "-r", str(ends[1 - side].file), "-w", str(half), wanted]
    subprocess.run(arguments, check=True, capture_output=True)
    compared = compare(half)
    differences(compared)
    assert set(compared.wire.flow_facts["seen_sides"].tolist()) <= {1, 2}
    assert not has(compared, Mark.DUPLICATE_ACK | Mark.ACKED_UNSEEN | Mark.SPURIOUS_RETRANSMISSION)


@pytest.mark.skipif(not (shutil.which("nginx") and shutil.which("wrk")), reason="needs nginx and wrk")
def test_loopback_at_full_speed(tmp_path: Path) -> None:
    """Segments far above the MTU, no checksums, cut by the snap length: nothing is wrong, and nobody says so."""
    space, capture = f"sswl{os.getpid() % 100000}", tmp_path / "nginx.pcap"
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error; worker_processes 1; user root;"
        "events {} http { access_log off; server { listen 127.0.0.1:8090; "
        f'location / {{ return 200 "hello"; }} location /large {{ root {tmp_path}; }} }} }}'
    )
    (tmp_path / "large").write_bytes(b"x" * 300_000)
    subprocess.run(["ip", "netns", "add", space], check=True)
    try:
        subprocess.run(["ip", "-n", space, "link", "set", "lo", "up"], check=True)
        inside = ["ip", "netns", "exec", space]
        server = subprocess.Popen([*inside, "nginx", "-c", str(tmp_path / "nginx.conf")])
        try:
            time.sleep(0.5)
            with captured(space, "lo", capture):
                for address in ("http://127.0.0.1:8090/", "http://127.0.0.1:8090/large"):
                    subprocess.run([*inside, "wrk", "-t1", "-c4", "-d1", address], check=True, capture_output=True)
        finally:
            server.terminate()
            server.wait()
    finally:
        subprocess.run(["ip", "netns", "del", space], check=True)
    compared = compare(capture)
    assert len(compared.told.stream) > 1000
    assert int(compared.packets.records["payload_bytes"].max()) > 10_000
    differences(compared)
