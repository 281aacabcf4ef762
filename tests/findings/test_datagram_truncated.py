"""datagram-truncated: the kernel's word, the wire's, the sender's; and what only looks like it."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.events import Section
from sockscope.model.findings import Confidence, Severity, Skip
from sockscope.model.sockaddr import Address, Family
from tests.analysis.builders import SOCK_DGRAM, Script, address, unix_address
from tests.findings.conftest import Run

SLUG = "datagram-truncated"
HERE = address("127.0.0.1", 5353)
THERE = address("127.0.0.1", 40001)
UDP = 17
PEEK, TRUNC, ERRQUEUE = 0x2, 0x20, 0x2000


def udp(local: Address = HERE) -> Script:
    script = Script(ports=(5353,)).process(100)
    script.event(100, 100, Call.socket, Family.INET, SOCK_DGRAM, 0, ret=3)
    script.event(100, 100, Call.bind, fd=3, sockaddr=local)
    return script


def comes(script: Script, payload: bytes, *, source: Address = THERE) -> None:
    script.packet(source, HERE, 0, payload=payload, protocol=UDP)


def takes(script: Script, payload: bytes, size: int, *, flags: int = 0, ret: int | None = None) -> int:
    """recvfrom into `size` bytes."""
    told = len(payload) if ret is None else ret
    return script.event(100, 100, Call.recvfrom, 0, size, flags, fd=3, ret=told, payload=payload, sockaddr=THERE)


def by_message(script: Script, payload: bytes, size: int, told: int, *, flags: int = 0) -> None:
    """recvmsg with these msg_flags."""
    sections = [(Section.IOV_TOTAL, struct.pack("<Q", size)), (Section.MSG_FLAGS, struct.pack("<i", told))]
    script.event(100, 100, Call.recvmsg, 0, flags, fd=3, ret=len(payload), payload=payload, sections=sections)


def test_the_packet_was_longer(run: Run) -> None:
    script = udp()
    for number, size in enumerate((20, 64, 200, 1200)):
        comes(script, bytes([number]) * size)
        takes(script, bytes([number]) * min(size, 64), 64)
    (finding,) = run(script.session(), SLUG)
    assert (finding.severity, finding.confidence, finding.count, finding.fd) == (
        Severity.WARNING,
        Confidence.LIKELY,
        2,
        3,
    )
    assert "2 of the 4 datagrams" in finding.explanation
    assert "the longest had 1200 bytes, of which 1136 are gone" in finding.explanation
    assert "at least 1200 bytes" in finding.remedy
    assert len(finding.connections) == 1


def test_alike_ones_are_counted(run: Run) -> None:
    """Which of them fitted nobody knows, but one of three did."""
    script = udp(address("0.0.0.0", 5353))
    for size in (64, 100, 200):
        comes(script, b"x" * size)
    for _ in range(3):
        takes(script, b"x" * 64, 64)
    (finding,) = run(script.session(), SLUG)
    assert finding.count == 2


def test_an_exact_fit_is_no_loss(run: Run) -> None:
    script = udp()
    comes(script, b"a" * 64)
    takes(script, b"a" * 64, 64)
    # One that never got here: the queue was full.
    comes(script, b"b" * 300)
    assert not run(script.session(), SLUG, least=Severity.INFO)


def test_the_size_is_asked_for_first(run: Run) -> None:
    script = udp()
    for size in (64, 300):
        comes(script, b"a" * size)
        takes(script, b"a", 1, flags=PEEK | TRUNC, ret=size)
        takes(script, b"a" * size, size)
    # Thrown away on purpose, after a look.
    comes(script, b"b" * 300)
    takes(script, b"b", 1, flags=PEEK | TRUNC, ret=300)
    takes(script, b"b", 1)
    assert not run(script.session(), SLUG, least=Severity.INFO)


def test_one_send_that_becomes_many(run: Run) -> None:
    """UDP_SEGMENT: one packet on the loopback, ten datagrams to read."""
    script = udp()
    comes(script, b"s" * 640)
    for _ in range(10):
        takes(script, b"s" * 64, 64)
    findings, skips, _ = run_rules(script.session(), select=[SLUG])
    assert not findings
    assert [skip.rule for skip in skips] == [SLUG]


def test_the_kernel_says_so(run: Run) -> None:
    script = udp()
    by_message(script, b"m" * 64, 64, TRUNC)
    by_message(script, b"m" * 10, 64, 0)
    (finding,) = run(script.session(), SLUG)
    assert (finding.confidence, finding.count) == (Confidence.CERTAIN, 1)
    assert "MSG_TRUNC" in finding.explanation
    assert "the rest is gone" in finding.explanation


def test_the_result_says_so(run: Run) -> None:
    script = udp()
    takes(script, b"m" * 64, 64, flags=TRUNC, ret=900)
    takes(script, b"m" * 60, 64, flags=TRUNC)
    (finding,) = run(script.session(), SLUG)
    assert (finding.confidence, finding.count) == (Confidence.CERTAIN, 1)
    assert "the longest had 900 bytes, of which 836 are gone" in finding.explanation


@pytest.mark.parametrize(
    ("size", "told", "flags"), [(64, TRUNC, PEEK), (64, TRUNC | ERRQUEUE, ERRQUEUE), (0, TRUNC, 0)]
)
def test_looks_errors_and_throwing_away(run: Run, size: int, told: int, flags: int) -> None:
    script = udp()
    by_message(script, b"m" * size, size, told, flags=flags)
    assert not run(script.session(), SLUG, least=Severity.INFO)


def test_one_of_many_is_an_oddity(run: Run) -> None:
    script = udp()
    for _ in range(200):
        by_message(script, b"m" * 10, 64, 0)
    by_message(script, b"m" * 64, 64, TRUNC)
    session = script.session()
    assert not run(session, SLUG)
    assert len(run(session, SLUG, least=Severity.INFO)) == 1


def test_a_unix_sender_that_is_watched() -> None:
    script = Script().process(100)
    script.event(100, 100, Call.socket, Family.UNIX, SOCK_DGRAM, 0, ret=3)
    script.event(100, 100, Call.bind, fd=3, sockaddr=unix_address("/run/log"))
    script.event(100, 100, Call.socket, Family.UNIX, SOCK_DGRAM, 0, ret=4)
    for size in (64, 100):
        script.event(
            100, 100, Call.sendto, 0, size, 0, fd=4, ret=size, payload=b"x" * 64, sockaddr=unix_address("/run/log")
        )
        script.event(100, 100, Call.recvfrom, 0, 64, 0, fd=3, ret=64, payload=b"x" * 64)
    (finding,), skips, _ = run_rules(script.session(), select=[SLUG])
    assert (finding.count, finding.confidence) == (1, Confidence.CERTAIN)
    assert "at /run/log" in finding.title
    assert not skips


def test_without_packets_it_cannot_be_told() -> None:
    script = udp()
    takes(script, b"x" * 64, 64)
    findings, skips, _ = run_rules(script.session(), select=[SLUG])
    assert not findings
    assert skips == [Skip(rule=SLUG, reason=skips[0].reason)]
    assert "1 read filled the buffer" in skips[0].reason


def test_lost_packets_prove_nothing() -> None:
    script = udp()
    comes(script, b"x" * 100)
    takes(script, b"x" * 64, 64)
    session = script.session()
    session.info = replace(session.info, packets=replace(session.info.packets, lost_count=3))
    findings, skips, _ = run_rules(session, select=[SLUG])
    assert not findings
    assert len(skips) == 1


def test_streams_are_no_datagrams(run: Run) -> None:
    script = Script(ports=(5353,)).process(100)
    script.event(100, 100, Call.socket, Family.INET, 1, 0, ret=3)
    script.event(100, 100, Call.connect, fd=3, sockaddr=THERE)
    takes(script, b"x" * 64, 64)
    assert not run(script.session(), SLUG, least=Severity.INFO)
