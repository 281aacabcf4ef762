"""A server and its client on hosts of their own, a slow and lossy path between, tcpdump at both, strace beside."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from sockscope.analysis.session import Session
from sockscope.findings.run import run_rules
from sockscope.model.findings import Severity
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.export import session_tables
from sockscope.pipeline.load import Evidence, load_session
from sockscope.reports.pcapng import write_pcapng
from sockscope.sources.packets.files import read_packets
from tests.analysis.alignment.places.two_places import told
from tests.live.lossy_network import SERVER, Network, Weather, captured, network
from tests.live.test_alignment import shifted

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
    pytest.mark.skipif(not all(map(shutil.which, ("strace", "tcpdump"))), reason="needs strace and tcpdump"),
]

PORT, REQUESTS, BYTES = 7080, 25, 60_000
DELAY_NS = 20_000_000
ASK = """
import sys, time, urllib.request
for number in range(int(sys.argv[2])):
    if number + 1 == int(sys.argv[2]):
        time.sleep(1)
    assert len(urllib.request.urlopen(sys.argv[1], timeout=30).read()) == int(sys.argv[3])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What was written at both ends."""

    client: Path
    server: Path
    log: Path


@contextmanager
def serving(net: Network, folder: Path, log: Path) -> Iterator[None]:
    (folder / "page").write_bytes(bytes(BYTES))
    server = [sys.executable, "-u", "-m", "http.server", str(PORT), "--bind", SERVER, "--directory", str(folder)]
    strace = ["ip", "netns", "exec", net.server, "strace", "-f", "-ttt", "-T", "-yy", "-s", "256", "-o", str(log)]
    process = subprocess.Popen([*strace, *server], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        assert "Serving" in process.stdout.readline()
        yield
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.terminate()
        process.wait(10)
        process.stdout.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("hosts")
    files = Made(client=folder / "client.pcap", server=folder / "server.pcap", log=folder / "s.log")
    weather = Weather(delay_s=DELAY_NS / 1e9, loss=0.02)
    with (
        network(weather, f"sst{os.getpid() % 100000}") as net,
        captured(net.client, net.client, files.client),
        captured(net.server, net.server, files.server),
        serving(net, folder, files.log),
    ):
        ask = [sys.executable, "-c", ASK, f"http://{SERVER}:{PORT}/page", str(REQUESTS), str(BYTES)]
        subprocess.run(["ip", "netns", "exec", net.client, *ask], check=True, timeout=120)
        time.sleep(0.3)
    return files


def same(one: Session, other: Session) -> None:
    """Connections, marks, counts and findings; and the path alone is at fault."""
    assert told(one) == told(other)
    assert np.array_equal(one.flow_facts, other.flow_facts)
    assert len(one.connections) == len(other.connections) >= REQUESTS
    found, known = run_rules(one)[0], run_rules(other)[0]
    assert [(each.rule, each.severity, each.connections) for each in found] == [
        (each.rule, each.severity, each.connections) for each in known
    ]
    assert {each.rule for each in found if each.severity > Severity.INFO} <= {"retransmissions"}


@pytest.mark.parametrize("hours", [0, 3, -500])
@pytest.mark.parametrize("logged", [False, True], ids=["alone", "beside strace"])
def test_both_are_told_as_the_servers_own(made: Made, hours: int, logged: bool) -> None:
    ahead_us = hours * 3_600_000_000 + (random.randrange(10**6) if hours else 0)
    straces = (made.log,) if logged else ()
    alone = load_session(Evidence(straces=straces, captures=(made.server,)))
    both = load_session(Evidence(straces=straces, captures=(shifted(made.client, ahead_us), made.server)))
    same(both, alone)
    (found,) = [one for one in both.info.alignments if one.beside]
    assert abs(found.offset_ns + ahead_us * 1000) <= found.uncertainty_ns < DELAY_NS * 2
    assert hours or found.offset_ns == 0
    assert found.beside == made.server.name
    assert [one for one in both.info.alignments if not one.beside] == list(alone.info.alignments)
    assert both.info.apart_ns == alone.info.apart_ns


def test_what_is_exported_is_one_capture(made: Made, tmp_path: Path) -> None:
    """Else Wireshark takes the other's packets for retransmissions."""
    both = load_session(Evidence(captures=(shifted(made.client, 10_800_000_000), made.server)))
    write_pcapng(make_report(both), session_tables(both), tmp_path / "out.pcapng")
    exported, alone = (read_packets(file).packets for file in (tmp_path / "out.pcapng", made.server))
    for column in ("time_ns", "src", "sport", "seq", "ack", "flags", "payload_bytes"):
        assert np.array_equal(exported.records[column], alone.records[column])


def test_what_was_lost_is_what_lacks(made: Made) -> None:
    """What one end sent and the other lacks; of the last connection some may have been under way at the end."""
    both = load_session(Evidence(captures=(made.client, made.server)))
    (note,) = both.info.notes
    told = {name: int(count) for count, name in re.findall(r"(\d+) on the way to (\S+)", note)}
    client, server = (read_packets(file).packets.records for file in (made.client, made.server))
    last = client["sport"][client["dport"] == PORT][-1]
    for name, sent, came, column in (
        (made.server.name, client, server, "sport"),
        (made.client.name, server, client, "dport"),
    ):
        ports = [one[column][one[column] != PORT] for one in (sent, came)]
        lost = len(ports[0]) - len(ports[1])
        counted = told.get(name, 0)
        assert lost - int((ports[0] == last).sum() - (ports[1] == last).sum()) <= counted <= lost
    assert f"{sum(told.values()):,} of " in note
