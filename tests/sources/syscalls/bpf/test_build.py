"""The kernel program as it is built: for both architectures, without a warning, with the layouts of layout.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sockscope.model.calls import Call
from sockscope.model.events import EVENT_DTYPE, EventFlag, Section
from sockscope.sources.syscalls.abi import Abi, Machine, abi_of
from sockscope.sources.syscalls.bpf import layout
from sockscope.sources.syscalls.bpf.layout import Kind, Program, Ring
from sockscope.sources.syscalls.copy_plan import OPS_MAX, PLAN_BYTES, pack_plans
from tests.sources.syscalls.bpf.elf_support import EM_BPF, Elf, Struct, structs_of

pytest.importorskip("hatchling", reason="a build requirement")
pytest.importorskip("ziglang", reason="a build requirement")

ROOT = Path(__file__).parents[4]
MACHINES = list(Machine)


@pytest.fixture(scope="module", params=MACHINES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Elf:
    from hatch_build import BPF_OBJECTS, compile_bpf

    target = tmp_path_factory.mktemp("bpf") / "trace.bpf.o"
    source = next(source for source, made in BPF_OBJECTS if ROOT / made == layout.OBJECT)
    # -Wall -Wextra -Werror: any warning raises.
    compile_bpf(ROOT / source, target, request.param)
    return Elf(target.read_bytes())


@pytest.fixture
def structs(built: Elf) -> dict[str, Struct]:
    return structs_of(built.section(".BTF"))


def assert_same(compiled: Struct, dtype: np.dtype[np.void]) -> None:
    assert compiled.size == dtype.itemsize
    assert dtype.fields is not None
    assert compiled.offsets == {name: field[1] for name, field in dtype.fields.items()}


def test_programs_maps_and_globals_are_where_they_are_looked_for(built: Elf) -> None:
    assert built.machine == EM_BPF
    symbols = {(section, name): (at, size) for section, name, at, size in built.symbols()}
    assert symbols[".rodata", "config"] == (0, layout.CONFIG_DTYPE.itemsize)
    assert symbols[".bss", "shared"] == (0, layout.SHARED_DTYPE.itemsize)
    assert {name for section, name in symbols if section == ".maps"} >= {
        *Ring,
        layout.ROOTS_MAP,
        layout.PORTS_MAP,
    }
    names = {name for section, name in symbols if section.startswith(("tp_btf/", "iter/"))}
    assert names >= {*Program, *layout.OPTIONAL_PROGRAMS}
    iterators = {name for section, name in symbols if section.startswith("iter/")} & {*Program}
    assert iterators == layout.ITERATORS & {*Program}
    assert (built.section("license")).rstrip(b"\0") == b"Dual MIT/GPL"


def test_optional_programs_name_their_tracepoints(built: Elf) -> None:
    sections = {name: section for section, name, _, _ in built.symbols()}
    for program, tracepoints in layout.OPTIONAL_PROGRAMS.items():
        assert sections[program] == f"tp_btf/{tracepoints[0]}"


def test_layouts_are_those_of_the_kernel_program(structs: dict[str, Struct]) -> None:
    assert_same(structs["event"], EVENT_DTYPE)
    assert_same(structs["shared"], layout.SHARED_DTYPE)
    assert_same(structs["config"], layout.CONFIG_DTYPE)
    assert_same(structs["quick"], layout.QUICK_DTYPE)
    assert structs["plan"].size == PLAN_BYTES
    assert structs["plan"].size == structs["plan"].offsets["ops"] + OPS_MAX * structs["op"].size


@pytest.mark.parametrize("ring", list(Ring))
def test_a_slot_is_the_kernels_header_and_a_record(structs: dict[str, Struct], ring: Ring) -> None:
    slot = layout.slot_dtype(ring)
    assert slot.itemsize == layout.STRIDES[ring]
    assert slot.fields is not None
    assert slot.fields["event"][1] == layout.RING_HEADER_BYTES
    if f"{ring}_record" in structs:  # `medium` and `large` are filled by size only
        record = structs[f"{ring}_record"]
        assert record.size == slot.itemsize - layout.RING_HEADER_BYTES
        assert record.offsets["blob"] == slot.fields["blob"][1] - layout.RING_HEADER_BYTES
    assert layout.blob_capacity(ring) == slot["blob"].shape[0]


def config_of(abi: Abi, **options: int) -> np.void:
    packed = layout.pack_config(abi, **{"payload_bytes": 64, **options})
    config: np.void = np.frombuffer(packed, layout.CONFIG_DTYPE, 1)[0]
    return config


@pytest.mark.parametrize("machine", MACHINES)
def test_configuration(machine: Machine) -> None:
    abi = abi_of(machine)
    config = config_of(abi, port=8080)
    assert (config["payload_bytes"], config["port"]) == (64, 8080)
    assert config["epoll_event_bytes"] == abi.epoll_event_bytes
    assert config["plans"].tobytes() == pack_plans(abi)
    assert config["nr_execve"] == abi.numbers[Call.execve]
    assert config_of(abi)["port"] == 0
    assert config_of(abi, payload_bytes=1 << 20)["payload_bytes"] == layout.PAYLOAD_MAX
    for number in range(len(config["quick"])):
        kind = config["quick"][number]["kind"]
        if number in abi.calls:
            assert config["quick"][number]["call"] == abi.calls[number]
            assert kind not in (Kind.NONE, Kind.CONTROL)
        else:
            assert kind == (Kind.CONTROL if number in (abi.restart_syscall, abi.rt_sigreturn) else Kind.NONE)


@pytest.mark.parametrize(
    ("call", "kind", "flags"),
    [
        (Call.read, Kind.PAYLOAD, layout.QUICK_OUTPUT),
        (Call.write, Kind.PAYLOAD, 0),
        (Call.recvfrom, Kind.PAYLOAD, layout.QUICK_OUTPUT | layout.QUICK_ADDRESS),
        (Call.sendto, Kind.PAYLOAD, layout.QUICK_ADDRESS),
        (Call.readv, Kind.VECTOR, layout.QUICK_OUTPUT),
        (Call.writev, Kind.VECTOR, 0),
        (Call.epoll_pwait, Kind.READY, 0),
        (Call.epoll_pwait2, Kind.GENERAL, 0),
        (Call.close, Kind.PLAIN, 0),
        (Call.mmap, Kind.GENERAL, 0),
        (Call.ioctl, Kind.GENERAL, 0),
        (Call.accept4, Kind.GENERAL, 0),
        (Call.pselect6, Kind.GENERAL, layout.QUICK_ENTRY),
        (Call.execve, Kind.GENERAL, layout.QUICK_ENTRY),
        (Call.clone3, Kind.GENERAL, layout.QUICK_ENTRY),
    ],
)
@pytest.mark.parametrize("machine", MACHINES)
def test_hot_calls_take_the_short_way(machine: Machine, call: Call, kind: Kind, flags: int) -> None:
    abi = abi_of(machine)
    quick = config_of(abi)["quick"][abi.numbers[call]]
    assert (quick["kind"], quick["flags"]) == (kind, flags)


def test_numbers_in_the_c_are_the_recording_formats() -> None:
    """record.h repeats them; a wrong one would be written into recordings."""
    text = (ROOT / "sockscope/sources/syscalls/bpf/csrc/record.h").read_text()
    for name, value in (
        *((f"SEC_{section.name}", int(section)) for section in Section),
        *((flag.name or "", int(flag)) for flag in EventFlag),
        *((f"CALL_{call.name.upper()}", int(call)) for call in Call),
    ):
        if f"{name} = " in text:
            assert f"{name} = {value}" in text, name
    for first in (Call.task_new, Call.sock_state):
        assert f"{first.name.upper()} = {int(first)}" in text
