"""The faulty programs that `sockscope demo` and the tests run: how they are found, started and driven.

A fixture is a folder of `fixtures/` named by a rule's slug:

    fixture.toml          what it shows, how to drive it, what must be said (below)
    faulty.py or faulty.c the fault; started as `faulty PORT`; one that serves a unix socket names it …sockscope-PORT
    sound.py or sound.c   the closest program without it
    client.py             started as `client.py PORT`, optional
    earlier.py            run as `earlier.py PORT` before the program: what an earlier run left behind, optional

A program prints `READY` (own line) when clients may come, and ends at SIGTERM. What it makes in /dev/shm has
`sockscope-PORT` in its name, and is removed after the play. The client prints
`DONE` when its traffic is done and then stays (holding its connections) until SIGTERM, or exits.

    summary = "one line, shown by demo"
    modes = ["attach", "run"]       # how the fault can be seen: attached late, or from the start
    settle_s = 1.5                  # how long to go on watching after DONE
    engines = ["bpf"]               # optional: the engines that have the evidence; all, where not said
    check = true                    # optional: `program --check` says why it cannot run here, and exits with 77
    signal = "TERM"                 # optional: sent to the server after DONE, its end awaited
    [expect]                        # of the faulty program, in JSON's words; the sound one: nothing above info
    severity = "error"
    count = 5                       # optional
    also = ["other-slug"]           # optional: what else may rightly be said of it
    holder = true                   # optional: a holder must be named
    process = "child"               # optional: `first`, the process that was started, or `child`, another one
    fd = 7                          # optional: the descriptor
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from sockscope.errors import CannotObserveError, UsageError
from sockscope.model.seed import Seed
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.pipeline.record import Recorded, Watcher, record

READY_TIMEOUT_S = 20.0
DONE_TIMEOUT_S = 30.0
AT_REST_S = 4.0
"""A program that sleeps half so long, and is at least so old, will not listen any more."""
PORTS = range(10_000, 32_768)
"""net.ipv4.ip_local_port_range begins above."""
PORT_TRIES = 20
ENGINES = (EngineChoice.PTRACE, EngineChoice.BPF)
REFUSED = 77
"""Exit status of `program --check` where it cannot run."""


class PlayRefusedError(CannotObserveError):
    """The fixture's program needs what this machine does not allow (exit 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    severity: str
    count: int | None = None
    also: frozenset[str] = frozenset()
    holder: bool = False
    process: str | None = None
    fd: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixture:
    """One folder of fixtures, read."""

    slug: str
    folder: Path
    summary: str
    modes: tuple[str, ...]
    engines: tuple[EngineChoice, ...]
    check: bool
    settle_s: float
    signal: signal.Signals | None
    expect: Expectation


def fixtures_folder() -> Path:
    """Where the fixtures are: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "fixtures"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "fixtures"


def slugs() -> list[str]:
    """Every rule that has a fixture."""
    return sorted(p.parent.name for p in fixtures_folder().glob("*/fixture.toml"))


def load(slug: str) -> Fixture:
    """Read one fixture.

    Raises:
        UsageError: there is none of that name.
    """
    folder = fixtures_folder() / slug
    if not (folder / "fixture.toml").is_file():
        raise UsageError(f"no demo named {slug!r}", help_text="sockscope demo --list shows them")
    return read(folder)


def read(folder: Path) -> Fixture:
    """A fixture's folder, wherever it is; its slug is the folder's name."""
    with (folder / "fixture.toml").open("rb") as file:
        data = tomllib.load(file)
    expect = data["expect"]
    return Fixture(
        slug=folder.name,
        folder=folder,
        summary=data["summary"],
        modes=tuple(data.get("modes", ["attach", "run"])),
        engines=tuple(map(EngineChoice, data.get("engines", ENGINES))),
        check=bool(data.get("check", False)),
        settle_s=float(data.get("settle_s", 1.5)),
        signal=signal.Signals[f"SIG{data['signal']}"] if "signal" in data else None,
        expect=Expectation(
            severity=expect["severity"],
            count=expect.get("count"),
            also=frozenset(expect.get("also", ())),
            holder=bool(expect.get("holder", False)),
            process=expect.get("process"),
            fd=expect.get("fd"),
        ),
    )


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now, of those that the kernel does not give to clients by itself."""
    for _ in range(PORT_TRIES):
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = random.choice(PORTS)
            probe.bind(("127.0.0.1", port))
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Play:
    """A fixture's program and client, started and ended. A context manager: leaving it ends both."""

    def __init__(self, fixture: Fixture, program: str = "faulty") -> None:
        self.fixture = fixture
        self.port = free_port()
        self._work = Path(tempfile.mkdtemp(prefix="sockscope-fixture-"))
        self.command = [*self._program(program), str(self.port)]
        self.server: subprocess.Popen[str] | None = None
        self._client: subprocess.Popen[str] | None = None
        earlier = fixture.folder / "earlier.py"
        if earlier.is_file():
            subprocess.run([sys.executable, str(earlier), str(self.port)], check=True)

    def _program(self, name: str) -> list[str]:
        script = self.fixture.folder / f"{name}.py"
        if script.is_file():
            return [sys.executable, "-u", str(script)]
        source = self.fixture.folder / f"{name}.c"
        compiler = shutil.which("cc")
        if not source.is_file() or compiler is None:
            raise CannotObserveError(
                f"{self.fixture.slug}: {name}.c needs a C compiler", help_text="apt-get install gcc libc6-dev"
            )
        binary = self._work / name
        subprocess.run([compiler, "-O1", "-pthread", "-o", str(binary), str(source)], check=True)
        return [str(binary)]

    def need(self) -> None:
        """Ask a program that may not run everywhere.

        Raises:
            PlayRefusedError: it cannot, and why.
        """
        if self.fixture.check:
            said = subprocess.run([*self.command[:-1], "--check"], stdout=subprocess.PIPE, text=True, check=False)
            if said.returncode == REFUSED:
                raise PlayRefusedError(f"{self.fixture.slug} cannot be played here: {said.stdout.strip()}")

    def start_server(self) -> int:
        """Start the program on its own (for attach); its pid, once it is READY."""
        self.server = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        _await_line(self.server, "READY", READY_TIMEOUT_S)
        return self.server.pid

    def wait_listening(self, pid: int) -> None:
        """For a program that someone else started: until it can be reached, or rests without (some never listen).

        That is: a TCP listener or a UDP socket has its port, or a unix socket a name that ends in `sockscope-PORT`.
        """
        began = rested = time.monotonic()
        used = -1
        while not _reachable(self.port):
            now = time.monotonic()
            state, ticks = _activity(pid)
            if state != "S" or ticks != used:
                # A busy machine makes beginnings long.
                rested, used = now, ticks
            if now - began > READY_TIMEOUT_S or (now - began > AT_REST_S and now - rested > AT_REST_S / 2):
                return
            time.sleep(0.05)

    def drive(self, server_pid: int | None = None) -> None:
        """Run the client to DONE, wait `settle_s`, then send the fixture's signal, if it has one."""
        script = self.fixture.folder / "client.py"
        if script.is_file():
            self._client = subprocess.Popen(
                [sys.executable, "-u", str(script), str(self.port)], stdout=subprocess.PIPE, text=True
            )
            _await_line(self._client, "DONE", DONE_TIMEOUT_S)
        time.sleep(self.fixture.settle_s)
        pid = server_pid if server_pid is not None else self.server.pid if self.server else None
        if self.fixture.signal is not None and pid is not None:
            os.kill(pid, self.fixture.signal)
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and _alive(pid):
                time.sleep(0.05)
            time.sleep(0.3)

    def close(self) -> None:
        # The server first: clients that vanish would only make it complain.
        if self.server is not None:
            _end(self.server, group=True)
        if self._client is not None:
            _end(self._client, group=False)
        shutil.rmtree(self._work, ignore_errors=True)
        for left in Path("/dev/shm").glob(f"*sockscope-{self.port}*"):
            left.unlink(missing_ok=True)

    def __enter__(self) -> Play:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def rehearse(
    fixture: Fixture,
    folder: Path,
    *,
    program: str = "faulty",
    mode: str = "attach",
    engine: EngineChoice = EngineChoice.AUTO,
) -> Recorded:
    """Play a fixture under watch.

    Args:
        fixture: what to play.
        folder: where the recording goes.
        program: `faulty` or `sound`.
        mode: `attach` (the server runs already) or `run` (watched from its start).
        engine: what watches it.

    Raises:
        PlayRefusedError: the program needs what this machine does not allow.
        CannotObserveError: the program did not start, or cannot be watched.
    """
    watcher = Watcher()
    trouble: list[CannotObserveError] = []

    def act(play: Play, server_pid: int) -> None:
        try:
            if mode == "run":
                play.wait_listening(server_pid)
            play.drive(server_pid)
        except CannotObserveError as error:
            trouble.append(error)
        finally:
            watcher.stop.set()

    with Play(fixture, program) as play:
        play.need()

        def begin(tgids: tuple[int, ...], seed: Seed) -> None:
            threading.Thread(target=act, args=(play, tgids[0]), daemon=True).start()

        watcher.on_ready = begin
        if mode == "run":
            options = RecordOptions(command=tuple(play.command), engine=engine)
        else:
            options = RecordOptions(pids=(play.start_server(),), engine=engine)
        recorded = record(options, folder, watcher)
    if trouble:
        raise trouble[0]
    return recorded


def _reachable(port: int) -> bool:
    ended = f":{port:04X}"
    for table, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        try:
            lines = Path("/proc/net", table).read_text().splitlines()[1:]
        except FileNotFoundError:
            continue  # a kernel without IPv6
        if any(columns[1].endswith(ended) and columns[3] == state for columns in map(str.split, lines)):
            return True
    names = Path("/proc/net/unix").read_text(errors="replace").splitlines()
    return any(line.endswith(f"sockscope-{port}") for line in names)


def _alive(pid: int) -> bool:
    return _activity(pid)[0] not in "ZX"


def _activity(pid: int) -> tuple[str, int]:
    """State and CPU time used (clock ticks), proc_pid_stat(5); X for a process that is no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    return fields[0], int(fields[11]) + int(fields[12])


def _await_line(process: subprocess.Popen[str], word: str, timeout_s: float) -> None:
    """Until the process prints the word on a line of its own; later output is drained in the background."""
    seen = threading.Event()
    said: list[str] = []

    def pump() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if line.strip() == word:
                seen.set()
        seen.set()

    threading.Thread(target=pump, daemon=True).start()
    if not seen.wait(timeout_s) or word not in [line.strip() for line in said]:
        raise CannotObserveError(f"the demo's program never said {word}: {''.join(said)[-300:]!r}")


def _end(process: subprocess.Popen[str], *, group: bool) -> None:
    """SIGTERM, SIGKILL after a while; `group`: to all that it started too (it leads a group of our making)."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            if group:
                # The leader may be gone already, its children not.
                os.killpg(process.pid, number)
            elif process.poll() is None:
                process.send_signal(number)
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            continue
        if not group:
            return
