"""Which BPF programs, maps and links a process holds, and which exist at all. For the live tests."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

SYS_BPF = {"x86_64": 321, "aarch64": 280}
NEXT_ID = {"prog_id": 11, "map_id": 12, "link_id": 31}
"""bpf(2) commands, include/uapi/linux/bpf.h."""


def held_by(pid: int) -> dict[str, set[int]]:
    """Kind → ids, as /proc/PID/fdinfo tells them."""
    found: dict[str, set[int]] = {kind: set() for kind in NEXT_ID}
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            lines = entry.read_text().splitlines()
        except OSError:
            continue
        said = dict(line.split(":", 1) for line in lines if ":" in line)
        # A link's fdinfo names its program too, which may have no descriptor of its own.
        for kind in NEXT_ID:
            if kind in said:
                found[kind].add(int(said[kind]))
    return found


def existing(kind: str) -> set[int]:
    """All ids of that kind on this machine."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    found: set[int] = set()
    attributes = ctypes.create_string_buffer(16)
    last = 0
    while True:
        struct.pack_into("<III", attributes, 0, last, 0, 0)
        if call(SYS_BPF[os.uname().machine], NEXT_ID[kind], attributes, 12) != 0:
            return found
        last = struct.unpack_from("<I", attributes, 4)[0]
        found.add(last)


def left_of(ids: dict[str, set[int]]) -> dict[str, set[int]]:
    """Those that exist still."""
    left = {kind: wanted & existing(kind) for kind, wanted in ids.items()}
    return {kind: found for kind, found in left.items() if found}
