"""Logs that strace writes here and now, with many options, held against what grep and the program say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sockscope.model.calls import FIRST_TASK_EVENT, Call, CallGroup
from sockscope.model.events import EventFlag
from sockscope.sources.syscalls.strace_log.log import LogClock, StraceLog
from sockscope.sources.syscalls.strace_log.reader import read_strace

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]

PROGRAM = """
import os, select, signal, socket, threading
listener = socket.create_server(("127.0.0.1", 0))
def client():
    for number in range(3):
        with socket.create_connection(listener.getsockname()) as near:
            near.sendall(b"request %d" % number)
            while near.recv(100):
                pass
thread = threading.Thread(target=client)
thread.start()
poll = select.poll()
poll.register(listener, select.POLLIN)
for _ in range(3):
    poll.poll(5000)
    far, _ = listener.accept()
    far.recv(100)
    far.sendall(b"an answer")
    far.close()
thread.join()
os.kill(os.getpid(), signal.SIGURG)
if not os.fork():
    listener.close()
    os._exit(3)
print(os.wait()[1], os.getpid())
"""

COUNTED = ("accept4", "connect", "sendto", "recvfrom", "bind", "listen", "poll", "socket", "clone3")
"""Calls that nothing but the program above makes."""


def trace(folder: Path, options: list[str], *, stderr: bool = False) -> tuple[list[Path], int]:
    """Run the program under strace; its log or logs, and the program's pid."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    out = [] if stderr else ["-o", str(folder / "log")]
    command = ["strace", *options, *out, sys.executable, "-I", "-S", str(program)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    if stderr:
        (folder / "log").write_bytes(done.stderr)
    status, pid = done.stdout.split()
    assert int(status) == 3 << 8
    return sorted(folder.glob("log*")), int(pid)


def grep(paths: list[Path]) -> Counter[str]:
    """How often each call begins, by the text alone."""
    found: Counter[str] = Counter()
    for path in paths:
        found.update(re.findall(r"(?:^|[ >\]])([a-z][a-z0-9_]*)\(", path.read_text(errors="replace"), re.MULTILINE))
    return found


def made(log: StraceLog) -> Counter[str]:
    """How often each call is in the table."""
    records = log.events.records
    own = records[(records["flags"] & EventFlag.SEEDED) == 0]
    return Counter(Call(call).name for call in own["call"].tolist() if call < FIRST_TASK_EVENT)


@pytest.mark.parametrize(
    ("options", "clock"),
    [
        (["-f"], LogClock.NONE),
        (["-f", "-t"], LogClock.TIME_OF_DAY),
        (["-f", "-tt", "-T", "-y"], LogClock.TIME_OF_DAY),
        (["-f", "-ttt", "-T", "-yy"], LogClock.DATED),
        (["-f", "-r", "-T"], LogClock.RELATIVE),
        (["-f", "-r", "-tt", "-n"], LogClock.TIME_OF_DAY),
        (["-f", "-ttt", "-s", "0", "-v"], LogClock.DATED),
        (["-f", "-ttt", "-i", "-a", "1"], LogClock.DATED),
        (["-f", "-ttt", "-yy", "-X", "verbose", "-xx"], LogClock.DATED),
        (["-ff", "-ttt", "-T", "-yy"], LogClock.DATED),
        (["-ff", "-tt"], LogClock.TIME_OF_DAY),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("stderr", [False, True], ids=["file", "stderr"])
def test_every_call_is_read(tmp_path: Path, options: list[str], clock: LogClock, stderr: bool) -> None:
    if stderr and "-ff" in options:
        pytest.skip("-ff needs -o")
    paths, pid = trace(tmp_path, options, stderr=stderr)
    log = read_strace(paths)
    assert log.unread == ()
    assert log.clock is clock
    expected, found = grep(paths), made(log)
    assert {name: found[name] for name in COUNTED} == {name: expected[name] for name in COUNTED}
    assert found["accept4"] == 3
    assert log.coverage.missing_groups == ()
    _check_tasks(log, pid)
    _check_results(log)


def _check_tasks(log: StraceLog, pid: int) -> None:
    records = log.events.records
    assert Counter(records["call"][records["call"] >= FIRST_TASK_EVENT].tolist())[Call.task_new] == 2
    exits = records[records["call"] == Call.task_exit]
    status = {tgid: args[0] for tgid, tid, args in exits[["tgid", "tid", "args"]].tolist() if tgid == tid}
    assert status.pop(pid) == 0
    assert [int(child) for child in status.values()] == [3 << 8]
    assert len(exits) == 3
    threads = {tid for tid, tgid in zip(records["tid"].tolist(), records["tgid"].tolist(), strict=True) if tgid == pid}
    assert len(threads) == 2
    signals = records[records["call"] == Call.task_signal]["args"][:, 0].tolist()
    assert sorted(signals) == [17, 23]


def _check_results(log: StraceLog) -> None:
    records = log.events.records
    if not any("-ff" in note for note in log.notes):
        assert (records["exit_ns"][records["exit_ns"] >= 0] >= records["enter_ns"][records["exit_ns"] >= 0]).all()
    taken = records[records["call"] == Call.accept4]
    sent = records[records["call"] == Call.sendto]
    assert sorted(sent["ret"].tolist()) == [9, 9, 9, 9, 9, 9]
    assert set(taken["ret"].tolist()) <= set(sent["args"][:, 0].tolist())
    listened = records[records["call"] == Call.listen]["args"][0, 0]
    assert (taken["args"][:, 0] == listened).all()
    assert np.isin(taken["ret"], records[records["call"] == Call.close]["args"][:, 0].astype(np.int64)).all()


def test_without_f_the_children_are_missing(tmp_path: Path) -> None:
    paths, pid = trace(tmp_path, ["-ttt"])
    log = read_strace(paths)
    assert log.unread == ()
    assert CallGroup.TASKS in log.coverage.missing_groups
    assert made(log)["accept4"] == 3
    assert set(log.events.records["tgid"].tolist()) == {1}, f"nothing names process {pid}"


def test_a_filter_shows(tmp_path: Path) -> None:
    paths, _ = trace(tmp_path, ["-f", "-ttt", "-e", "trace=%network"])
    missing = read_strace(paths).coverage.missing_groups
    assert set(missing) >= {CallGroup.DESCRIPTORS, CallGroup.WAITS}


def test_attached_to_threads(tmp_path: Path) -> None:
    """What strace -p finds of a process with threads is one process."""
    program = "\n".join(
        (
            "import threading, time",
            "for _ in range(3): threading.Thread(target=time.sleep, args=(1.5,)).start()",
            "print(flush=True)",
        )
    )
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", program], stdout=subprocess.PIPE) as target:
        assert target.stdout is not None
        target.stdout.readline()
        done = subprocess.run(
            ["strace", "-f", "-ttt", "-p", str(target.pid)], capture_output=True, timeout=30, check=False
        )
    (tmp_path / "log").write_bytes(done.stderr)
    log = read_strace([tmp_path / "log"])
    assert log.unread == ()
    assert set(log.events.records["tgid"].tolist()) == {target.pid}
