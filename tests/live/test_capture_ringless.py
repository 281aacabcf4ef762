"""Where the kernel makes no ring, scapy's socket captures the same, and says that it may lose some."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sockscope.analysis.wire.ends import FlowEnd, flow_end
from sockscope.sources.packets import live
from sockscope.sources.packets.files import read_packets
from sockscope.sources.packets.live import Capture
from sockscope.sources.packets.ring import NoRingError
from tests.live.ringless_capture_process import RefusedRing
from tests.live.test_capture import echo, flows_of, helper_of, settle

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.geteuid() != 0, reason="capture needs CAP_NET_RAW"),
]
NOTE = "lo is captured without a ring (Invalid argument): packets may be lost"


@pytest.fixture(autouse=True)
def _ring_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_MODULE", "tests.live.ringless_capture_process")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def test_the_kernel_refuses_the_ring() -> None:
    with pytest.raises(NoRingError, match="Invalid argument"):
        RefusedRing("lo", [80], snap_bytes=192, ring_bytes=1 << 20)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_every_connection_is_captured_whole_and_once(tmp_path: Path, host: str) -> None:
    path = tmp_path / "packets.pcapng"
    with echo(host) as server, echo(host) as other:
        capture = Capture(interfaces=["lo"], ports=[server.port], path=path)
        before = time.time_ns()
        capture.start()
        assert capture.notes() == (NOTE,)
        server.talk(50, b"x" * 1000)
        other.talk(20)
        settle()
        coverage = capture.stop()
        after = time.time_ns()
    found = read_packets(path)
    flows = flows_of(found)
    assert found.damage is None
    assert found.interfaces == coverage.interfaces == ("lo",)
    assert (coverage.available, coverage.lost_count) == (True, 0)
    assert coverage.seen_count == len(found.packets) == found.frame_count
    assert len(flows) == 50
    for flow in flows:
        assert flow_end(flow) == FlowEnd.BOTH_CLOSED
        assert flow.payload_bytes == (1000, 1000)
        assert flow.retransmission_count == (0, 0)
    records = found.packets.records
    assert before - 1000 <= records["time_ns"].min() <= records["time_ns"].max() <= after + 1000
    data = np.flatnonzero(records["payload_bytes"] == 1000)
    headers = 66 if host == "127.0.0.1" else 86
    # The snap length cuts what is kept, not what is said of the wire.
    assert set(records["wire_bytes"][data].tolist()) == {headers + 1000}
    assert found.packets.payload_of(int(data[0])) == b"x" * (192 - headers)
    assert path.stat().st_mode & 0o777 == 0o600


def test_more_ports_while_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "packets.pcapng"
    with echo() as first, echo() as second, Capture(interfaces=["lo"], ports=[first.port], path=path) as capture:
        second.talk(3)
        settle()
        capture.add_ports([second.port])
        first.talk(3)
        second.talk(3)
        settle()
    assert sorted(f.ends[1].port for f in flows_of(read_packets(path))) == sorted([first.port, second.port] * 3)


def test_credentials_are_masked(tmp_path: Path) -> None:
    path = tmp_path / "packets.pcapng"
    with echo() as server, Capture(interfaces=["lo"], ports=[server.port], path=path, redact=True):
        server.talk(1, b"GET / HTTP/1.1\r\nCookie: abcdef\r\n\r\n")
        settle()
    raw = path.read_bytes()
    assert b"Cookie: ******" in raw
    assert b"abcdef" not in raw


def test_what_the_kernel_drops_is_counted(tmp_path: Path) -> None:
    """The capture process stands still while more comes than its socket holds."""
    path = tmp_path / "packets.pcapng"
    count = 3000
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        capture = Capture(interfaces=["lo"], ports=[receiver.getsockname()[1]], path=path)
        capture.start()
        helper = helper_of(os.getpid())
        os.kill(helper, signal.SIGSTOP)
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _ in range(count):
                    sender.sendto(b"x" * 60000, receiver.getsockname())
        finally:
            os.kill(helper, signal.SIGCONT)
        settle()
        coverage = capture.stop()
    found = read_packets(path)
    assert coverage.lost_count > 0
    assert coverage.seen_count + coverage.lost_count == count
    assert found.dropped_count == coverage.lost_count
    assert len(found.packets) == coverage.seen_count


def test_an_interface_that_goes_down_and_up_again(tmp_path: Path) -> None:
    """In a network namespace of its own, whose loopback may go."""
    if subprocess.run(["unshare", "-n", "true"]).returncode:
        pytest.skip("unshare(2) of the network namespace is not allowed here")
    code = (
        "import subprocess, socket\n"
        "link = lambda way: subprocess.run(['ip', 'link', 'set', 'lo', way], check=True)\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); link('up'); print('READY', flush=True); input()\n"
        "s.sendto(b'x', ('127.0.0.1', 7777)); link('down'); print('DOWN', flush=True); input(); link('up')\n"
        "s.sendto(b'x', ('127.0.0.1', 7777)); print('DONE', flush=True); input()"
    )
    target = subprocess.Popen(
        ["unshare", "-n", sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert target.stdin is not None
    assert target.stdout is not None
    path = tmp_path / "packets.pcapng"
    try:
        assert target.stdout.readline() == "READY\n"
        with Capture(interfaces=["lo"], ports=[7777], path=path, netns_pid=target.pid) as capture:
            for said in ("DOWN\n", "DONE\n"):
                target.stdin.write("\n")
                target.stdin.flush()
                assert target.stdout.readline() == said
                settle()
    finally:
        target.kill()
        target.communicate()
    assert capture.notes() == (NOTE,)
    assert read_packets(path).packets.records["dport"].tolist() == [7777, 7777]
