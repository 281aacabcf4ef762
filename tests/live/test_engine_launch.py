"""A launched command runs as it would alone, with every event of interest from its exec on."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from sockscope.errors import ExitCode, UsageError
from sockscope.model.calls import Call
from sockscope.model.events import Section
from sockscope.sources.syscalls.engine import EngineOptions
from tests.sources.syscalls.ptrace_support import (
    ENGINES,
    Trace,
    args,
    compile_c,
    flags,
    make_engine,
    ret,
    rows,
    section,
    wait_until,
)

pytestmark = [pytest.mark.live, pytest.mark.parametrize("engine", ENGINES)]


def test_a_command_from_its_exec_to_its_exit(engine: str, capfd: pytest.CaptureFixture[str]) -> None:
    with Trace(engine=engine, launch=["sh", "-c", "/bin/echo hello; exit 3"]) as trace:
        events = trace.join()
        assert os.waitstatus_to_exitcode(trace.engine.exit_status() or 0) == 3
        root = trace.tgid
    assert capfd.readouterr().out == "hello\n"
    execs = rows(events, Call.task_exec)
    assert section(events, execs[0], Section.PATH).endswith(b"sh")
    assert int(events.records[execs[0]]["tid"]) == root
    assert section(events, rows(events, Call.execve, root)[0], Section.PATH).endswith(b"/sh")
    assert events.call(0) is Call.task_attach
    assert len(rows(events, Call.task_exit)) == len(rows(events, Call.task_new)) + 1
    # Nothing of sockscope's own leaks into it: the first file it opens is 3.
    assert ret(events, rows(events, Call.openat)[0]) == 3


def test_sockets_threads_and_untraced_calls_work(engine: str, tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text("""
import socket, threading, os
s = socket.create_server(("127.0.0.1", 0))
def client():
    with socket.create_connection(s.getsockname()) as c: c.sendall(b"hi"); assert c.recv(9) == b"hi"
t = threading.Thread(target=client); t.start()
c, a = s.accept(); c.sendall(c.recv(9)); c.close(); t.join()
assert os.getppid() and os.stat("/").st_mode
""")
    with Trace(engine=engine, launch=[sys.executable, str(script)]) as trace:
        events = trace.join()
        assert trace.engine.exit_status() == 0
    (accept,) = rows(events, Call.accept4)
    assert len(section(events, accept, Section.SOCKADDR)) == 16
    assert any(section(events, row, Section.PAYLOAD) == b"hi" for row in rows(events, Call.recvfrom))
    assert not any(flags(events, row) for row in rows(events, Call.accept4))


def test_signals_and_restarts_behind_the_filter(engine: str, tmp_path: Path) -> None:
    """An accept interrupted by an SA_RESTART handler: one event, and the program's own view of it."""
    source = """
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
static int client;
static void on(int n) {
    struct sockaddr_un a = {AF_UNIX, "\\0sockscope-test"};
    (void)n;
    if (client++) connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&a, 17); else alarm(1);
}
int main(void) {
    struct sigaction h = {.sa_handler = on, .sa_flags = SA_RESTART};
    struct sockaddr_un a = {AF_UNIX, "\\0sockscope-test"};
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    sigaction(SIGALRM, &h, 0);
    bind(s, (struct sockaddr *)&a, 17); listen(s, 1);
    alarm(1);
    return accept(s, 0, 0) < 0;
}
"""
    with Trace(engine=engine, launch=[compile_c(source, tmp_path, "-w")]) as trace:
        events = trace.join()
        assert trace.engine.exit_status() == 0
    (accept,) = rows(events, Call.accept)
    assert ret(events, accept) > 0
    assert len(rows(events, Call.task_signal)) == 2


def test_stop_ends_it_by_sigterm(engine: str) -> None:
    with Trace(engine=engine, launch=["sleep", "100"]) as trace:
        trace.wait_for(lambda e: bool(rows(e, Call.task_exec)), "never started")
        events = trace.finish()
        assert trace.engine.exit_status() == signal.SIGTERM
    assert args(events, rows(events, Call.task_signal)[0])[0] == signal.SIGTERM


def test_it_waits_until_the_batches_are_read(engine: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    launcher = make_engine(engine, EngineOptions())
    try:
        launcher.launch(["touch", str(mark)])
        time.sleep(0.2)
        assert not mark.exists()
        for _ in launcher.batches():
            pass
        assert mark.exists()
    finally:
        launcher.close()


def test_a_command_never_started_is_ended(engine: str) -> None:
    launcher = make_engine(engine, EngineOptions())
    tgid = launcher.launch(["sleep", "100"])
    launcher.close()
    assert not os.path.exists(f"/proc/{tgid}/exe")


def test_closed_while_it_runs_it_is_ended(engine: str) -> None:
    launcher = make_engine(engine, EngineOptions())
    tgid = launcher.launch(["sh", "-c", "sleep 100 & sleep 100"])
    execs = 0
    for batch in launcher.batches():
        execs += len(rows(batch.events, Call.task_exec))
        if execs >= 3:
            break
    launcher.close()
    assert not os.path.exists(f"/proc/{tgid}/exe")


@pytest.mark.parametrize(
    ("command", "message"),
    [("sockscope-no-such-command", "command not found"), ("/etc/passwd", "cannot be executed"), ("", "not found")],
)
def test_a_command_that_cannot_be(engine: str, command: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make_engine(engine, EngineOptions()).launch([command])
    assert caught.value.exit_code is ExitCode.USAGE


def test_it_inherits_what_sockscope_was_given(engine: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("handed on\n")
    with (tmp_path / "in").open() as given, (tmp_path / "out").open("w") as out:
        os.set_inheritable(given.fileno(), True)
        with Trace(engine=engine, launch=["bash", "-c", f"cat <&{given.fileno()} >{out.name}"]) as trace:
            trace.join()
            assert trace.engine.exit_status() == 0
    assert (tmp_path / "out").read_text() == "handed on\n"


def test_stop_reaches_what_a_shell_leaves_behind(engine: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    server = f"trap 'echo asked >>{mark}; exit 0' TERM; echo up >{mark}; while :; do sleep 0.05; done"
    with Trace(engine=engine, launch=["bash", "-c", 'bash -c "$0" | cat', server]) as trace:
        wait_until(lambda: mark.exists() and bool(mark.read_text()), "never started")
        trace.finish()
    assert mark.read_text() == "up\nasked\n"
