"""pcapng: blocks read in bulk.

Source: draft-ietf-opsawg-pcapng sections 4.1 (section header), 4.2 (interface description), 4.3 (enhanced
packet), 4.4 (simple packet), 4.6 (interface statistics).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sockscope.errors import DamagedInputError
from sockscope.sources.packets.formats import BYTE_ORDER_MAGIC, SECTION_HEADER, PcapngBlocks
from sockscope.sources.packets.frames import Column, Frames
from sockscope.sources.packets.offsets import Bytes, Offsets, unaligned
from sockscope.sources.packets.resume import MOST_LOSSES, Losses, Walker, resume

PCAPNG_MAGIC = struct.pack("<I", SECTION_HEADER)
IDB, OLD_PACKET, SPB, ISB, EPB = 1, 2, 3, 5, 6
_IF_NAME, _IF_TSRESOL, _IF_TSOFFSET = 2, 9, 14
_ISB_IFDROP = 5
MAX_SECTIONS = 1 << 14
"""Captures joined end to end have one each; millions of them are no capture."""
MAX_INTERFACES = 1 << 12
"""Of a section; packets of more are left out, and counted."""
_ALL_INTERFACES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """Where packets were taken: name (or empty), LINKTYPE_ number, timestamp units a second, seconds to add."""

    name: str
    link: int
    fraction: int
    offset_s: int
    snap_bytes: int = 0

    def __str__(self) -> str:
        return self.name or f"link type {self.link}"


class PcapngScan:
    """One pcapng file, all its sections; `sockscope.sources.packets.files.Scan` says what the members are.

    Raises:
        DamagedInputError: the first section header is cut, or of a newer version.
    """

    def __init__(self, path: Path, data: Bytes) -> None:
        self._path = path
        self._data = data
        self._losses = Losses()
        self.interfaces: list[Interface] = []
        self.dropped_count = 0
        self.left_out_count = 0
        _, _, problem = _section_header(path, data, 0)
        if problem is not None:
            raise DamagedInputError(f"{path}: {problem}", help_text="copy the file again")

    def frames(self) -> Iterator[Frames]:
        data, at, order = self._data, 0, "<"
        for number in range(MAX_SECTIONS + 1):
            if at >= len(data):
                break
            if number == MAX_SECTIONS:
                self._losses.add(at, len(data), f"more than {MAX_SECTIONS} sections: not read from byte {at} on")
                return
            order, after, problem = _section_header(self._path, data, at)
            if problem is not None:
                onward = resume(data, at + 1, PcapngBlocks(byte_order=order))
                if onward < 0 or self._losses.places >= MOST_LOSSES:
                    self._losses.add(at, len(data), problem)
                    return
                self._losses.add(at, onward)
                # Of what section these are nobody knows: most likely as before.
                after = onward
            walker = Walker(data, PcapngBlocks(byte_order=order), self._losses)
            section = _Section(data, order, len(self.interfaces))
            for starts in walker.windows(after):
                frames = section.frames(starts)
                self.interfaces[section.first_interface :] = section.interfaces
                yield frames
            self.dropped_count += section.dropped_count()
            self.left_out_count += section.left_out_count
            at = walker.stop
            if data[at : at + 4].tobytes() != PCAPNG_MAGIC:
                break
        if at < len(data):
            rest = len(data) - at
            cut = rest < 12 or PcapngBlocks(byte_order=order).next_serial(data.data, at) > 0
            why = (
                f"truncated at byte {len(data)}: the last block (from byte {at}) is cut"
                if cut
                else f"damaged at byte {at}: a block of an impossible length; the rest ({rest} bytes) is lost"
            )
            self._losses.add(at, len(data), why)

    def damage(self) -> str | None:
        return self._losses.words()

    def has_hole(self) -> bool:
        return self._losses.has_hole


def _section_header(path: Path, data: Bytes, at: int) -> tuple[str, int, str | None]:
    """Byte order, where the next block begins, or what is wrong."""
    if at + 28 > len(data):
        return "<", at, f"truncated at byte {len(data)}: the section header (from byte {at}) is cut"
    raw = data[at : at + 28].tobytes()
    for order in "<>":
        magic, major = struct.unpack_from(order + "IH", raw, 8)
        if magic == BYTE_ORDER_MAGIC:
            total = int(struct.unpack_from(order + "I", raw, 4)[0])
            if major != 1 and at == 0:
                raise DamagedInputError(
                    f"{path}: pcapng version {major}, this sockscope reads version 1",
                    help_text="convert it: editcap -F pcap IN OUT",
                )
            if total < 28 or total % 4 or major != 1:
                return order, at, f"damaged at byte {at}: a section header of an impossible length"
            if at + total > len(data):
                return order, at, f"truncated at byte {len(data)}: the section header (from byte {at}) is cut"
            return order, at + total, None
    return "<", at, f"damaged at byte {at}: a section header without its byte-order magic"


class _Section:
    """One section's blocks, window by window.

    Attributes:
        first_interface: what its interface 0 is numbered in the file as a whole.
        interfaces: those described so far.
        left_out_count: packets of an interface that is described nowhere, or with no room for their own header.
    """

    def __init__(self, data: Bytes, order: str, first_interface: int) -> None:
        self._data = data
        self._order = order
        self._words = unaligned(data, order + "u4")
        self._dropped: dict[int, int] = {}
        self.first_interface = first_interface
        self.interfaces: list[Interface] = []
        self.left_out_count = 0

    def _total(self, at: int) -> int:
        return int(self._words[at + 4])

    def _interface(self, at: int) -> Interface:
        total = self._total(at)
        if total < 20:
            return Interface(name="", link=-1, fraction=1_000_000, offset_s=0)
        link, _, snap = struct.unpack_from(self._order + "HHI", self._data.data, at + 8)
        name, fraction, offset_s = "", 1_000_000, 0
        for code, value in self._options(at + 16, at + total - 4):
            if code == _IF_NAME:
                name = value.rstrip(b"\0").decode("utf-8", "backslashreplace")
            elif code == _IF_TSRESOL and len(value) >= 1:
                exponent = value[0] & 0x7F
                fraction = 2 ** min(exponent, 63) if value[0] & 0x80 else 10 ** min(exponent, 18)
            elif code == _IF_TSOFFSET and len(value) >= 8:
                offset_s = int(struct.unpack(self._order + "q", value[:8])[0])
        return Interface(name=name, link=link, fraction=fraction, offset_s=offset_s, snap_bytes=snap)

    def dropped_count(self) -> int:
        """The last statistics of each interface count."""
        return sum(self._dropped.values())

    def _count_dropped(self, blocks: Offsets) -> None:
        blocks = blocks[self._word(blocks + 4) >= 24]
        # The last of each interface, so that millions of them cost no more.
        which, last = np.unique(self._words[blocks + 8][::-1], return_index=True)
        for number, at in zip(which.tolist(), blocks[::-1][last].tolist(), strict=True):
            if number >= MAX_INTERFACES:
                break
            for code, value in self._options(at + 20, at + self._total(at) - 4):
                if code == _ISB_IFDROP and len(value) >= 8:
                    self._dropped[number] = int(struct.unpack(self._order + "Q", value[:8])[0])

    def _options(self, at: int, end: int) -> list[tuple[int, bytes]]:
        found = []
        while at + 4 <= end:
            code, size = struct.unpack_from(self._order + "HH", self._data.data, at)
            if code == 0 or at + 4 + size > end:
                break
            found.append((code, self._data[at + 4 : at + 4 + size].tobytes()))
            at += 4 + ((size + 3) & ~3)
        return found

    def frames(self, starts: Offsets) -> Frames:
        """Enhanced, old and simple packet blocks; those of an unknown interface or too short are left out."""
        kinds = self._words[starts] if len(starts) else np.zeros(0, np.uint32)
        room = min(MAX_INTERFACES, _ALL_INTERFACES - self.first_interface) - len(self.interfaces)
        self.interfaces += [self._interface(at) for at in starts[kinds == IDB][: max(room, 0)].tolist()]
        self._count_dropped(starts[kinds == ISB])
        is_packet = (kinds == EPB) | (kinds == SPB) | (kinds == OLD_PACKET)
        starts, kinds = starts[is_packet], kinds[is_packet]
        count = len(starts)
        frames = self._frames(starts, kinds)
        self.left_out_count += count - len(frames)
        return frames

    def _frames(self, starts: Offsets, kinds: npt.NDArray[np.uint32]) -> Frames:
        total = self._word(starts + 4)
        simple = kinds == SPB
        if (total < np.where(simple, 16, 32)).any() or simple.any():
            long_enough = total >= np.where(simple, 16, 32)
            starts, kinds, total = starts[long_enough], kinds[long_enough], total[long_enough]
            simple = kinds == SPB
        which = np.zeros(len(starts), np.int64)
        timed = np.flatnonzero(~simple)
        which[timed] = self._interface_of(starts[timed], kinds[timed])
        known = which < len(self.interfaces)
        if not known.all():
            starts, total, which, simple = starts[known], total[known], which[known], simple[known]
        if simple.any():
            return self._with_simple(starts, total, which, simple)
        wire = self._words[starts + 24]
        captured = np.minimum(self._words[starts + 20], total - 32)
        return self._made(starts + 28, captured, wire, self._times(starts, which), which)

    def _interface_of(self, starts: Offsets, kinds: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        which = self._word(starts + 8)
        old = np.flatnonzero(kinds == OLD_PACKET)
        if len(old):
            which[old] = unaligned(self._data, self._order + "u2")[starts[old] + 8]
        return which

    def _with_simple(
        self, starts: Offsets, total: npt.NDArray[np.int64], which: npt.NDArray[np.int64], simple: npt.NDArray[np.bool_]
    ) -> Frames:
        """A simple packet is of interface 0, has no captured length and no time: it takes that of the one before."""
        wire = self._word(starts + np.where(simple, 8, 24))
        snap = self.interfaces[0].snap_bytes or (1 << 31)
        captured = np.where(simple, np.minimum(wire, snap), self._word(starts + np.where(simple, 8, 20)))
        captured = np.minimum(captured, total - np.where(simple, 16, 32))
        rows = np.flatnonzero(~simple)
        time_ns = np.zeros(len(starts), np.int64)
        time_ns[rows] = self._times(starts[rows], which[rows])
        time_ns = time_ns[np.maximum.accumulate(np.where(simple, 0, np.arange(len(starts))))]
        return self._made(starts + np.where(simple, 12, 28), captured, wire, time_ns, which)

    def _made(
        self,
        start: Offsets,
        captured: Column,
        wire: Column,
        time_ns: npt.NDArray[np.int64],
        which: npt.NDArray[np.int64],
    ) -> Frames:
        if len(self.interfaces) == 1:
            # One value for all takes no memory.
            link: Column = np.broadcast_to(np.int64(self.interfaces[0].link), len(start))
            interface: Column = np.broadcast_to(np.int64(self.first_interface), len(start))
        else:
            link = np.array([i.link for i in self.interfaces] or [-1], np.int64)[which]
            interface = which + self.first_interface
        return Frames(
            start=start,
            captured=captured,
            wire=np.maximum(wire, captured),
            time_ns=time_ns,
            link=link,
            interface=interface,
        )

    def _word(self, at: Offsets) -> npt.NDArray[np.int64]:
        return self._words[at].astype(np.int64)

    def _times(self, starts: Offsets, which: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        ticks = (self._word(starts + 12) << 32) | self._word(starts + 16)
        out = np.zeros(len(starts), np.int64)
        for number, interface in enumerate(self.interfaces):
            mine = which == number
            rows: slice | npt.NDArray[np.bool_] = slice(None) if mine.all() else mine
            if mine.any():
                out[rows] = _nanoseconds(ticks[rows], interface)
        return out


def _nanoseconds(ticks: npt.NDArray[np.int64], interface: Interface) -> npt.NDArray[np.int64]:
    """CLOCK_REALTIME ns. Nonsense times of a damaged file may wrap; they must not raise."""
    if interface.fraction == 1_000_000_000:
        whole = ticks
    elif 1_000_000_000 % interface.fraction == 0:
        whole = ticks * (1_000_000_000 // interface.fraction)
    else:
        seconds, rest = np.divmod(ticks.astype(np.uint64), np.uint64(interface.fraction))
        part = (rest.astype(np.float64) * (1e9 / interface.fraction)).astype(np.int64)
        whole = seconds.astype(np.int64) * 1_000_000_000 + part
    shift = (interface.offset_s * 1_000_000_000 + 2**63) % 2**64 - 2**63
    return whole + np.int64(shift)
