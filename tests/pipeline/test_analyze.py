"""What a report says of the limits of what was watched."""

from __future__ import annotations

from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP  # type: ignore[import-untyped,unused-ignore]
from scapy.layers.l2 import Ether  # type: ignore[import-untyped,unused-ignore]

from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.pipeline.load import Evidence, load_session
from sockscope.recording.writer import Writer
from tests.analysis.builders import Script
from tests.sources.packets.captures import Frame, build, pcap


def recorded(script: Script, folder: Path) -> tuple[str, ...]:
    writer = Writer(folder)
    writer.begin(script.info(), script.seed())
    writer.write_events(script.events())
    writer.finish(script.info(), script.sockets())
    return load_session(folder).info.notes


def test_io_uring_that_is_seen_is_said_to_be_seen(tmp_path: Path) -> None:
    script = Script(engine="bpf").process(100).process(200)
    script.event(100, 100, Call.io_uring_enter, 3, ret=1)
    script.event(100, 100, Call.recvfrom, fd=7, ret=1, flags=EventFlag.URING)
    script.event(200, 200, Call.io_uring_enter, 3, ret=0)
    assert recorded(script, tmp_path / "r") == ("process 100 uses io_uring: seen through the bpf engine",)


@pytest.mark.parametrize(("ports", "told"), [((80,), False), ((), False), ((81,), True)])
def test_a_capture_without_the_asked_port(ports: tuple[int, ...], told: bool, tmp_path: Path) -> None:
    syn = Ether() / IP(src="10.0.0.9", dst="10.0.0.1") / TCP(sport=40000, dport=80, flags="S")
    (tmp_path / "c.pcap").write_bytes(pcap([Frame(data=build(syn))]))
    session = load_session(Evidence(captures=[tmp_path / "c.pcap"], ports=ports))
    assert any("no connection to port 81" in note for note in session.info.notes) is told


def test_a_capture_with_a_hole_is_not_taken_for_whole_and_one_cut_at_its_end_is(tmp_path: Path) -> None:
    syn = Ether() / IP(src="10.0.0.9", dst="10.0.0.1") / TCP(sport=40000, dport=80, flags="S")
    whole = pcap([Frame(data=build(syn))] * 9)
    record = (len(whole) - 24) // 9
    spoilt = whole[: 24 + 2 * record] + b"\xff" * record + whole[24 + 3 * record :]
    for name, content in (("cut", whole[:-9]), ("spoilt", spoilt), ("whole", whole)):
        (tmp_path / f"{name}.pcap").write_bytes(content)
    packets = [load_session(Evidence(captures=[path])).info.packets for path in sorted(tmp_path.iterdir())]
    assert [each.whole for each in packets] == [True, False, True]
    assert "spoilt.pcap: damaged" in packets[1].gap
