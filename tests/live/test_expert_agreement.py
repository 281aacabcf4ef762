"""tshark's TCP analysis and ours, segment by segment: equal, but for the differences that docs/wire.md names.

Real stacks talk over a path that loses, doubles and reorders; both ends are captured; and of these captures, others
are made: with holes, begun in the middle, of one side only.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from sockscope.model.tcp import SegmentMark as Mark
from tests.live import wire_traffic
from tests.live.lossy_network import CLIENT, SERVER, Network, Weather, captured, network
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
WEATHERS = {
    "fine": (Weather(), tuple(wire_traffic.CLIENTS)),
    "foul": (
        Weather(delay_s=0.005, loss=0.03, duplicates=0.01, reordering=0.03),
        (*wire_traffic.CLIENTS, "bulk", "upload"),
    ),
}
DOCUMENTED = (ROOT / "docs" / "wire.md").read_text("utf-8") if (ROOT / "docs" / "wire.md").exists() else ""


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


@pytest.fixture(scope="module", params=WEATHERS)
def captures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """(weather, what the client's end saw, what the server's end saw)."""
    name: str = request.param
    weather, clients = WEATHERS[name]
    folder = tmp_path_factory.mktemp(name)
    # tcpdump gives up root, and writes as somebody who may not look into a folder of root's.
    near, far = folder / "client.pcap", folder / "server.pcap"
    with (
        network(weather, f"ssw{os.getpid() % 100000}") as net,
        serving(net),
        captured(net.client, net.client, near),
        captured(net.server, net.server, far),
    ):
        program = ["ip", "netns", "exec", net.client, sys.executable, wire_traffic.__file__, *clients]
        subprocess.run(program, check=True, timeout=90)
    return name, near, far


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


def test_every_segment_is_marked_alike_at_both_ends(captures: tuple[str, Path, Path]) -> None:
    weather, *files = captures
    for file in files:
        compared = compare(file)
        found = differences(compared)
        connections = wire_traffic.CLIENTS.keys()
        assert len(compared.wire.flows) == compared.told.stream.max() + 1 >= len(connections) + 1
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
        if weather == "foul":
            for mark in (Mark.FAST_RETRANSMISSION, Mark.RTO, Mark.DUPLICATE_ACK, Mark.LOST_BEFORE):
                assert has(compared, mark), mark
        else:
            assert set(found) == {"closed-window"}


def test_the_round_trip_of_each_handshake_is_the_same(captures: tuple[str, Path, Path]) -> None:
    _, *files = captures
    for file in files:
        compared = compare(file)
        for stream, theirs in compared.told.initial_rtt_ns.items():
            flow = int(compared.wire.packet_flow[np.flatnonzero(compared.told.stream == stream)[0]])
            ours = int(compared.wire.flow_facts["handshake_rtt_ns"][flow])
            # tshark takes the RST that refuses a connection for the end of its handshake.
            one = compared.wire.flows[flow]
            refused = one.established_ns is None
            # And a challenge ACK of the connection before, which the client resets, for the answer to the SYN.
            reset_ns = one.rst_ns[0]
            challenged = reset_ns is not None and one.established_ns is not None and reset_ns < one.established_ns
            assert ours == theirs or (refused and ours == -1) or challenged


def test_what_each_connection_went_through(captures: tuple[str, Path, Path]) -> None:
    weather, near, _ = captures
    compared = compare(near)
    assert (compared.wire.flow_facts["seen_sides"] == 3).all()
    assert not compared.wire.flow_facts["began_before"].any()
    assert facts_at(compared, 7999)["reset_side"] == 1
    assert facts_at(compared, wire_traffic.IDLE)["keep_alives"].sum() >= 2
    assert facts_at(compared, wire_traffic.SLOW)["zero_windows"].tolist()[1] == 0
    assert facts_at(compared, wire_traffic.SLOW)["zero_windows"].tolist()[0] >= 2
    assert facts_at(compared, wire_traffic.HALF)["half_close_ns"] > 150_000_000
    assert compared.wire.flow_facts["port_reused"].sum() == 1
    if weather == "fine":
        # The answers' second halves wait for the client's delayed ACK; at first Linux does not delay it.
        stalls = facts_at(compared, wire_traffic.PIECES)
        assert stalls["delayed_ack_stalls"].tolist()[0] >= 1
        assert stalls["longest_stall_ns"].tolist()[0] > 35_000_000


def test_captures_with_holes(captures: tuple[str, Path, Path], tmp_path: Path) -> None:
    for number, file in enumerate(captures[1:]):
        count = len(compare(file).told.stream)
        gone = random.Random(number).sample(range(1, count), count // 20)
        holed = tmp_path / f"holed{number}.pcap"
        subprocess.run(["editcap", str(file), str(holed), *map(str, sorted(gone)[:500])], check=True)
        compared = compare(holed)
        differences(compared)
        assert has(compared, Mark.ACKED_UNSEEN)


def test_captures_that_begin_in_the_middle(captures: tuple[str, Path, Path], tmp_path: Path) -> None:
    for number, file in enumerate(captures[1:]):
        rest = tmp_path / f"rest{number}.pcap"
        subprocess.run(["editcap", str(file), str(rest), "1-300"], check=True)
        compared = compare(rest)
        differences(compared)
        assert compared.wire.flow_facts["began_before"].any()


@pytest.mark.parametrize("side", [CLIENT, SERVER])
def test_captures_of_one_side(captures: tuple[str, Path, Path], tmp_path: Path, side: str) -> None:
    for number, file in enumerate(captures[1:]):
        half = tmp_path / f"half{number}.pcap"
        arguments = ["tcpdump", "-Z", "root", "-r", str(file), "-w", str(half), f"src host {side}"]
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
