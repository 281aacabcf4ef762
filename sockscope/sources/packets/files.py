"""Capture files: pcap and pcapng, read whole into the packet table.

Source: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from sockscope.errors import DamagedInputError, UsageError
from sockscope.model.packets import Packets, RawFrame
from sockscope.sources.packets.decode import Frames, concatenate, decode
from sockscope.sources.packets.odd_links import OddLinks
from sockscope.sources.packets.offsets import Bytes, PcapRecords, unaligned, walk
from sockscope.sources.packets.pcapng import PCAPNG_MAGIC, Interface, read_pcapng
from sockscope.sources.packets.raw_space import RawSpace, load

MAP_FROM_BYTES = 1 << 29
"""Files from here on are mapped instead of read, so that their pages can be given back."""

_PCAP_MAGICS = {
    b"\xd4\xc3\xb2\xa1": ("<", 1_000),
    b"\xa1\xb2\xc3\xd4": (">", 1_000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
"""Magic → byte order, nanoseconds of one fraction."""

_MAX_RECORD_BYTES = 1 << 26


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
class _Walked:
    """A file cut into frames, none of them decoded; fields as in `PacketFile`."""

    frames: Frames
    interfaces: tuple[Interface, ...]
    damage: str | None
    kind: Literal["pcap", "pcapng"]
    dropped_count: int = 0


def read_packets(path: Path, *, ports: frozenset[int] | None = None) -> PacketFile:
    """Read a capture file; a cut one as far as it goes.

    Args:
        path: pcap (µs or ns, either byte order) or pcapng.
        ports: keep only TCP and UDP packets from or to these; None keeps all IP packets.

    Raises:
        UsageError: the file cannot be opened.
        DamagedInputError: it is empty, not a capture, or of a newer version.
    """
    data = _load(path)
    walked = _walk(path, data)
    odd = OddLinks()
    records = decode(data, walked.frames, ports, odd)
    return PacketFile(
        packets=Packets(records=records, raw=data),
        damage=walked.damage,
        kind=walked.kind,
        interfaces=tuple(i.name or f"link type {i.link}" for i in walked.interfaces),
        frame_count=len(walked.frames),
        dropped_count=walked.dropped_count,
        notes=odd.notes(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Captures:
    """Capture files read together.

    Attributes:
        packets: IP packets of all, in order of time where there are several; `raw` holds one file after another.
        damage: what was lost and where, one line a file that is not whole, its name first.
        notes: what could not be understood of whole files, one line each, the file's name first.
        interfaces: names (or `link type N`), indexed by the `interface` column; numbered on from file to file.
        frame_count: captured frames, those that are not IP or not wanted included.
        dropped_count: packets that the captures say they lost.
    """

    packets: Packets
    damage: tuple[str, ...]
    notes: tuple[str, ...]
    interfaces: tuple[str, ...]
    frame_count: int
    dropped_count: int


Progress = Callable[[int, int], None]
"""Called with bytes done, and bytes of all files as they lie on disk."""

FRAMES_A_BATCH = 4096


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
    space = _load_all(paths)
    data = space.data
    parts: list[npt.NDArray[np.void]] = []
    damage: list[str] = []
    notes: list[str] = []
    interfaces: list[str] = []
    frame_count = dropped_count = 0
    for path, (begin, end) in zip(paths, space.spans, strict=True):
        walked = _walk(path, data[begin:end])
        odd = OddLinks()
        records = decode(data, walked.frames.moved(begin), ports, odd)
        records["interface"] += np.uint16(len(interfaces))
        parts.append(records)
        damage += [f"{path.name}: {walked.damage}"] if walked.damage else []
        notes += [f"{path.name}: {note}" for note in odd.notes()]
        interfaces += [i.name or f"link type {i.link}" for i in walked.interfaces]
        frame_count += len(walked.frames)
        dropped_count += walked.dropped_count
        if progress is not None:
            progress(end, space.spans[-1][1])
    records = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if len(parts) > 1:
        records = records[np.argsort(records["time_ns"], kind="stable")]
    return Captures(
        packets=Packets(records=records, raw=data),
        damage=tuple(damage),
        notes=tuple(notes),
        interfaces=tuple(interfaces),
        frame_count=frame_count,
        dropped_count=dropped_count,
    )


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
    space = _load_all(paths)
    parts = [
        _walk(path, space.data[begin:end]).frames.moved(begin)
        for path, (begin, end) in zip(paths, space.spans, strict=True)
    ]
    frames = concatenate(parts)
    offsets = np.asarray(payload_offsets, np.int64)
    for low in range(0, len(offsets) if len(frames) else 0, batch):
        yield _frames_at(space.data, frames, offsets[low : low + batch])


def _load_all(paths: Sequence[Path]) -> RawSpace:
    with contextlib.ExitStack() as stack:
        files: list[BinaryIO] = []
        for path in paths:
            try:
                files.append(stack.enter_context(open(path, "rb")))
            except OSError as error:
                raise UsageError(
                    f"cannot read {path}: {error.strerror}", help_text="name a readable capture file"
                ) from error
        return load([file.fileno() for file in files])


def read_frames(path: Path, payload_offsets: Sequence[int]) -> list[RawFrame]:
    """The whole frames that some rows of the packet table came from; the file is walked again, none is decoded.

    Args:
        path: the file that `read_packets` read.
        payload_offsets: the rows' column of that name.

    Raises:
        UsageError, DamagedInputError: as `read_packets`.
    """
    data = _load(path)
    frames = _walk(path, data).frames
    return _frames_at(data, frames, np.asarray(payload_offsets, np.int64)) if len(frames) else []


def _frames_at(data: Bytes, frames: Frames, payload_offsets: npt.NDArray[np.int64]) -> list[RawFrame]:
    # A payload may be empty and its offset the frame's very end: still before the next one's record header.
    rows = np.searchsorted(frames.start, payload_offsets, side="right") - 1
    some = frames.pick(rows[rows >= 0])
    columns = zip(some.start.tolist(), some.captured.tolist(), some.link.tolist(), some.wire.tolist(), strict=True)
    return [
        RawFrame(data=data[start : start + captured].tobytes(), link=link, wire_bytes=wire)
        for start, captured, link, wire in columns
    ]


def _walk(path: Path, data: Bytes) -> _Walked:
    magic = data[:4].tobytes()
    if not len(data):
        raise DamagedInputError(f"{path}: the capture is empty", help_text="capture again; nothing was written to it")
    if magic in _PCAP_MAGICS:
        frames, interfaces, damage = _read_pcap(path, data)
        return _Walked(frames=frames, interfaces=interfaces, damage=damage, kind="pcap")
    if magic == PCAPNG_MAGIC:
        found = read_pcapng(path, data)
        return _Walked(
            frames=found.frames,
            interfaces=found.interfaces,
            damage=found.damage,
            kind="pcapng",
            dropped_count=found.dropped_count,
        )
    raise DamagedInputError(f"{path}: not a packet capture (pcap or pcapng)", help_text=_guess(magic))


def _load(path: Path) -> Bytes:
    try:
        if path.stat().st_size >= MAP_FROM_BYTES:
            mapped: Bytes = np.memmap(path, np.uint8, mode="r")
            return mapped
        return np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", help_text="name a readable capture file") from error


def _guess(magic: bytes) -> str:
    if magic[:2] == b"\x1f\x8b":
        return "it is gzip-compressed: gunzip it first"
    if magic == b"\x28\xb5\x2f\xfd":
        return "it is zstd-compressed: unzstd it first"
    if magic[:1] in (b"{", b"["):
        return "it looks like JSON; name the capture itself"
    return "write one with tcpdump -w or dumpcap"


def _read_pcap(path: Path, data: Bytes) -> tuple[Frames, tuple[Interface, ...], str | None]:
    if len(data) < 24:
        raise DamagedInputError(
            f"{path}: the capture is cut off within its header ({len(data)} of 24 bytes)",
            help_text="copy the file again",
        )
    order, fraction_ns = _PCAP_MAGICS[data[:4].tobytes()]
    major, _minor, _zone, _accuracy, _snap, network = struct.unpack_from(order + "HHiIII", data.data, 4)
    if major != 2:
        raise DamagedInputError(
            f"{path}: pcap version {major}, this sockscope reads version 2",
            help_text="convert it: editcap -F pcap IN OUT",
        )
    # The upper bits say whether frames end in an FCS.
    interface = Interface(name="", link=network & 0xFFFF, fraction=1_000_000_000 // fraction_ns, offset_s=0)
    first_second = int(struct.unpack_from(order + "I", data.data, 24)[0]) if len(data) >= 28 else 0
    form = PcapRecords(
        byte_order=order,
        frac_limit=1_000_000_000 // fraction_ns,
        max_bytes=_MAX_RECORD_BYTES,
        first_second=first_second,
    )
    found = walk(data, 24, form)
    starts = found.starts
    fields = _pcap_headers(data, starts, order)
    n = len(starts)
    seconds_ns = fields[:, 0] * np.int64(1_000_000_000)
    frames = Frames(
        start=starts + 16,
        captured=fields[:, 2],
        wire=np.maximum(fields[:, 3], fields[:, 2]),
        time_ns=seconds_ns + fields[:, 1] * np.int64(fraction_ns),
        # One value for all takes no memory.
        link=np.broadcast_to(np.int64(interface.link), n),
        interface=np.broadcast_to(np.int64(0), n),
    )
    return frames, (interface,), _pcap_damage(data, found.stop, form)


def _pcap_headers(data: Bytes, starts: npt.NDArray[np.int64], order: str) -> npt.NDArray[np.uint32]:
    """Shape (n, 4): seconds, fraction, captured, original."""
    if not len(starts):
        return np.zeros((0, 4), np.uint32)
    headers: npt.NDArray[np.uint32] = unaligned(data, "V16")[starts].view(order + "u4").reshape(-1, 4)
    return headers


def _pcap_damage(data: Bytes, stop: int, form: PcapRecords) -> str | None:
    if stop == len(data):
        return None
    if stop + form.header_bytes <= len(data) and form.next_serial(data.data, stop) < 0:
        return f"damaged at byte {stop}: a packet of an impossible length; the rest ({len(data) - stop} bytes) is lost"
    return f"truncated at byte {len(data)}: the last packet (from byte {stop}) is cut"
