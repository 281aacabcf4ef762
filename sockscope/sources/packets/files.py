"""Capture files: pcap and pcapng, also compressed, read whole into the packet table.

Source: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from sockscope.model.packets import Packets, RawFrame
from sockscope.sources.packets.decode import Decoder
from sockscope.sources.packets.frames import Frames, concatenate
from sockscope.sources.packets.merge import Part, merge
from sockscope.sources.packets.odd_links import OddLinks
from sockscope.sources.packets.offsets import Bytes
from sockscope.sources.packets.opened import Opened, Progress, expect_capture, open_all
from sockscope.sources.packets.pcap import PCAP_MAGICS, PcapScan
from sockscope.sources.packets.pcapng import PCAPNG_MAGIC, Interface, PcapngScan

FRAMES_A_BATCH = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketFile:
    """A capture file, read.

    Attributes:
        packets: its IP packets, in file order.
        damage: what was lost and where, or None: the file is whole.
        kind: the file format.
        interfaces: names (or `link type N` where the file has none), indexed by the `interface` column.
        frame_count: captured frames in the file, those that are not IP or not wanted included.
        dropped_count: packets that the capture says it lost (pcapng interface statistics).
        notes: what could not be understood of a file that is whole, one line each.
    """

    packets: Packets
    damage: str | None
    kind: Literal["pcap", "pcapng"]
    interfaces: tuple[str, ...]
    frame_count: int
    dropped_count: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureFile:
    """One of several capture files.

    Attributes:
        name: the file's; its path, where another is called the same.
        begin: where its bytes begin in `raw`.
        whole: it says of no packet that it was dropped, and lost none from its middle.
    """

    name: str
    begin: int
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Captures:
    """Capture files read together.

    Attributes:
        packets: IP packets of all, in order of time where there are several; `raw` holds one file after another.
        damage: what was lost and where, one line a file that is not whole, its name first.
        notes: what could not be understood of whole files, one line each, the file's name first.
        interfaces: names (or `link type N`), indexed by the `interface` column. The pieces of a rotated capture
            share theirs; captures that overlap in time do not, so that a packet in both is known as a copy.
        frame_count: captured frames, those that are not IP or not wanted included.
        dropped_count: packets that the captures say they lost.
        has_hole: damage took packets from the middle; a capture that is merely cut at its end has just ended.
        files: in the order that they were given.
    """

    packets: Packets
    damage: tuple[str, ...]
    notes: tuple[str, ...]
    interfaces: tuple[str, ...]
    frame_count: int
    dropped_count: int
    has_hole: bool
    files: tuple[CaptureFile, ...]

    def file_of(self) -> npt.NDArray[np.uint16]:
        """Which file each packet is from: shape (packets,)."""
        begins = np.array([file.begin for file in self.files], np.uint64)
        # A header comes before every payload, so an empty one at a file's very end is not yet the next one's.
        after = np.searchsorted(begins, self.packets.records["payload_offset"], side="left")
        return (after - 1).astype(np.uint16)


class Scan(Protocol):
    """A file cut into frames, window by window, none of them decoded.

    Attributes:
        interfaces: found so far; a frame's `interface` indexes them.
        dropped_count: packets that the file says were lost; known at the end.
        left_out_count: packets that the file holds but that cannot be read; known at the end.
    """

    interfaces: list[Interface]
    dropped_count: int
    left_out_count: int

    def frames(self) -> Iterator[Frames]:
        """Once; the start of each is counted from the file's first byte."""
        ...

    def damage(self) -> str | None:
        """What was lost and where, so far."""
        ...

    def has_hole(self) -> bool:
        """Whether packets that were lost lie before others that were not."""
        ...


def read_packets(path: Path, *, ports: frozenset[int] | None = None) -> PacketFile:
    """Read a capture file; a damaged one as far as it goes.

    Args:
        path: pcap (µs or ns, either byte order, also the modified format) or pcapng; also compressed by gzip,
            bzip2, xz, zstd or lz4.
        ports: keep only TCP and UDP packets from or to these; None keeps all IP packets.

    Raises:
        UsageError: the file cannot be opened, or there is no room to unpack it.
        DamagedInputError: it is empty, not a capture, or of a newer version.
    """
    opened = open_all([path])
    read = _Reading(opened, ports, None).all()
    part = read.parts[0]
    return PacketFile(
        packets=Packets(records=part.records, raw=opened.data),
        damage="; ".join(part.damage) or None,
        kind="pcapng" if opened.data[:4].tobytes() == PCAPNG_MAGIC else "pcap",
        interfaces=tuple(map(str, part.interfaces)),
        frame_count=read.frame_count,
        dropped_count=read.dropped_count,
        notes=tuple(part.notes),
    )


def read_captures(
    paths: Sequence[Path], *, ports: frozenset[int] | None = None, progress: Progress | None = None
) -> Captures:
    """Read capture files together: the pieces of a rotated capture, or captures of several places.

    Args:
        paths: one at least; as `read_packets`, in any order.
        ports: as `read_packets`.
        progress: told how far it is, now and then.

    Raises:
        UsageError, DamagedInputError: as `read_packets`, for the first file that cannot be read.
    """
    opened = open_all(paths, progress)
    read = _Reading(opened, ports, progress).all()
    records, interfaces = merge(read.parts)
    return Captures(
        packets=Packets(records=records, raw=opened.data),
        damage=tuple(f"{part.name}: {line}" for part in read.parts for line in part.damage),
        notes=tuple(f"{part.name}: {line}" for part in read.parts for line in part.notes),
        interfaces=tuple(map(str, interfaces)),
        frame_count=read.frame_count,
        dropped_count=read.dropped_count,
        has_hole=read.has_hole or (len(paths) > 1 and any(part.damage for part in read.parts)),
        files=tuple(
            CaptureFile(name=part.name, begin=begin, whole=part.whole)
            for part, (begin, _) in zip(read.parts, opened.spans, strict=True)
        ),
    )


def read_frames(path: Path, payload_offsets: Sequence[int]) -> list[RawFrame]:
    """The whole frames that some rows of the packet table came from; the file is walked again, none is decoded.

    Args:
        path: the file that `read_packets` read.
        payload_offsets: the rows' column of that name.

    Raises:
        UsageError, DamagedInputError: as `read_packets`.
    """
    return [frame for batch in read_frames_of([path], payload_offsets) for frame in batch]


def read_frames_of(
    paths: Sequence[Path], payload_offsets: Sequence[int] | npt.NDArray[np.unsignedinteger], batch: int = FRAMES_A_BATCH
) -> Iterator[list[RawFrame]]:
    """The whole frames that rows of `read_captures(paths)` came from, in the order of the rows, in batches.

    Args:
        paths: the same files in the same order.
        payload_offsets: the rows' column of that name.
        batch: frames a list; the last may be shorter.

    Raises:
        UsageError, DamagedInputError: as `read_captures`.
    """
    opened = open_all(paths)
    frames = concatenate(
        [
            frames.moved(begin)
            for path, (begin, end) in zip(paths, opened.spans, strict=True)
            for frames in _scan(path, opened.data[begin:end]).frames()
        ]
    )
    offsets = np.asarray(payload_offsets, np.int64)
    for low in range(0, len(offsets) if len(frames) else 0, batch):
        yield _frames_at(opened.data, frames, offsets[low : low + batch])


def _frames_at(data: Bytes, frames: Frames, payload_offsets: npt.NDArray[np.int64]) -> list[RawFrame]:
    # A payload may be empty and its offset the frame's very end: still before the next one's record header.
    rows = np.searchsorted(frames.start, payload_offsets, side="right") - 1
    some = frames.pick(rows[rows >= 0])
    columns = zip(some.start.tolist(), some.captured.tolist(), some.link.tolist(), some.wire.tolist(), strict=True)
    return [
        RawFrame(data=data[start : start + captured].tobytes(), link=link, wire_bytes=wire)
        for start, captured, link, wire in columns
    ]


class _Reading:
    """Files read one after another.

    Attributes:
        parts: what each gave.
        frame_count, dropped_count: of all.
    """

    def __init__(self, opened: Opened, ports: frozenset[int] | None, progress: Progress | None) -> None:
        self._opened = opened
        self._ports = ports
        self._progress = progress
        self._alike = Counter(path.name for path in opened.paths)
        self.parts: list[Part] = []
        self.frame_count = 0
        self.dropped_count = 0
        self.has_hole = False

    def all(self) -> _Reading:
        for number in range(len(self._opened.paths)):
            self._one(number)
        return self

    def _one(self, number: int) -> None:
        opened = self._opened
        path, (begin, end) = opened.paths[number], opened.spans[number]
        data = opened.data
        scan = _scan(path, data[begin:end])
        odd = OddLinks()
        decoder = Decoder(data, self._ports, odd)
        for frames in scan.frames():
            decoder.feed(frames.moved(begin))
            if self._progress is not None and len(frames):
                self._progress(opened.done_bytes(number, int(frames.start[-1])), opened.disk_bytes)
        if self._progress is not None:
            self._progress(opened.done_bytes(number, end - begin), opened.disk_bytes)
        records = decoder.finish()
        notes = [*odd.notes(), *decoder.notes()]
        if scan.left_out_count:
            count = "1 packet" if scan.left_out_count == 1 else f"{scan.left_out_count} packets"
            notes.append(f"{count} left out: of an interface that the file does not describe, or too short")
        if decoder.frame_count and not len(records) and self._ports is None and not notes:
            notes.append(f"none of its {decoder.frame_count} frames holds IP")
        damage = [line for line in (opened.damage[number], scan.damage()) if line]
        self.frame_count += decoder.frame_count
        self.dropped_count += scan.dropped_count
        self.has_hole |= scan.has_hole()
        part = Part(
            name=path.name if self._alike[path.name] == 1 else str(path),
            records=records,
            interfaces=scan.interfaces,
            damage=damage,
            notes=notes,
            whole=not scan.dropped_count and not scan.has_hole(),
        )
        self.parts.append(part)


def _scan(path: Path, data: Bytes) -> Scan:
    magic = data[:4].tobytes()
    expect_capture(path, magic)
    return PcapScan(path, data) if magic in PCAP_MAGICS else PcapngScan(path, data)
