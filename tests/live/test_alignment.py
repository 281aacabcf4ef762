"""Real servers under strace or an engine, tcpdump beside: the capture's clock is found back."""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sockscope.analysis.session import Session
from sockscope.model.info import Alignment
from sockscope.pipeline.load import Evidence, load_session
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.pipeline.record import Watcher, record
from tests.live import servers
from tests.live.servers import Server

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.geteuid() != 0, reason="tracing and capture need root"),
    pytest.mark.skipif(not shutil.which("tcpdump"), reason="needs tcpdump"),
]

SERVERS = (
    "http.server",
    pytest.param("nginx", marks=pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx")),
)
CONNECTIONS = 20


@contextmanager
def tool(command: list[str], ready: bytes) -> Iterator[None]:
    """Runs beside, from its first word that it is ready until the block ends."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    for line in process.stderr:
        if ready in line:
            break
    drained = threading.Thread(target=process.stderr.read, daemon=True)
    drained.start()
    try:
        yield
        # What was captured is handed over in blocks.
        time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(10)
        drained.join(5)
        process.stderr.close()


def tcpdump(path: Path, port: int) -> list[str]:
    return ["tcpdump", "-i", "lo", "-U", "-Z", "root", "-w", str(path), "tcp", "port", str(port)]


def shifted(path: Path, ahead_us: int) -> Path:
    """The same capture (classic pcap, µs) by a clock that runs ahead."""
    raw = bytearray(path.read_bytes())
    assert struct.unpack_from("<I", raw)[0] == 0xA1B2C3D4
    at = 24
    while at < len(raw):
        seconds, micros, captured, _ = struct.unpack_from("<IIII", raw, at)
        struct.pack_into("<II", raw, at, *divmod(seconds * 1_000_000 + micros + ahead_us, 1_000_000))
        at += 16 + captured
    found = path.with_suffix(".shifted.pcap")
    found.write_bytes(raw)
    return found


def alignment(session: Session) -> Alignment:
    (found,) = [one for one in session.info.alignments if one.packets]
    return found


def judge(evidence: Evidence, capture: Path) -> None:
    """One clock is one; any other is found back, and the same connections are joined."""
    same = load_session(evidence)
    kept = alignment(same)
    assert kept.offset_ns == 0, kept
    assert 0 < kept.uncertainty_ns < 2_000_000, kept
    joined = sum(one.flow >= 0 and one.open_file >= 0 for one in same.connections)
    assert joined >= CONNECTIONS
    for ahead_us in (random.randrange(100_000, 10**12), -random.randrange(100_000, 10**12)):
        session = load_session(
            Evidence(
                recording=evidence.recording,
                straces=evidence.straces,
                captures=(shifted(capture, ahead_us),),
                ports=evidence.ports,
            )
        )
        found = alignment(session)
        assert abs(found.offset_ns + ahead_us * 1000) <= found.uncertainty_ns < 2_000_000, (ahead_us, found)
        assert sum(one.flow >= 0 and one.open_file >= 0 for one in session.connections) == joined


def load(server: Server) -> None:
    servers.count_connections(server.port, CONNECTIONS)


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.parametrize("options", [("-ttt", "-T", "-yy"), ("-tt", "-T"), ("-r", "-T", "-yy"), ("-ttt", "-yy")])
@pytest.mark.parametrize("name", SERVERS)
def test_strace_and_tcpdump(tmp_path: Path, name: str, options: tuple[str, ...]) -> None:
    log, capture = tmp_path / "log", tmp_path / "c.pcap"
    with servers.ground() as ground:
        server = servers.SERVERS[name](ground)
        with servers.running(server) as pid, tool(tcpdump(capture, server.port), b"listening"):
            pids = [pid, *(int(one) for one in _children(pid))]
            follow = [part for one in pids for part in ("-p", str(one))]
            with tool(["strace", "-f", *options, "-o", str(log), *follow], b"attached"):
                time.sleep(0.3)
                load(server)
    evidence = Evidence(straces=(log,), captures=(capture,), ports=(server.port,))
    if "-ttt" in options:
        judge(evidence, capture)
        return
    # Of a time of day, or of the log's own beginning, the offset is anything: that it fits is told by the bounds.
    session = load_session(evidence)
    # Steps are cut off to µs, and summed up: such a log runs slow.
    assert abs(session.info.clock_skew_ns) <= alignment(session).uncertainty_ns < 2_000_000


@pytest.mark.parametrize("engine", [EngineChoice.PTRACE, EngineChoice.BPF])
@pytest.mark.parametrize("name", SERVERS)
def test_a_recording_and_tcpdump(tmp_path: Path, name: str, engine: EngineChoice) -> None:
    capture = tmp_path / "c.pcap"
    with servers.ground() as ground:
        server = servers.SERVERS[name](ground)
        with servers.running(server) as pid, tool(tcpdump(capture, server.port), b"listening"):
            _watched(RecordOptions(pids=(pid,), engine=engine), server, tmp_path / "recording")
    evidence = Evidence(recording=tmp_path / "recording", captures=(capture,), ports=(server.port,))
    judge(evidence, capture)


def _watched(options: RecordOptions, server: Server, folder: Path) -> None:
    watcher = Watcher()

    def act() -> None:
        try:
            time.sleep(0.3)
            load(server)
            time.sleep(0.5)
        finally:
            watcher.stop.set()

    watcher.on_ready = lambda tgids, seed: threading.Thread(target=act, daemon=True).start()
    record(options, folder, watcher)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
