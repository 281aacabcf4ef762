"""What people do by hand, beside a live session of sockscope: strace in one terminal, tcpdump and ss in two others."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from sockscope import fixture
from sockscope.model.connections import Protocol, Role
from sockscope.model.findings import Finding, Skip
from sockscope.model.info import Alignment
from sockscope.model.report import Report
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.load import Evidence, load_session
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.pipeline.record import Watcher, record
from tests.live import servers
from tests.live.server_sessions import load

STRACE = ("strace", "-f", "-ttt", "-T", "-yy", "-s", "256")
LISTING_EVERY_S = 0.5
PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What came of one way of looking.

    Attributes:
        connections: (local, peer) of the target's TCP connections, as a server.
    """

    findings: tuple[Finding, ...]
    skipped: tuple[Skip, ...]
    connections: frozenset[tuple[str, str]]
    alignments: tuple[Alignment, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, report: Report, port: int) -> Told:
        """Of all that is told, the connections to one port: tcpdump is asked for no other."""
        served = (row.connection for row in report.connections if row.connection.role is Role.SERVER)
        return cls(
            findings=report.findings,
            skipped=report.skipped,
            connections=frozenset(
                (str(each.local), str(each.peer))
                for each in served
                if each.protocol is Protocol.TCP and each.local is not None and each.peer is not None
                if each.local.port == port
            ),
            alignments=report.info.alignments,
            notes=report.info.notes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Both:
    live: Told
    by_hand: Told


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayByHand:
    """A fixture's program, watched live and by hand in the same run."""

    slug: str
    program: str
    engine: EngineChoice = EngineChoice.BPF

    def __str__(self) -> str:
        return f"by-hand-{self.slug}-{self.program}"

    def perform(self, folder: Path) -> Both:
        with fixture.Play(fixture.load(self.slug), self.program) as play:
            play.need()
            return _both(play.start_server(), play.port, folder, lambda: play.drive())


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerByHand:
    """A real server under load, likewise."""

    name: str
    engine: EngineChoice = EngineChoice.BPF

    def __str__(self) -> str:
        return f"by-hand-{self.name}"

    def perform(self, folder: Path) -> Both:
        with servers.ground() as ground:
            server = servers.SERVERS[self.name](ground)
            with servers.running(server) as pid:
                servers.wait_until_serving(server.port)

                def act() -> None:
                    load(server)
                    time.sleep(1.5)

                return _both(pid, server.port, folder, act)


def _both(pid: int, port: int, folder: Path, act: Callable[[], None]) -> Both:
    watcher = Watcher()
    trouble: list[BaseException] = []

    def acting() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            trouble.append(error)
        finally:
            watcher.stop.set()

    watcher.on_ready = lambda tgids, seed: threading.Thread(target=acting, daemon=True).start()
    notes = folder.with_name(f"{folder.name}-hand")
    notes.mkdir()
    with _tools(pid, port, notes):
        record(RecordOptions(pids=(pid,), engine=EngineChoice.BPF), folder, watcher)
    if trouble:
        raise trouble[0]
    evidence = Evidence(straces=[notes / "s.log"], captures=[notes / "c.pcap"], listings=[notes / "ss.txt"])
    return Both(
        live=Told.of(make_report(load_session(folder)), port),
        by_hand=Told.of(make_report(load_session(evidence)), port),
    )


@contextmanager
def _tools(pid: int, port: int, folder: Path) -> Iterator[None]:
    """strace on the process and all below it, tcpdump on its port, ss every half second."""
    family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    # Without immediate mode tcpdump ends up to a second before it ends.
    capture = ["tcpdump", "-i", "lo", "-U", "--immediate-mode", "-B", "16384", "-w", f"{folder}/c.pcap", f"port {port}"]
    log = [*STRACE, "-o", f"{folder}/s.log", *(f"--attach={each}" for each in family)]
    over = threading.Event()
    with (
        (folder / "ss.txt").open("wb") as listing,
        subprocess.Popen(capture, stderr=subprocess.PIPE) as tcpdump,
        subprocess.Popen(log, stderr=subprocess.PIPE) as strace,
    ):
        _await_word(tcpdump, b"listening on")
        _await_word(strace, b"attached")
        watch = threading.Thread(target=_list, args=(listing.fileno(), over))
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join()
            for tool in (strace, tcpdump):
                tool.send_signal(signal.SIGINT)
                tool.communicate(timeout=PATIENCE_S)


def _await_word(tool: subprocess.Popen[bytes], word: bytes) -> None:
    assert tool.stderr is not None
    line = tool.stderr.readline()
    assert word in line, line


def _list(descriptor: int, over: threading.Event) -> None:
    while True:
        last = over.is_set()
        subprocess.run(["sh", "-c", "date +%s.%N; ss -tanpeimo"], stdout=descriptor, check=True)
        if last:
            return
        over.wait(LISTING_EVERY_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchedByHand:
    """A fixture's program started by strace; the log is all there is."""

    slug: str
    program: str
    engine: EngineChoice = EngineChoice.AUTO

    def __str__(self) -> str:
        return f"launched-{self.slug}-{self.program}"

    def perform(self, folder: Path) -> Told:
        log = folder.with_name(f"{folder.name}.log")
        with fixture.Play(fixture.load(self.slug), self.program) as play:
            play.need()
            play.command = [*STRACE, "-I1", "-o", str(log), *play.command]
            tracer = psutil.Process(play.start_server())
            (program,) = tracer.children()
            play.drive(program.pid)
            # Some end by themselves.
            with suppress(psutil.NoSuchProcess):
                for one in (*program.children(recursive=True), program):
                    one.terminate()
            psutil.wait_procs([tracer], timeout=PATIENCE_S)
            return Told.of(make_report(load_session(Evidence(straces=[log]))), play.port)
