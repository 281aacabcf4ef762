"""`report --connection --dissect`: packets layer by layer, nothing of theirs reaching the terminal raw."""

from __future__ import annotations

from pathlib import Path

from scapy.layers.inet import IP, TCP  # type: ignore[import-untyped,unused-ignore]
from scapy.layers.l2 import Ether  # type: ignore[import-untyped,unused-ignore]
from scapy.layers.ppp import PPP  # type: ignore[import-untyped,unused-ignore]
from scapy.packet import Packet, Raw  # type: ignore[import-untyped,unused-ignore]

from sockscope.model.info import PacketCoverage, SessionInfo, Target
from sockscope.model.seed import Seed
from sockscope.recording.writer import Writer
from tests.cli.test_bad_input import refused, sockscope
from tests.sources.packets import captures
from tests.sources.packets.captures import Frame

T0 = 1_700_000_000_000_000_000
PORT = 18135
MAC = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")


def client(**fields: object) -> Packet:
    return IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=40000, dport=PORT, **fields)


def server(**fields: object) -> Packet:
    return IP(src="10.0.0.2", dst="10.0.0.1") / TCP(sport=PORT, dport=40000, **fields)


def dialogue(segments: int) -> list[bytes]:
    packets = [
        client(seq=100, flags="S", options=[("MSS", 1460), ("WScale", 7)]),
        server(seq=500, ack=101, flags="SA"),
        client(seq=101, ack=501, flags="A"),
    ]
    for number in range(segments):
        packets.append(client(seq=101 + 12 * number, ack=501, flags="PA") / Raw(b"\x1b[31m[red]\xe2\x80"))
    return [captures.build(MAC / packet) for packet in packets]


def record(folder: Path, frames: list[bytes]) -> Path:
    info = SessionInfo(
        target=Target(ports=(PORT,)),
        started_realtime_ns=T0,
        started_ns=1_000,
        ended_ns=1_000 + 10**9,
        clock_samples=((1_000, T0), (1_000 + 10**9, T0 + 10**9)),
        packets=PacketCoverage(available=True, seen_count=len(frames)),
    )
    writer = Writer(folder)
    writer.begin(info, Seed.empty())
    if frames:
        times = (T0 + 1_000_000 * (number + 1) for number in range(len(frames)))
        blocks = [
            captures.enhanced(Frame(data=data, time_ns=time_ns, wire=len(data) + 9))
            for data, time_ns in zip(frames, times, strict=True)
        ]
        writer.packets_path.write_bytes(captures.section() + captures.interface(link=1) + b"".join(blocks))
    writer.finish(info)
    return folder


def test_packets_stand_under_the_timeline(tmp_path: Path) -> None:
    recording = record(tmp_path / "r", dialogue(2))
    done = sockscope("report", recording, "--connection", "0", "--dissect", COLUMNS="200", PYTHONUTF8="1")
    assert done.returncode == 0, done.stderr
    timeline, _, packets = done.stdout.partition("\nPackets\n")
    assert "[SYN]" in timeline
    lines = [line.rstrip() for line in packets.splitlines()]
    assert lines[0] == "+0.001000  ←  71 bytes, 62 captured"
    assert lines[1] == "    Ethernet  src 02:00:00:00:00:01  dst 02:00:00:00:00:02  type IPv4"
    assert lines[2].startswith("    IP  src 10.0.0.1  dst 10.0.0.2  ttl 64")
    assert "options MSS 1460, WScale 7 (x128)" in lines[3]
    assert "+0.002000  →" in packets
    assert r'Payload  12 bytes  "\x1b[31m[red]\xe2\x80"' in packets
    assert "\x1b" not in done.stdout
    assert "not shown" not in packets


def test_a_terminal_without_unicode(tmp_path: Path) -> None:
    recording = record(tmp_path / "r", dialogue(1))
    done = sockscope(
        "report", recording, "-c", "0", "--dissect", COLUMNS="200", PYTHONUTF8="0", PYTHONIOENCODING="ascii"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "+0.002000  ->  " in done.stdout


def test_of_many_packets_the_first_forty(tmp_path: Path) -> None:
    recording = record(tmp_path / "r", dialogue(60))
    done = sockscope("report", recording, "--connection", "0", "--dissect")
    packets = done.stdout.partition("\nPackets\n")[2]
    assert packets.count("    TCP  ") == 40
    assert packets.rstrip().endswith("23 more packets, not shown")


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    recording = record(tmp_path / "r", dialogue(1))
    refused(sockscope("report", recording, "--dissect"), 2, "--dissect needs --connection")
    refused(sockscope("report", recording, "--connection", "7", "--dissect"), 2, "no connection 7")


def test_a_capture_of_an_odd_link_layer_is_analyzed(tmp_path: Path) -> None:
    path = tmp_path / "customer.pcap"
    frames = [captures.build(PPP(proto=0x21) / Ether(data)[IP]) for data in dialogue(1)]
    path.write_bytes(captures.pcap([Frame(data=data) for data in frames], link=9))
    done = sockscope("analyze", "--pcap", path, "--port", str(PORT), "--fail-on", "never", "--verbose")
    assert done.returncode == 0, done.stderr
    assert "10.0.0.1:40000" in done.stdout
    path.write_bytes(captures.pcap([Frame(data=b"usb" * 20)], link=220))
    done = sockscope("analyze", "--pcap", path, "--fail-on", "never", COLUMNS="200")
    assert "link type 220 is not known" in done.stdout
