"""Each process that cannot be traced is refused with its reason, and left as it was."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sockscope.errors import CannotObserveError, TargetGoneError
from sockscope.sources.syscalls.engine import EngineOptions
from sockscope.sources.syscalls.ptrace.engine import PtraceEngine
from tests.sources.syscalls.ptrace_support import Program, Trace, assert_left_alone, compile_c, state, wait_until

pytestmark = pytest.mark.live

SLEEPER = "import sys; print('ready'); sys.stdin.readline()"

LOOPS_32 = """
void _start(void) { for (;;)
    __asm__ volatile("int $0x80" : : "a"(162), "b"((long[2]){0, 1000000}), "c"(0) : "memory"); }
"""


def refusal(pid: int) -> str:
    with pytest.raises(CannotObserveError) as caught:
        PtraceEngine(EngineOptions()).attach([pid])
    assert "\n" not in caught.value.message + (caught.value.help_text or "")
    return caught.value.message


def test_no_such_process_oneself_and_a_parent() -> None:
    assert "no process 4194303" in refusal(4194303)
    assert "no process -1" in refusal(-1)
    assert "sockscope itself" in refusal(os.getpid())
    assert "sockscope itself or started it" in refusal(os.getppid())


def test_a_zombie() -> None:
    child = subprocess.Popen(["true"])
    wait_until(lambda: state(child.pid) == "Z", "no zombie")
    assert "is a zombie" in refusal(child.pid)
    child.wait()


def test_a_kernel_thread() -> None:
    if not Path("/proc/2/comm").exists() or Path("/proc/2/comm").read_text() != "kthreadd\n":
        pytest.skip("kernel threads are not visible in this pid namespace")
    assert "is a kernel thread" in refusal(2)


INSIDE = """
import os, subprocess
from sockscope.sources.syscalls.preflight import check_target
first = subprocess.Popen(["sh", "-c", "sleep 30 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
second = int(first.stdout.readline())
check_target(first.pid)
check_target(second)
first.kill()
os.kill(second, 9)
print(first.pid)
"""


def test_process_two_of_a_container_is_none() -> None:
    command = ["unshare", "-p", "-f", "--mount-proc", sys.executable, "-c", INSIDE]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60)
    if "unshare:" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_a_thread_is_not_a_process() -> None:
    source = (
        "import threading, time; t = threading.Thread(target=time.sleep, args=(50,)); t.start(); print(t.native_id)"
    )
    with Program.python(source) as program:
        tid = int(program.line())
        assert f"is a thread of process {program.pid}" in refusal(tid)


def test_already_traced_says_by_whom() -> None:
    with Program.python(SLEEPER) as program:
        program.line()
        with Trace(attach=[program.pid]):
            message = refusal(program.pid)
        assert "already traced by process" in message
        assert "python" in message
        with Trace(attach=[program.pid]):
            pass


def test_one_refusal_refuses_all() -> None:
    with Program.python(SLEEPER) as program:
        program.line()
        with pytest.raises(CannotObserveError, match="kernel thread"):
            PtraceEngine(EngineOptions()).attach([program.pid, 2])
        assert_left_alone(program.pid, os.sched_getaffinity(0))


def test_those_that_have_ended_are_left_out() -> None:
    with Program.python(SLEEPER) as program:
        program.line()
        with Trace(attach=[4194303, program.pid]):
            assert_traced(program.pid)
    with pytest.raises(TargetGoneError, match="no process"):
        PtraceEngine(EngineOptions()).attach([4194303, 4194302])


def assert_traced(tgid: int) -> None:
    status = Path(f"/proc/{tgid}/status").read_text()
    assert "TracerPid:\t0" not in status


def test_another_users_process() -> None:
    with Program.python(SLEEPER) as program:
        program.line()
        code = (
            "import os, sys; sys.path.insert(0, '.'); import sockscope.sources.syscalls.ptrace.preflight as p\n"
            "from sockscope.errors import CannotObserveError\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            f"try: p.check_target({program.pid})\n"
            "except CannotObserveError as e: print(e.message, '|', e.help_text)\n"
        )
        said = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
        ).stdout
    assert "belongs to user id 0" in said
    assert "sudo" in said


def test_a_32_bit_program(tmp_path: Path) -> None:
    binary = compile_c(LOOPS_32, tmp_path, "-m32", "-nostdlib", "-static", "-w", "-fno-pie", "-no-pie")
    try:
        program = Program(binary)
    except OSError as error:
        pytest.skip(f"this kernel runs no 32-bit programs: {error}")
    with program:
        time.sleep(0.1)
        assert "32-bit" in refusal(program.pid)


def test_a_program_that_becomes_32_bit_is_let_go(tmp_path: Path) -> None:
    binary = compile_c(LOOPS_32, tmp_path, "-m32", "-nostdlib", "-static", "-w", "-fno-pie", "-no-pie")
    source = f"import os, sys; print('ready'); sys.stdin.readline(); os.execv({binary!r}, ['p'])"
    with Program.python(source) as program:
        program.line()
        with Trace(attach=[program.pid]) as trace:
            program.say("go")
            trace.join()
            if program.process.poll() is not None:
                pytest.skip("this kernel runs no 32-bit programs")
            assert trace.engine.coverage().lost == {"32-bit process not followed": 1}
        assert os.sched_getaffinity(program.pid) == os.sched_getaffinity(0)
