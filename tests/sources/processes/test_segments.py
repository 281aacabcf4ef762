"""Decoding of /proc/sysvipc/shm, /proc/PID/maps and semaphore files."""

from __future__ import annotations

import os
import struct

from hypothesis import given
from hypothesis import strategies as st

from sockscope.model.facts import SegmentKind
from sockscope.sources.processes.segments import Segment, parse_maps, parse_system_v, semaphore_value

SYSTEM_V = """\
       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap
         0          5  1600                  4096  6234  6234      2     0     0     0     0 1795252000          0 1795251999                  4096                     0
1095778304         32   666                 65536     0     0      0   999   999   999   999          0          0 1795250000                     0                     0
"""  # noqa: E501

MAPS = b"""\
55d0c8a00000-55d0c8a01000 r--p 00000000 fe:00 1234                       /usr/bin/server
7f0000000000-7f0000001000 rw-s 00000000 00:01 5                          /SYSV00000000 (deleted)
7f0000002000-7f0000012000 rw-s 00000000 00:01 32                         /SYSV41510000 (deleted)
7f0000020000-7f0000021000 rw-s 00000000 00:1c 7                          /dev/shm/sem.jobs
7f0000030000-7f0000034000 rw-s 00000000 00:1c 8                          /dev/shm/ring buffer (deleted)
7f0000040000-7f0000041000 rw-p 00000000 00:1c 9                          /dev/shm/private-copy
7f0000050000-7f0000051000 rw-s 00000000 00:01 77                         /memfd:arena (deleted)
7f0000060000-7f0000061000 rw-s 00000000 00:01 78                         /dev/zero (deleted)
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
"""


def test_system_v_rows() -> None:
    mine, strangers = parse_system_v(SYSTEM_V)
    assert mine == Segment(
        kind=SegmentKind.SYSTEM_V,
        id=5,
        size_bytes=4096,
        creator=6234,
        attach_count=2,
        changed_realtime_ns=1795251999 * 10**9,
        removed=True,
    )
    # A creator in another pid namespace shows as 0.
    assert (strangers.id, strangers.creator, strangers.attach_count, strangers.removed) == (32, -1, 0, False)


def test_maps_tell_what_is_shared_by_name() -> None:
    first, second, semaphore, gone = parse_maps(MAPS)
    assert [(m.kind, m.id, m.size_bytes) for m in (first, second)] == [
        (SegmentKind.SYSTEM_V, 5, 4096),
        (SegmentKind.SYSTEM_V, 32, 65536),
    ]
    # "(deleted)" is how every System V mapping reads, removed or not.
    assert not first.removed
    assert (semaphore.kind, semaphore.path, semaphore.removed) == (SegmentKind.SEMAPHORE, b"/dev/shm/sem.jobs", False)
    assert semaphore.device == os.makedev(0, 0x1C)
    assert (gone.kind, gone.path, gone.removed) == (SegmentKind.POSIX, b"/dev/shm/ring buffer", True)
    assert gone.area == "7f0000030000-7f0000034000"


def test_a_semaphores_value() -> None:
    assert semaphore_value(struct.pack("<II", 3, 0)[:4], 32) == 3
    # musl sets the sign bit while somebody waits.
    assert semaphore_value(struct.pack("<I", 0x80000000), 32) == 0
    # 32-bit glibc keeps it elsewhere, in 16 bytes.
    assert semaphore_value(struct.pack("<I", 3), 16) == -1
    assert semaphore_value(b"\x01", 32) == -1


@given(st.binary(max_size=300), st.integers(0, len(MAPS)), st.integers(0, len(SYSTEM_V)))
def test_noise_and_cuts_raise_nothing(noise: bytes, cut: int, cut_text: int) -> None:
    list(parse_maps(MAPS[:cut] + noise))
    list(parse_maps(noise + b" /dev/shm/x"))
    list(parse_system_v(SYSTEM_V[:cut_text] + noise.decode("latin-1")))
