"""Live capture on loopback: all of it, once, of the wanted ports only, readable whatever happens."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from sockscope.analysis.wire.ends import FlowEnd, flow_end
from sockscope.analysis.wire.flows import build_flows, monotonic_ns
from sockscope.errors import CannotObserveError
from sockscope.model.connections import Flow
from sockscope.model.sockaddr import Address
from sockscope.sources.packets.capture_protocol import Operation, Request
from sockscope.sources.packets.files import PacketFile, read_packets
from sockscope.sources.packets.live import Capture, interfaces_for

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.geteuid() != 0, reason="capture needs CAP_NET_RAW"),
]


class Echo:
    """A server that answers each connection's bytes and closes after it."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=128)
        self.address = self._listener.getsockname()[:2]
        self.port: int = self.address[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data)

    def talk(self, times: int, payload: bytes = b"hello") -> None:
        for _ in range(times):
            with socket.create_connection(self.address) as client:
                client.sendall(payload)
                got = 0
                while got < len(payload):
                    got += len(client.recv(65536))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def echo(host: str = "127.0.0.1") -> Iterator[Echo]:
    server = Echo(host)
    try:
        yield server
    finally:
        server.close()


def settle() -> None:
    """Until the last acknowledgments have been sent."""
    time.sleep(0.1)


def flows_of(found: PacketFile) -> list[Flow]:
    return list(build_flows(found.packets, monotonic_ns(found.packets, ()))[0])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_every_connection_is_captured_whole_and_once(tmp_path: Path, host: str) -> None:
    path = tmp_path / "packets.pcapng"
    with echo(host) as server, echo(host) as other:
        capture = Capture(interfaces=["lo"], ports=[server.port], path=path)
        before = time.time_ns()
        capture.start()
        server.talk(50, b"x" * 1000)
        other.talk(20)
        settle()
        coverage = capture.stop()
        after = time.time_ns()
    found = read_packets(path)
    flows = flows_of(found)
    assert found.damage is None
    assert found.interfaces == ("lo",)
    assert found.dropped_count == 0
    assert (coverage.available, coverage.lost_count) == (True, 0)
    assert coverage.seen_count == len(found.packets) == found.frame_count
    assert len(flows) == 50
    for flow in flows:
        assert flow.ends[1].port == server.port
        assert flow.established_ns is not None
        assert flow_end(flow) == FlowEnd.BOTH_CLOSED
        assert None not in flow.fin_acked_ns
        assert flow.payload_bytes == (1000, 1000)
        # Seen twice, all of it would count as sent again.
        assert flow.retransmission_count == (0, 0)
    times = found.packets.records["time_ns"]
    assert before <= times.min() <= times.max() <= after
    data = np.flatnonzero(found.packets.records["payload_bytes"] == 1000)
    assert found.packets.payload_of(int(data[0])) == b"x" * (192 - (66 if host == "127.0.0.1" else 86))
    assert path.stat().st_mode & 0o777 == 0o600
    assert capture.stop() == capture.coverage() == coverage


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


def test_udp_is_captured(tmp_path: Path) -> None:
    path = tmp_path / "packets.pcapng"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        with Capture(interfaces=["lo"], ports=[receiver.getsockname()[1]], path=path):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _ in range(5):
                    sender.sendto(b"datagram", receiver.getsockname())
            settle()
    found = read_packets(path)
    assert found.packets.records["protocol"].tolist() == [17] * 5
    assert found.packets.payload_of(4) == b"datagram"


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "packets.pcapng"
    with echo() as server, Capture(interfaces=["lo"], ports=[server.port], path=path):
        server.talk(5)
        settle()
    said = subprocess.run(
        ["tshark", "-r", str(path), "-T", "fields", "-e", "tcp.stream", "-e", "frame.interface_name"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = said.stdout.split("\n")[:-1]
    assert len(lines) == len(read_packets(path).packets)
    assert {line.split("\t")[0] for line in lines} == {"0", "1", "2", "3", "4"}
    assert {line.split("\t")[1] for line in lines} == {"lo"}


def helper_of(parent: int) -> int:
    """The capture process among a process's children."""
    for _ in range(200):
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if b"capture_process" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        time.sleep(0.02)
    raise AssertionError("no capture process")


def test_sigkill_of_the_capture_leaves_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "packets.pcapng"
    with echo() as server:
        capture = Capture(interfaces=["lo"], ports=[server.port], path=path)
        capture.start()
        server.talk(20)
        time.sleep(0.4)
        os.kill(helper_of(os.getpid()), signal.SIGKILL)
        coverage = capture.stop()
    assert len(flows_of(read_packets(path))) == 20
    assert coverage.available
    assert capture.notes() == ("packet capture ended early: its process died",)


def test_sigkill_of_the_main_process_ends_the_capture_and_keeps_its_packets(tmp_path: Path) -> None:
    path = tmp_path / "packets.pcapng"
    with echo() as server:
        code = (
            "import sys, time; from pathlib import Path; from sockscope.sources.packets.live import Capture\n"
            f"Capture(interfaces=['lo'], ports=[{server.port}], path=Path({str(path)!r})).start()\n"
            "print('READY', flush=True); time.sleep(60)"
        )
        main = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True
        )
        assert main.stdout is not None
        assert main.stdout.readline() == "READY\n"
        helper = helper_of(main.pid)
        server.talk(10)
        main.kill()
        main.wait()
        main.stdout.close()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{helper}/exe").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    found = read_packets(path)
    assert found.damage is None
    assert len(flows_of(found)) == 10
    assert not Path(f"/proc/{helper}/exe").exists()


def test_full_disk_ends_the_capture_with_a_note(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]).returncode:
        pytest.skip("a small disk needs mount(2), which is not allowed here")
    try:
        path = tmp_path / "packets.pcapng"
        with echo() as server:
            capture = Capture(interfaces=["lo"], ports=[server.port], path=path)
            capture.start()
            server.talk(200, b"x" * 1000)
            settle()
            coverage = capture.stop()
        assert capture.notes() == ("packet capture ended early: No space left on device",)
        assert coverage.lost_count > 0
        found = read_packets(path)
        assert found.damage is None
        assert len(found.packets) == coverage.seen_count
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_other_network_namespace(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-n", "true"]).returncode:
        pytest.skip("unshare(2) of the network namespace is not allowed here")
    code = (
        "import socket\n"
        "s = socket.create_server(('127.0.0.1', 7777)); print('READY', flush=True); input()\n"
        "c = socket.create_connection(('127.0.0.1', 7777)); c.close(); s.accept()[0].close()\n"
        "print('DONE', flush=True); input()"
    )
    target = subprocess.Popen(
        ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$0" -c "$1"', sys.executable, code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert target.stdin is not None
    assert target.stdout is not None
    path = tmp_path / "packets.pcapng"
    try:
        assert target.stdout.readline() == "READY\n"
        local = Address.inet(bytes([127, 0, 0, 1]), 7777)
        capture = Capture(interfaces=[], addresses=[local], ports=[7777], path=path, netns_pid=target.pid)
        with capture:
            target.stdin.write("\n")
            target.stdin.flush()
            assert target.stdout.readline() == "DONE\n"
            settle()
    finally:
        target.kill()
        target.communicate()
    assert [flow_end(f) for f in flows_of(read_packets(path))] == [FlowEnd.BOTH_CLOSED]
    assert capture.coverage().interfaces == ("lo",)


def test_no_right_to_capture_says_the_mend(tmp_path: Path) -> None:
    request = Request(
        operation=Operation.START, interfaces=["lo"], path=str(tmp_path / "packets.pcapng"), snap_bytes=192
    )
    helper = ["-m", "sockscope.sources.packets.capture_process"]
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    said = subprocess.run(
        ["setpriv", "--bounding-set", "-net_raw", sys.executable, *helper],
        input=request.line(),
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert b"no permission to capture packets (CAP_NET_RAW)" in said.stdout
    assert b"setcap cap_net_raw+ep" in said.stdout


@pytest.mark.parametrize(
    ("interfaces", "path", "netns_pid", "message"),
    [
        (["none0"], "p", None, "no network interface named none0"),
        (["lo"], "missing/p", None, "cannot write"),
        (["lo"], "p", 2**22 + 1, "network namespace of process"),
    ],
)
def test_what_cannot_start_says_why(
    tmp_path: Path, interfaces: list[str], path: str, netns_pid: int | None, message: str
) -> None:
    capture = Capture(interfaces=interfaces, ports=[], path=tmp_path / path, netns_pid=netns_pid)
    with pytest.raises(CannotObserveError, match=message):
        capture.start()
    assert not capture.stop().available


def test_interfaces_of_addresses() -> None:
    assert interfaces_for([Address.inet(bytes([127, 0, 0, 1]), 80)]) == ("lo",)
    assert interfaces_for([Address.inet(bytes(15) + b"\x01", 80)]) == ("lo",)
    every = interfaces_for([Address.inet(bytes(16), 80)])
    assert every[0] == "lo"
    assert interfaces_for([]) == ()
