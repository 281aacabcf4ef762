"""The kernel programs as the engine handles them: loaded, attached, told whom to follow, asked for their counters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping

import numpy as np

from sockscope.sources.bpf.libbpf import BpfRefusedError
from sockscope.sources.bpf.objects import BpfObject
from sockscope.sources.syscalls.abi import Abi
from sockscope.sources.syscalls.bpf import layout
from sockscope.sources.syscalls.bpf.layout import Mode, Program, Ring
from sockscope.sources.syscalls.bpf.ring import RingReader

TASKS_MAP = "tasks"
PASSES_MAX = 20
"""Threads that start threads are found by looking again; what forks faster is found by its own fork."""


class Programs:
    """The object, loaded: verified by the kernel, its maps made, nothing attached yet.

    Args:
        ring_bytes: size of each ring, a power of two.

    Raises:
        BpfRefusedError: it cannot be had here, and why.
    """

    def __init__(self, abi: Abi, *, payload_bytes: int, port: int | None, ring_bytes: Mapping[Ring, int]) -> None:
        setup = layout.pack_config(abi, payload_bytes=payload_bytes, port=port)
        try:
            self._object, names = _loaded(setup, ring_bytes, optional=True)
        except BpfRefusedError:
            # An older verifier may refuse what is not needed: kernel events, io_uring.
            self._object, names = _loaded(setup, ring_bytes, optional=False)
        try:
            self._begin(names, ring_bytes)
        except OSError as error:
            self._object.close()
            raise BpfRefusedError(
                f"the kernel's rings cannot be mapped: {error.strerror}", help_text="free some memory (about 100 MB)"
            ) from error
        except BaseException:
            self._object.close()
            raise

    def _begin(self, names: frozenset[str], ring_bytes: Mapping[Ring, int]) -> None:
        loaded = self._object
        self._attached = sorted(names - layout.ITERATORS)
        self._has_uring = layout.URING_PENDING in names
        self._shared = np.frombuffer(loaded.map_memory(layout.SHARED_MAP), layout.SHARED_DTYPE, 1)
        loaded.run_iterator(Program.WHO)
        self.rings = [RingReader(loaded.map_fd(ring), ring_bytes[ring], layout.slot_dtype(ring)) for ring in Ring]
        """Small, medium, large."""
        self._missed_before = loaded.missed_count()
        self._closed = False
        self._missed = 0
        self._excused_count = 0

    def attach(self) -> None:
        """Let them run; nobody is followed yet.

        Raises:
            BpfRefusedError: the kernel refuses.
        """
        for program in self._attached:
            self._object.attach(program)

    def detach(self) -> None:
        """Let none of them run any more. What they wrote stays readable."""
        for program in self._attached:
            self._object.detach(program)

    def follow(self, tgids: Iterable[int], *, silent: bool = False) -> int:
        """Follow all threads of these processes, and their children.

        Args:
            silent: record what they call from their execve on only.

        Returns:
            How many threads became targets.
        """
        keys = [tgid.to_bytes(4, "little") for tgid in tgids]
        before = int(self._shared["seeded"][0])
        for key in keys:
            self._object.update(layout.ROOTS_MAP, key, b"\1")
        try:
            self._pass_until_nothing(Mode.SEED_SILENT if silent else Mode.SEED)
        finally:
            # A number may soon be another process's.
            for key in keys:
                self._object.delete(layout.ROOTS_MAP, key)
        return int(self._shared["seeded"][0]) - before

    def finish(self) -> None:
        """Tell of what is under way, and let every target go."""
        failed_before = int(self._shared["not_followed"][0])
        for _ in range(PASSES_MAX):
            self._pass(Mode.FINISH)
            if not self.followed_count:
                break
        self._excused_count += int(self._shared["not_followed"][0]) - failed_before
        if self._has_uring:
            requests = self._object.map_fd(layout.URING_MAP)
            self._object.run_iterator(layout.URING_PENDING, requests.to_bytes(4, "little"))

    def _pass_until_nothing(self, mode: Mode) -> None:
        """A fork on the CPU where a pass is at work finds the storage locked: the next pass finds the child."""
        first_failed = int(self._shared["not_followed"][0])
        for _ in range(PASSES_MAX):
            seeded, failed = int(self._shared["seeded"][0]), int(self._shared["not_followed"][0])
            self._pass(mode)
            if int(self._shared["not_followed"][0]) != failed:
                continue
            if int(self._shared["seeded"][0]) == seeded:
                self._excused_count += failed - first_failed
                return

    def _pass(self, mode: Mode) -> None:
        self._shared["mode"] = mode
        self._object.run_iterator(Program.SEED)

    def add_ports(self, ports: Iterable[int]) -> None:
        """Tell of what the kernel does to sockets with one of these ports."""
        # A full map: thousands of ports, of which the rest stay without kernel events.
        with contextlib.suppress(BpfRefusedError):
            for port in ports:
                self._object.update(layout.PORTS_MAP, port.to_bytes(2, "little"), b"\1")

    def is_followed(self, pidfd: int) -> bool:
        """Whether the thread behind a pidfd is a target."""
        return self._object.lookup(TASKS_MAP, pidfd.to_bytes(4, "little")) is not None

    @property
    def followed_count(self) -> int:
        """Target threads that live."""
        return int(self._shared["followed"][0])

    def lost(self) -> dict[str, int]:
        """Events not recorded so far, by cause; causes without any are left out."""
        shared = self._shared[0]
        causes = {
            "ring full": int(shared["dropped"].sum()),
            "32-bit process not followed": int(shared["foreign"]),
            "task not followed (no memory)": int(shared["not_followed"]) - self._excused_count,
            "io_uring request not followed (no memory)": int(shared["uring_lost"]),
            "io_uring request of a registered file": int(shared["uring_fixed"]),
            "program was busy": self._missed_count(),
        }
        return {cause: count for cause, count in causes.items() if count}

    def close(self) -> None:
        """Detach and unload; the counters stay. Safe to call twice."""
        if not self._closed:
            self._missed_count()
            self._closed = True
            for ring in self.rings:
                ring.close()
            self._shared = self._shared.copy()
            self._object.close()

    def _missed_count(self) -> int:
        if not self._closed:
            self._missed = self._object.missed_count() - self._missed_before
        return self._missed


def _loaded(setup: bytes, ring_bytes: Mapping[Ring, int], *, optional: bool) -> tuple[BpfObject, frozenset[str]]:
    """The object, verified by the kernel, and which programs it has there.

    Args:
        setup: `layout.pack_config`.
        optional: with what is not needed, where the kernel has the tracepoints.

    Raises:
        BpfRefusedError: the kernel refuses.
    """
    loaded = BpfObject(layout.OBJECT)
    try:
        loaded.set_rodata(setup)
        names = set(loaded.program_names())
        for program, tracepoints in {**layout.OPTIONAL_PROGRAMS, layout.URING_PENDING: ()}.items():
            if program in names and not (optional and all(loaded.has_tracepoint(name) for name in tracepoints)):
                loaded.skip(program)
                names.remove(program)
        for ring, size in ring_bytes.items():
            loaded.set_max_entries(ring, size)
        loaded.load()
    except BaseException:
        loaded.close()
        raise
    return loaded, frozenset(names)
