"""Shared memory that processes find by name: System V segments, and what lies in /dev/shm; who maps them.

A segment is the same for two processes where its number is (shmid, or inode of the file); memfds and anonymous
shared mappings have no name by which a stranger could find them, and are left out.
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sockscope.model.facts import SEGMENT_FACT_DTYPE, SegmentKind

T = TypeVar("T")

_CLONE_NEWIPC = 0x08000000
_SHM_DEST = 0o1000
"""In the mode: goes with its last attachment. Source: include/uapi/linux/shm.h."""
_SEMAPHORE_BYTES = 32
"""sizeof(sem_t), 64-bit; glibc and musl alike begin with the value."""
_VALUE_MASK = 0x7FFFFFFF
"""SEM_VALUE_MAX; the bit above it is musl's "somebody waits"."""
_FILES_MAX = 4096
"""Of one /dev/shm: a folder that somebody filled must not hold up the watching."""
_OTHERS_MAX = 4096

_SYSTEM_V_MAP = re.compile(rb"/SYSV[0-9a-f]{8,16}(?: \(deleted\))?$")
_FILE_MAP = re.compile(rb"(/dev/shm/.+?)( \(deleted\))?$")

_Key = tuple[int, int, int]
"""Kind, where it lives (ipc namespace, or device), its number there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One segment, as a row of SEGMENT_FACT_DTYPE says it."""

    kind: SegmentKind
    id: int
    size_bytes: int = 0
    creator: int = -1
    attach_count: int = -1
    changed_realtime_ns: int = 0
    value: int = -1
    removed: bool = False
    path: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """One line of /proc/PID/maps that shows shared memory with a name.

    Attributes:
        device: major and minor as the line has them, made one number; 0 for System V.
        area: `start-end`, the name under map_files.
    """

    kind: SegmentKind
    device: int
    id: int
    size_bytes: int
    removed: bool
    path: bytes
    area: str


def read_segments(tgids: Collection[int], *, now_ns: int) -> npt.NDArray[np.void]:
    """Every named segment that these processes (or we) could reach, and who maps it.

    Args:
        tgids: the target's processes; those that are gone, or may not be read, add nothing.
        now_ns: CLOCK_MONOTONIC, noted in each row.

    Returns:
        Shape (n,), SEGMENT_FACT_DTYPE: for each segment one row with tgid -1, and one for each process that maps
        it, which says the same. Other processes than the target's are looked for where it matters whether there are
        any: of semaphores, and of what the target maps.

    Source: sysvipc(7), proc_sysvipc(5), proc_pid_maps(5), shm_overview(7), sem_overview(7), ipc_namespaces(7).
    """
    found: dict[_Key, Segment] = {}
    mapped: list[tuple[_Key, int]] = []
    namespaces: set[int] = set()
    folders: set[tuple[int, int]] = set()
    # Ours as well: what ended processes left behind is there yet, and most often it is theirs.
    for tgid in (os.getpid(), *sorted(tgids)):
        namespace = _ipc_namespace(tgid)
        if namespace and namespace not in namespaces:
            namespaces.add(namespace)
            for segment in _in_ipc_namespace(tgid, namespace, _system_v):
                found[segment.kind, namespace, segment.id] = segment
        for device, segment in _folder(Path(f"/proc/{tgid}/root/dev/shm"), folders):
            found[segment.kind, device, segment.id] = segment
    for tgid in sorted(tgids):
        for key, mapping in _mapped_by(tgid):
            if key not in found:
                found[key] = _from_mapping(tgid, mapping)
            mapped.append((key, tgid))
    wanted = {key for key in found if key[0] is SegmentKind.SEMAPHORE} | {key for key, _ in mapped}
    if wanted:
        mapped += [(key, tgid) for tgid in _others(tgids) for key, _ in _mapped_by(tgid) if key in wanted]
    rows = [(segment, -1) for segment in found.values()]
    rows += [(found[key], tgid) for key, tgid in dict.fromkeys(mapped)]
    return _table(rows, now_ns)


def _mapped_by(tgid: int) -> Iterator[tuple[_Key, Mapping]]:
    namespace = -1
    for mapping in parse_maps(_content(Path(f"/proc/{tgid}/maps"))):
        place = mapping.device
        if mapping.kind is SegmentKind.SYSTEM_V:
            place = namespace = _ipc_namespace(tgid) if namespace < 0 else namespace
        yield (mapping.kind, place, mapping.id), mapping


def _others(tgids: Collection[int]) -> list[int]:
    """Every process that is none of these, the last ones only where they are very many."""
    numbers = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return [number for number in sorted(numbers)[-_OTHERS_MAX:] if number not in tgids]


def parse_system_v(text: str) -> Iterator[Segment]:
    """The segments of a /proc/sysvipc/shm, whose first line names the columns."""
    heading, *lines = text.splitlines() or [""]
    names = heading.split()
    for line in lines:
        values = dict(zip(names, line.split(), strict=False))
        try:
            yield Segment(
                kind=SegmentKind.SYSTEM_V,
                id=int(values["shmid"]),
                size_bytes=int(values["size"]),
                # 0: made by a process that our pid namespace does not have.
                creator=int(values["cpid"]) or -1,
                attach_count=int(values["nattch"]),
                changed_realtime_ns=int(values["ctime"]) * 1_000_000_000,
                removed=bool(int(values["perms"], 8) & _SHM_DEST),
            )
        except (KeyError, ValueError):
            continue


def parse_maps(text: bytes) -> Iterator[Mapping]:
    """The lines of a /proc/PID/maps that are named shared memory."""
    for line in text.splitlines():
        # Most lines are neither; splitting each would cost more than reading them.
        if b"/SYSV" not in line and b"/dev/shm/" not in line:
            continue
        parts = line.split(None, 5)
        if len(parts) < 6:
            continue
        area, mode, _, device, inode, name = parts
        # A private mapping is a copy: what is written there nobody else sees.
        if not mode.endswith(b"s"):
            continue
        try:
            start, end = (int(edge, 16) for edge in area.split(b"-"))
            major, minor = (int(half, 16) for half in device.split(b":"))
            number = int(inode)
        except ValueError:
            continue
        system_v, file = _SYSTEM_V_MAP.match(name), _FILE_MAP.match(name)
        if system_v is None and file is None:
            continue
        path = file[1] if file else b""
        yield Mapping(
            kind=SegmentKind.SYSTEM_V if system_v else _kind_of(path.rsplit(b"/", 1)[-1]),
            device=0 if system_v else os.makedev(major, minor),
            id=number,
            size_bytes=end - start,
            removed=bool(file and file[2]),
            path=path,
            area=area.decode(),
        )


def semaphore_value(head: bytes, size: int) -> int:
    """The value of a named semaphore from its file's first bytes; -1 where the file is none that we know.

    glibc keeps the value in the low half of a u64 (the high half counts who waits), musl in an int: the same bytes
    on a little-endian machine. Source: glibc sysdeps/nptl/internaltypes.h (struct new_sem), musl sem_init.c.
    """
    if size != _SEMAPHORE_BYTES or len(head) < 4:
        return -1
    return int.from_bytes(head[:4], "little") & _VALUE_MASK


def _kind_of(name: bytes) -> SegmentKind:
    return SegmentKind.SEMAPHORE if name.startswith(b"sem.") else SegmentKind.POSIX


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _ipc_namespace(tgid: int | str) -> int:
    try:
        return os.stat(f"/proc/{tgid}/ns/ipc").st_ino
    except OSError:
        return 0


def _system_v() -> list[Segment]:
    return list(parse_system_v(_content(Path("/proc/sysvipc/shm")).decode("ascii", "replace")))


def _in_ipc_namespace(tgid: int, namespace: int, work: Callable[[], list[T]]) -> list[T]:
    """What `work` gives in the process's ipc namespace; nothing where it may not be entered.

    /proc/sysvipc shows the namespace of the thread that opens it, so another one is entered by a thread of its own.
    """
    if namespace == _ipc_namespace("self"):
        return work()
    results: list[T] = []

    def body() -> None:
        try:
            handle = os.open(f"/proc/{tgid}/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWIPC) == 0:
                results.extend(work())
        finally:
            os.close(handle)

    helper = threading.Thread(target=body, name="ipcns")
    helper.start()
    helper.join()
    return results


def _folder(folder: Path, seen: set[tuple[int, int]]) -> Iterator[tuple[int, Segment]]:
    """The files of one /dev/shm with their device, unless it was looked through before."""
    try:
        about = os.stat(folder)
        if (about.st_dev, about.st_ino) in seen:
            return
        seen.add((about.st_dev, about.st_ino))
        names = sorted(os.listdir(os.fsencode(folder)))[:_FILES_MAX]
    except OSError:
        return
    for name in names:
        segment = _file(os.path.join(os.fsencode(folder), name), _kind_of(name), b"/dev/shm/" + name)
        if segment is not None:
            yield about.st_dev, segment


def _file(place: bytes, kind: SegmentKind, path: bytes, *, follow: bool = False) -> Segment | None:
    """A file as a segment; None where it is gone, or no plain file.

    Args:
        place: where we can read it.
        path: what the target calls it.
        follow: `place` is one of map_files' links. Others are not followed: a folder that anybody may write to.
    """
    try:
        about = os.stat(place, follow_symlinks=follow)
    except OSError:
        return None
    if not stat.S_ISREG(about.st_mode):
        return None
    value = -1
    if kind is SegmentKind.SEMAPHORE and about.st_size == _SEMAPHORE_BYTES:
        value = semaphore_value(_head(place, follow=follow), about.st_size)
    return Segment(
        kind=kind,
        id=about.st_ino,
        size_bytes=about.st_size,
        changed_realtime_ns=about.st_mtime_ns,
        value=value,
        removed=about.st_nlink == 0,
        path=path,
    )


def _head(place: bytes, *, follow: bool) -> bytes:
    try:
        handle = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    except OSError:
        return b""
    try:
        return os.read(handle, 4)
    except OSError:
        return b""
    finally:
        os.close(handle)


def _from_mapping(tgid: int, mapping: Mapping) -> Segment:
    """A segment that only a mapping still shows: unlinked, or in a namespace that may not be entered."""
    file = None
    if mapping.kind is not SegmentKind.SYSTEM_V:
        place = f"/proc/{tgid}/map_files/{mapping.area}".encode()
        file = _file(place, mapping.kind, mapping.path, follow=True)
    if file is not None:
        return replace(file, removed=mapping.removed)
    return Segment(
        kind=mapping.kind, id=mapping.id, size_bytes=mapping.size_bytes, removed=mapping.removed, path=mapping.path
    )


def _table(rows: Iterable[tuple[Segment, int]], now_ns: int) -> npt.NDArray[np.void]:
    return np.array(
        [
            (
                now_ns,
                segment.kind,
                segment.id,
                tgid,
                segment.creator,
                segment.size_bytes,
                segment.attach_count,
                segment.changed_realtime_ns,
                segment.value,
                segment.removed,
                segment.path,
            )
            for segment, tgid in rows
        ],
        dtype=SEGMENT_FACT_DTYPE,
    )
