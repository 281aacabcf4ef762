"""What a target is found with at attach: processes, descriptors, shared open files, epoll interests.

Source: proc(5), proc_pid_fdinfo(5), kcmp(2).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.model.seed import SEED_EPOLL_DTYPE, SEED_FD_DTYPE, FileKind, Seed, SeedProcess
from sockscope.sources.sockets import procfs
from sockscope.sources.sockets.listeners import descendants, listening_ports, tgids_of_port
from sockscope.sources.sockets.netns import netns_of
from sockscope.sources.sockets.open_files import Slot, group_open_files, share_files_table

__all__ = ["descendants", "listening_ports", "read_seed", "tgids_of_port"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """The descriptors of one process, column by column."""

    tgid: int
    time_ns: int
    fds: list[int]
    kinds: list[FileKind]
    inodes: list[int]
    flags: list[int]
    links: list[str]
    interests: list[tuple[int, procfs.Interest]]


def read_seed(tgids: Iterable[int]) -> Seed:
    """Read processes as they are now.

    Processes that are gone are left out; those that may not be read have no descriptors.

    Returns:
        Seed; `open_file` is the same number where descriptors share one open file description
        (1, 2, …), told by the inode for sockets (a socket has exactly one) and by kcmp for the rest.
    """
    wanted = list(dict.fromkeys(tgids))
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        # The kernel does most of the work, without the GIL.
        held = list(pool.map(_read_descriptors, wanted))
    processes = [process for tgid in wanted if (process := _read_process(tgid)) is not None]
    shared = _shared_tables(held)
    return Seed(
        processes=tuple(
            SeedProcess(
                tgid=p.tgid,
                ppid=p.ppid,
                tids=p.tids,
                comm=p.comm,
                exe=p.exe,
                cmdline=p.cmdline,
                netns=p.netns,
                started_ns=p.started_ns,
                ns_tgid=p.ns_tgid,
                shares_files_with=shared.get(p.tgid),
            )
            for p in processes
        ),
        fds=_fd_table(held),
        epolls=_epoll_table(held),
    )


def _read_process(tgid: int) -> SeedProcess | None:
    stat = procfs.read_stat(tgid)
    if stat is None:
        return None
    base = f"/proc/{tgid}"
    try:
        tids = tuple(sorted(int(name) for name in os.listdir(f"{base}/task")))
    except OSError:
        tids = (tgid,)
    arguments = (procfs.read_file(f"{base}/cmdline") or b"").rstrip(b"\0")
    return SeedProcess(
        tgid=tgid,
        ppid=stat.ppid,
        tids=tids,
        comm=stat.comm,
        exe=procfs.read_link(f"{base}/exe") or "",
        cmdline=tuple(a.decode("utf-8", "backslashreplace") for a in arguments.split(b"\0")) if arguments else (),
        netns=netns_of(tgid),
        started_ns=procfs.started_monotonic_ns(stat.start_ticks),
        ns_tgid=procfs.parse_ns_tgid(procfs.read_file(f"{base}/status") or b""),
    )


def _read_descriptors(tgid: int) -> _Held:
    held = _Held(
        tgid=tgid,
        time_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC),
        fds=[],
        kinds=[],
        inodes=[],
        flags=[],
        links=[],
        interests=[],
    )
    names_at = info_at = -1
    try:
        names_at = os.open(f"/proc/{tgid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        info_at = os.open(f"/proc/{tgid}/fdinfo", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in sorted(os.listdir(names_at), key=int):
            _read_descriptor(held, name, names_at, info_at)
    except OSError:
        # Gone meanwhile, or not ours to read: what was read stays.
        pass
    finally:
        for handle in (names_at, info_at):
            if handle >= 0:
                os.close(handle)
    return held


def _read_descriptor(held: _Held, name: str, names_at: int, info_at: int) -> None:
    try:
        link = os.readlink(name, dir_fd=names_at)
        handle = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=info_at)
    except OSError:
        return
    kind, inode = procfs.kind_of_link(link)
    try:
        # One read holds pos and flags; only an epoll instance has more to say.
        info = procfs.read_all(handle) if kind is FileKind.EPOLL else os.read(handle, 512)
    except OSError:
        return
    finally:
        os.close(handle)
    fd = int(name)
    held.fds.append(fd)
    held.kinds.append(kind)
    held.inodes.append(inode)
    held.flags.append(procfs.parse_flags(info))
    held.links.append(link)
    if kind is FileKind.EPOLL:
        held.interests.extend((fd, interest) for interest in procfs.parse_interests(info))


def _fd_table(held: list[_Held]) -> npt.NDArray[np.void]:
    out = np.zeros(sum(len(h.fds) for h in held), SEED_FD_DTYPE)
    flags = np.zeros(len(out), np.int64)
    at = 0
    for one in held:
        rows = slice(at, at + len(one.fds))
        out["time_ns"][rows] = one.time_ns
        out["tgid"][rows] = one.tgid
        out["fd"][rows] = one.fds
        out["kind"][rows] = one.kinds
        out["inode"][rows] = one.inodes
        flags[rows] = one.flags
        at += len(one.fds)
    out["cloexec"] = (flags & procfs.O_CLOEXEC) != 0
    out["nonblock"] = (flags & procfs.O_NONBLOCK) != 0
    out["open_file"] = _open_files(out, [link for one in held for link in one.links], flags)
    return out


def _open_files(table: npt.NDArray[np.void], links: list[str], flags: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Number the open file descriptions, shape (descriptors,)."""
    numbers = np.zeros(len(table), np.uint32)
    sockets = np.flatnonzero((table["kind"] == FileKind.SOCKET) & (table["inode"] != 0))
    inodes, which = np.unique(table["inode"][sockets], return_inverse=True)
    numbers[sockets] = which + 1
    last = len(inodes)
    candidates: dict[tuple[str, int], list[Slot]] = {}
    is_socket = np.zeros(len(table), np.bool_)
    is_socket[sockets] = True
    for row in np.flatnonzero(~is_socket).tolist():
        # Status flags belong to the open file, so the same file shows the same; O_CLOEXEC is the descriptor's.
        mode = procfs.access_mode(int(flags[row]))
        fd = int(table["fd"][row])
        likeness = (fd,) if table["inode"][row] == 0 else ()
        slot = Slot(row=row, tgid=int(table["tgid"][row]), fd=fd, likeness=likeness)
        candidates.setdefault((links[row], mode), []).append(slot)
    for slots in candidates.values():
        for group in group_open_files(slots):
            last += 1
            numbers[group] = last
    return numbers


def _epoll_table(held: list[_Held]) -> npt.NDArray[np.void]:
    rows = [
        (one.tgid, epoll_fd, interest.fd, interest.events, interest.data, interest.inode)
        for one in held
        for epoll_fd, interest in one.interests
    ]
    return np.array(rows, SEED_EPOLL_DTYPE) if rows else np.zeros(0, SEED_EPOLL_DTYPE)


def _shared_tables(held: list[_Held]) -> dict[int, int]:
    """tgid → the first process whose files table it uses. Only those that hold the same descriptors are asked."""
    alike: dict[tuple[int, int], list[int]] = {}
    out: dict[int, int] = {}
    for one in held:
        if not one.fds:
            continue
        peers = alike.setdefault((len(one.fds), hash((tuple(one.fds), tuple(one.links)))), [])
        for peer in peers:
            if share_files_table(peer, one.tgid):
                out[one.tgid] = peer
                break
        else:
            peers.append(one.tgid)
    return out
