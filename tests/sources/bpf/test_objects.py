"""An object before its load (no privileges), and then on the real kernel."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sockscope.sources.bpf.libbpf import BpfRefusedError
from sockscope.sources.bpf.objects import BpfObject, KernelTypes
from tests.live.socket_hosts import eventually

SKIPPED = ("unsafe", "nowhere")
TASK_DTYPE = np.dtype([("tgid", "<u4"), ("tid", "<u4")])


def test_what_an_object_holds(tiny: Path) -> None:
    with BpfObject(tiny) as found:
        assert sorted(found.program_names()) == ["enters", "nowhere", "tasks", "unsafe"]
        assert found.rodata_bytes == 8
        assert found.has_map(".bss")
        assert not found.has_map("other")


def test_names_that_are_not_there(tiny: Path) -> None:
    with BpfObject(tiny) as found:
        for use in (found.skip, found.map_fd, found.attach, lambda name: found.set_max_entries(name, 1)):
            with pytest.raises(KeyError, match="no such"):
                use("no such")


def test_constants_must_fit(tiny: Path) -> None:
    with BpfObject(tiny) as found:
        found.set_rodata(b"12345678")
        for data, at in ((b"123456789", 0), (b"1", 8), (b"1", -1)):
            with pytest.raises(ValueError, match=r"\.rodata has 8 bytes"):
                found.set_rodata(data, at)


def test_a_closed_object_says_so(tiny: Path) -> None:
    found = BpfObject(tiny)
    found.close()
    found.close()
    for use in (found.load, found.program_names, lambda: found.map_fd(".bss")):
        with pytest.raises(ValueError, match=r"tiny\.bpf\.o is closed"):
            use()


@pytest.fixture
def loaded(tiny: Path) -> Iterator[BpfObject]:
    """Follows this process."""
    with BpfObject(tiny) as found:
        for name in SKIPPED:
            found.skip(name)
        found.set_rodata(struct.pack("=I", os.getpid()))
        found.set_max_entries("counts", 2)
        found.load()
        yield found


@pytest.mark.live
def test_tracepoints_are_probed(tiny: Path) -> None:
    with KernelTypes() as types:
        assert types.has_tracepoint("sched_process_exit")
        assert not types.has_tracepoint("no_such_tracepoint")
    with BpfObject(tiny) as found:
        assert [found.has_tracepoint(name) for name in ("sys_exit", "sys_nowhere")] == [True, False]


@pytest.mark.live
def test_an_iterator_runs_again_and_again(loaded: BpfObject) -> None:
    own = os.getpid()
    for _ in range(3):
        rows = np.frombuffer(loaded.run_iterator("tasks"), TASK_DTYPE)
        assert set(rows["tgid"].tolist()) == {own}
        assert rows["tid"].tolist() == sorted(int(tid) for tid in os.listdir("/proc/self/task"))


@pytest.mark.live
def test_an_iterator_can_be_told_a_process(tiny: Path) -> None:
    with BpfObject(tiny) as found:
        for name in SKIPPED:
            found.skip(name)
        found.load()
        everybody = np.frombuffer(found.run_iterator("tasks"), TASK_DTYPE)
        assert {os.getpid(), os.getppid()} <= set(everybody["tgid"].tolist())
        mine = np.frombuffer(found.run_iterator("tasks", struct.pack("=IIII", 0, os.getpid(), 0, 0)), TASK_DTYPE)
        assert set(mine["tgid"].tolist()) == {os.getpid()}


@pytest.mark.live
@pytest.mark.parametrize("copies", [1, 2047, 2049, 3000])
def test_an_output_of_many_pieces_is_whole(tiny: Path, copies: int) -> None:
    with BpfObject(tiny) as found:
        for name in SKIPPED:
            found.skip(name)
        found.set_rodata(struct.pack("=II", 0, copies))
        found.load()
        rows = np.frombuffer(found.run_iterator("tasks"), TASK_DTYPE)
        tids, counts = np.unique(rows["tid"], return_counts=True)
        assert len(tids) >= 2
        assert set(counts.tolist()) == {copies}


@pytest.mark.live
def test_counters_are_seen_as_they_change(loaded: BpfObject) -> None:
    memory = loaded.map_memory(".bss")
    seen = np.frombuffer(memory, "<u8", 1)
    assert seen[0] == 0
    loaded.attach("enters")
    loaded.attach("enters")
    for _ in range(100):
        os.getppid()
    first = int(seen[0])
    assert first >= 100
    loaded.detach("enters")
    first = int(seen[0])
    for _ in range(100):
        os.getppid()
    assert seen[0] == first
    assert loaded.missed_count() == 0
    constants = loaded.map_memory(".rodata")
    assert struct.unpack("=I", constants[:4]) == (os.getpid(),)
    # A view that lives on holds the memory, and close is no harm.
    loaded.close()
    assert seen[0] == first


@pytest.mark.live
def test_maps(loaded: BpfObject) -> None:
    one, two, three = (struct.pack("=I", number) for number in (1, 2, 3))
    assert loaded.lookup("counts", one) is None
    loaded.update("counts", one, b"12345678")
    loaded.update("counts", one, b"abcdefgh")
    loaded.update("counts", two, b"12345678")
    assert loaded.lookup("counts", one) == b"abcdefgh"
    with pytest.raises(BpfRefusedError, match="update counts"):
        loaded.update("counts", three, b"12345678")
    assert loaded.delete("counts", one)
    assert not loaded.delete("counts", one)
    with pytest.raises(ValueError, match="a key of counts has 4 bytes, not 1"):
        loaded.lookup("counts", b"1")
    with pytest.raises(ValueError, match="a value of counts has 8 bytes, not 1"):
        loaded.update("counts", one, b"1")
    every_cpu = loaded.lookup("each_cpu", struct.pack("=I", 0))
    assert every_cpu is not None
    assert len(every_cpu) % 8 == 0
    assert not any(every_cpu)


@pytest.mark.live
def test_a_refused_program_comes_with_the_verifiers_words(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with BpfObject(tiny) as found:
        found.skip("nowhere")
        with pytest.raises(BpfRefusedError) as caught:
            found.load()
    assert "cannot load tiny.bpf.o (program unsafe): this kernel's verifier refuses" in caught.value.message
    assert "processed" in caught.value.detail
    assert "END PROG LOAD LOG" in caught.value.detail
    assert capfd.readouterr() == ("", "")


@pytest.mark.live
def test_a_missing_tracepoint_is_refused_unless_skipped(tiny: Path) -> None:
    with BpfObject(tiny) as found:
        found.skip("unsafe")
        with pytest.raises(BpfRefusedError, match="this kernel lacks what the program needs") as caught:
            found.load()
    assert "no_such_tracepoint" in caught.value.detail


def program_ids() -> set[int]:
    """Programs whose descriptors this process holds."""
    out: set[int] = set()
    for name in os.listdir("/proc/self/fdinfo"):
        try:
            with open(f"/proc/self/fdinfo/{name}") as file:
                out.update(int(line.split()[1]) for line in file if line.startswith("prog_id:"))
        except OSError:
            continue
    return out


def loaded_names() -> list[str]:
    """Descriptors that are of BPF."""
    out = []
    for name in os.listdir("/proc/self/fd"):
        try:
            out.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return [link for link in out if "bpf" in link]


@pytest.mark.live
def test_nothing_stays(tiny: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with BpfObject(tiny) as found:
            for name in SKIPPED:
                found.skip(name)
            found.load()
            found.attach("enters")
            found.run_iterator("tasks")
            found.map_memory(".bss")
            assert program_ids()
            assert loaded_names()
    with BpfObject(tiny) as found, pytest.raises(BpfRefusedError):
        found.load()
    assert eventually(lambda: not program_ids() and not loaded_names())
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.live
def test_who_may_not_is_told(tiny: Path) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            found = BpfObject(tiny)
            os.setuid(65534)
            found.load()
        except BpfRefusedError as error:
            code = 0 if "bpf(2) is not permitted" in error.message else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
