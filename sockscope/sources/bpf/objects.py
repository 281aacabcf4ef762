"""A compiled BPF object: opened, set up, loaded, run, closed."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import cast

from sockscope.sources.bpf.libbpf import BTF_KIND_TYPEDEF, Libbpf, library, refused

_PART_BYTES = 16 << 10
_FEW_PARTS, _MANY_PARTS = 4, 1024  # IOV_MAX
_PER_CPU_TYPES = frozenset({5, 6, 10})  # BPF_MAP_TYPE_PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH
_INFO_BYTES = 256
_RECURSION_MISSES = slice(208, 216)  # struct bpf_prog_info, include/uapi/linux/bpf.h


class _OpenOptions(ctypes.Structure):
    """struct bpf_object_open_opts, bpf/libbpf.h, as far as it is used."""

    _fields_ = (("size", ctypes.c_size_t), ("object_name", ctypes.c_char_p))


class _IteratorOptions(ctypes.Structure):
    """struct bpf_iter_attach_opts, bpf/libbpf.h."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("link_info", ctypes.c_void_p),
        ("link_info_bytes", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
    )


class KernelTypes:
    """The running kernel's BTF, parsed (some 5 MB); a context manager.

    Raises:
        BpfRefusedError: there is none.
    """

    def __init__(self) -> None:
        self._libbpf = library()
        with self._libbpf.heard() as lines:
            self._btf = self._libbpf.c.btf__load_vmlinux_btf()
            code = ctypes.get_errno()
        if not self._btf:
            raise refused("read the kernel's types", code, lines)

    def __enter__(self) -> KernelTypes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        btf, self._btf = self._btf, None
        if btf:
            self._libbpf.c.btf__free(btf)

    def has_tracepoint(self, name: str) -> bool:
        """Whether a tp_btf program can be attached to this tracepoint (of the kernel proper, not of a module)."""
        found = self._libbpf.c.btf__find_by_name_kind(self._btf, f"btf_trace_{name}".encode(), BTF_KIND_TYPEDEF)
        return bool(found > 0)


class BpfObject:
    """One object file's programs and maps; a context manager. Nothing is pinned: all ends with `close`, or the process.

    To be used by one thread at a time; map descriptors and memory may be used anywhere.

    Args:
        path: of the ELF object. It is opened, not yet loaded.

    Raises:
        BpfRefusedError: no libbpf, or no such object.
    """

    def __init__(self, path: Path) -> None:
        self._object: int | None = None
        self._links: dict[str, int] = {}
        self._memories: list[mmap.mmap] = []
        self._types: KernelTypes | None = None
        self._path = path
        self._libbpf: Libbpf = library()
        self._c = self._libbpf.c
        self._settings: list[Callable[[], object]] = []
        try:
            self._image = path.read_bytes()
        except OSError as error:
            raise refused(f"open {path.name}", error.errno or errno.EIO, []) from error
        self._reopen()

    def __enter__(self) -> BpfObject:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    # Before the load

    @property
    def rodata_bytes(self) -> int:
        """Size of .rodata; 0: the object has none."""
        return self._initial(".rodata")[1] if self.has_map(".rodata") else 0

    def set_rodata(self, data: bytes, at: int = 0) -> None:
        """Write constants that the program will read (`const volatile` globals).

        Raises:
            ValueError: it would reach over the section's end.
            KeyError: the object has no .rodata.
        """
        size = self._initial(".rodata")[1]
        if at < 0 or at + len(data) > size:
            raise ValueError(f".rodata has {size} bytes, not {at + len(data)}")
        self._set(lambda: ctypes.memmove(self._initial(".rodata")[0] + at, data, len(data)))

    def set_max_entries(self, map_name: str, count: int) -> None:
        """Size of a map: entries, for a ring buffer bytes (a power of two of whole pages)."""
        what = f"size the map {map_name}"
        self._set(lambda: self._check(self._c.bpf_map__set_max_entries(self._map(map_name), count), what))

    def skip(self, program: str) -> None:
        """Leave a program out of `load`."""
        what = f"skip {program}"
        self._set(lambda: self._check(self._c.bpf_program__set_autoload(self._program(program), False), what))

    def program_names(self) -> list[str]:
        """All of the object's programs, in its order."""
        return [cast(bytes, self._c.bpf_program__name(program)).decode() for program in self._programs()]

    def has_map(self, name: str) -> bool:
        return bool(self._c.bpf_object__find_map_by_name(self._open, name.encode()))

    def has_tracepoint(self, name: str) -> bool:
        """As the function of that name; the kernel's types are parsed once and kept until `load`."""
        if self._types is None:
            self._types = KernelTypes()
        return self._types.has_tracepoint(name)

    def load(self) -> None:
        """Make the maps and load the programs that are not skipped.

        Raises:
            BpfRefusedError: with the verifier's words in `log`. The object can only be closed then.
        """
        if self._types is not None:
            self._types.close()
            self._types = None
        if self._c.bpf_object__load(self._open) == 0:
            return
        # Once more from the start, to hear why: an object is loaded once, and hearing costs where all is well.
        self._reopen()
        for setting in self._settings:
            setting()
        with self._libbpf.heard() as lines:
            result = self._c.bpf_object__load(self._open)
        if result < 0:
            raise refused(f"load {self._path.name}", -result, lines)

    # Once loaded

    def attach(self, program: str) -> None:
        """Let a program run at what its section names, until `detach` or `close`.

        Raises:
            BpfRefusedError: the kernel refuses.
        """
        if program in self._links:
            return
        with self._libbpf.heard() as lines:
            link = self._c.bpf_program__attach(self._program(program))
            code = ctypes.get_errno()
        if not link:
            raise refused(f"attach {program}", code, lines)
        self._links[program] = link

    def detach(self, program: str) -> None:
        link = self._links.pop(program, None)
        if link is not None:
            self._c.bpf_link__destroy(link)

    def run_iterator(self, program: str, link_info: bytes | None = None) -> bytes:
        """Run an iterator (in the calling thread) over all it iterates.

        Args:
            link_info: union bpf_iter_link_info; None: everything.

        Returns:
            What it wrote by bpf_seq_write. The kernel drops whole outputs of one object above 32 KiB.

        Raises:
            BpfRefusedError: the kernel refuses.
        """
        options = None
        if link_info is not None:
            information = ctypes.create_string_buffer(link_info, len(link_info))
            options = _IteratorOptions(ctypes.sizeof(_IteratorOptions), ctypes.addressof(information), len(link_info))
        with self._libbpf.heard() as lines:
            pointer = ctypes.byref(options) if options is not None else None
            link = self._c.bpf_program__attach_iter(self._program(program), pointer)
            code = ctypes.get_errno()
            if not link:
                raise refused(f"attach {program}", code, lines)
            try:
                descriptor = self._c.bpf_iter_create(self._c.bpf_link__fd(link))
            finally:
                self._c.bpf_link__destroy(link)
        self._check(descriptor, f"run {program}")
        try:
            return _read_to_end(descriptor)
        except OSError as error:
            raise refused(f"run {program}", error.errno or errno.EIO, []) from error
        finally:
            os.close(descriptor)

    def map_fd(self, name: str) -> int:
        """The map's descriptor; it stays the object's."""
        return self._check(self._c.bpf_map__fd(self._map(name)), f"use the map {name}")

    def map_memory(self, name: str) -> mmap.mmap:
        """.bss, .data or .rodata as the programs see it, shared (.rodata: to read only).

        A view of it that lives on keeps the memory beyond `close`.
        """
        descriptor = self.map_fd(name)
        size = self._c.bpf_map__value_size(self._map(name))
        writing = 0 if name.startswith(".rodata") else mmap.PROT_WRITE  # frozen at the load
        memory = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | writing)
        self._memories.append(memory)
        return memory

    def update(self, map_name: str, key: bytes, value: bytes) -> None:
        """Set a map's element.

        Raises:
            ValueError: key or value has not the map's size.
            BpfRefusedError: the map is full.
        """
        self._sized(map_name, key)
        if len(value) != self._value_bytes(map_name):
            raise ValueError(f"a value of {map_name} has {self._value_bytes(map_name)} bytes, not {len(value)}")
        self._check(self._c.bpf_map_update_elem(self.map_fd(map_name), key, value, 0), f"update {map_name}")

    def delete(self, map_name: str, key: bytes) -> bool:
        """Remove an element; whether it was there."""
        self._sized(map_name, key)
        result = self._c.bpf_map_delete_elem(self.map_fd(map_name), key)
        if result == -errno.ENOENT:
            return False
        self._check(result, f"delete from {map_name}")
        return True

    def lookup(self, map_name: str, key: bytes) -> bytes | None:
        """An element (of per-CPU maps all CPUs' values, one behind the other); None: it is not there."""
        self._sized(map_name, key)
        value = ctypes.create_string_buffer(self._value_bytes(map_name))
        result = self._c.bpf_map_lookup_elem(self.map_fd(map_name), key, value)
        if result == -errno.ENOENT:
            return None
        self._check(result, f"look into {map_name}")
        return value.raw

    def missed_count(self) -> int:
        """How often a program was not run because it ran already on that CPU, over all programs."""
        total = 0
        for program in self._programs():
            descriptor = self._c.bpf_program__fd(program)
            if descriptor < 0:
                continue
            information = ctypes.create_string_buffer(_INFO_BYTES)
            size = ctypes.c_uint32(_INFO_BYTES)
            result = self._c.bpf_obj_get_info_by_fd(descriptor, information, ctypes.byref(size))
            self._check(result, "ask for the programs' state")
            total += int.from_bytes(information.raw[_RECURSION_MISSES], "little")
        return total

    def close(self) -> None:
        """Detach and unload all. Can be called again."""
        if self._types is not None:
            self._types.close()
            self._types = None
        for program in list(self._links):
            self.detach(program)
        for memory in self._memories:
            try:
                memory.close()
            except BufferError:
                continue  # somebody still looks at it
        self._memories = []
        taken, self._object = self._object, None
        if taken:
            self._c.bpf_object__close(taken)

    @property
    def _open(self) -> int:
        if self._object is None:
            raise ValueError(f"{self._path.name} is closed")
        return self._object

    def _reopen(self) -> None:
        before, self._object = self._object, None
        if before:
            self._c.bpf_object__close(before)
        with self._libbpf.heard() as lines:
            options = _OpenOptions(ctypes.sizeof(_OpenOptions), self._path.stem.encode())
            self._object = self._c.bpf_object__open_mem(self._image, len(self._image), ctypes.byref(options))
            code = ctypes.get_errno()
        if not self._object:
            raise refused(f"open {self._path.name}", code, lines)

    def _set(self, setting: Callable[[], object]) -> None:
        setting()
        self._settings.append(setting)

    def _programs(self) -> list[int]:
        found: list[int] = []
        program = self._c.bpf_object__next_program(self._open, None)
        while program:
            found.append(program)
            program = self._c.bpf_object__next_program(self._open, program)
        return found

    def _program(self, name: str) -> int:
        program: int | None = self._c.bpf_object__find_program_by_name(self._open, name.encode())
        if not program:
            raise KeyError(f"{self._path.name} has no program {name}")
        return program

    def _map(self, name: str) -> int:
        found: int | None = self._c.bpf_object__find_map_by_name(self._open, name.encode())
        if not found:
            raise KeyError(f"{self._path.name} has no map {name}")
        return found

    def _initial(self, name: str) -> tuple[int, int]:
        size = ctypes.c_size_t()
        address: int | None = self._c.bpf_map__initial_value(self._map(name), ctypes.byref(size))
        return address or 0, size.value

    def _value_bytes(self, name: str) -> int:
        found = self._map(name)
        size = int(self._c.bpf_map__value_size(found))
        if self._c.bpf_map__type(found) not in _PER_CPU_TYPES:
            return size
        return -(-size // 8) * 8 * int(self._c.libbpf_num_possible_cpus())

    def _sized(self, name: str, key: bytes) -> None:
        size = self._c.bpf_map__key_size(self._map(name))
        if len(key) != size:
            raise ValueError(f"a key of {name} has {size} bytes, not {len(key)}")

    def _check(self, result: int, what: str) -> int:
        if result < 0:
            raise refused(what, -result, [])
        return result


def _read_to_end(descriptor: int) -> bytes:
    """An iterator's whole output, in few system calls.

    One read gives at most 32 KiB (8 pages, kernel/bpf/bpf_iter.c), and each would mean a wait for the GIL. Of a
    readv the kernel makes a read for each part, and goes on as long as it can fill them.
    """
    out: list[bytes] = []
    parts = _FEW_PARTS
    while True:
        # Not from the heap: pages that are not filled are never touched.
        with mmap.mmap(-1, parts * _PART_BYTES) as memory, memoryview(memory) as whole:
            views = [whole[at : at + _PART_BYTES] for at in range(0, len(memory), _PART_BYTES)]
            try:
                got = os.readv(descriptor, views)
            except BlockingIOError:
                continue  # a million objects without output: it wants to be asked again
            finally:
                for view in views:
                    view.release()
            out.append(memory[:got])
        if not got:
            return b"".join(out)
        parts = _MANY_PARTS
