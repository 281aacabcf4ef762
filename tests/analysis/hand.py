"""Events made by hand."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from sockscope.model.calls import Call
from sockscope.model.events import EVENT_DTYPE, Events, Section, pack_section


@dataclass(kw_only=True)
class Made:
    """One event to be; times in ns."""

    call: Call | int
    args: tuple[int, ...] = ()
    ret: int = 0
    sections: tuple[tuple[Section, bytes], ...] = ()
    enter_ns: int = 1000
    exit_ns: int = 2000
    tgid: int = 77
    tid: int = 77
    flags: int = 0
    raw_blob: bytes | None = None

    def blob(self) -> bytes:
        if self.raw_blob is not None:
            return self.raw_blob
        return b"".join(pack_section(kind, data) for kind, data in self.sections)


@dataclass
class Maker:
    """Collects events into a table."""

    made: list[Made] = field(default_factory=list)

    def events(self) -> Events:
        return table(*self.made)


def table(*made: Made) -> Events:
    """An event table, one row a `Made`, in order."""
    records = np.zeros(len(made), EVENT_DTYPE)
    blob = bytearray()
    for row, one in zip(records, made, strict=True):
        data = one.blob()
        row["enter_ns"], row["exit_ns"], row["ret"] = one.enter_ns, one.exit_ns, one.ret
        row["args"][: len(one.args)] = [a & 0xFFFFFFFFFFFFFFFF for a in one.args]
        row["blob_offset"], row["blob_bytes"] = len(blob), len(data)
        row["tgid"], row["tid"], row["call"], row["flags"] = one.tgid, one.tid, int(one.call), one.flags
        blob += data
    return Events(records=records, blob=np.frombuffer(bytes(blob), np.uint8).copy())


def sockaddr_in(host: tuple[int, int, int, int], port: int) -> bytes:
    return struct.pack("<H", 2) + struct.pack("!H", port) + bytes(host) + bytes(8)


LOOPBACK = (127, 0, 0, 1)
