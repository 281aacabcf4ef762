"""Reads a recording, whole or cut off; says what was lost."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sockscope import storage, truncation
from sockscope.errors import DamagedInputError, UsageError
from sockscope.model.events import EVENT_DTYPE, Events
from sockscope.model.facts import NETNS_FACT_DTYPE, PROCESS_FACT_DTYPE, SEGMENT_FACT_DTYPE, Facts
from sockscope.model.info import PacketCoverage, SessionInfo, SocketCoverage, SyscallCoverage
from sockscope.model.seed import SEED_EPOLL_DTYPE, SEED_FD_DTYPE, Seed
from sockscope.model.sockets import OWNER_DTYPE, SOCKET_DTYPE, Sockets
from sockscope.recording import layout, manifest
from sockscope.recording.columns import from_table

_WRONG_CONTENT = (KeyError, ValueError, TypeError, AttributeError, pa.ArrowException)
_ROWS_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A recording in memory, its events in files where they are many.

    Attributes:
        packets_path: the pcapng, or None where there is none (the caller reads it).
        damage: what could not be read, one line each.
    """

    folder: Path
    info: SessionInfo
    seed: Seed
    events: Events
    sockets: Sockets
    facts: Facts
    packets_path: Path | None
    damage: tuple[str, ...]


def read_recording(folder: Path) -> Recording:
    """Read a recording folder.

    Raises:
        UsageError: there is no such folder.
        DamagedInputError: it is no recording, its manifest is unreadable,
            or of a newer version.
    """
    if not folder.exists():
        raise UsageError(f"{folder} does not exist", help_text="a recording is the folder that --output named")
    path = folder / layout.MANIFEST
    if not folder.is_dir() or not path.is_file():
        raise DamagedInputError(
            f"{folder} is not a recording: it has no {layout.MANIFEST}",
            help_text="a recording is the folder that --output named; for a capture use: sockscope analyze --pcap FILE",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedInputError(f"{path} cannot be read: {error}") from error
    info, processes = manifest.decode(text, str(path))
    damage: list[str] = []
    if info.complete:
        info = _without_missing(folder, info, damage)
    events = _events(folder / layout.SYSCALLS, damage)
    sockets = Sockets(
        records=_rows(folder / layout.SOCKETS, SOCKET_DTYPE, damage),
        owners=_rows(folder / layout.OWNERS, OWNER_DTYPE, damage),
    )
    seed = Seed(
        processes=processes,
        fds=_rows(folder / layout.DESCRIPTORS, SEED_FD_DTYPE, damage),
        epolls=_rows(folder / layout.INTERESTS, SEED_EPOLL_DTYPE, damage),
    )
    # Recordings of versions that did not look there have none of these files.
    facts = Facts(
        processes=_rows(folder / layout.PROCESSES, PROCESS_FACT_DTYPE, damage),
        namespaces=_rows(folder / layout.NAMESPACES, NETNS_FACT_DTYPE, damage),
        segments=_rows(folder / layout.SEGMENTS, SEGMENT_FACT_DTYPE, damage),
    )
    if not info.complete:
        damage.append("the session was cut off before its end; everything up to the last whole batch is here")
        info = _close_open_end(info, events, sockets)
    packets = folder / layout.PACKETS
    return Recording(
        folder=folder,
        info=info,
        seed=seed,
        events=events,
        sockets=sockets,
        facts=facts,
        packets_path=packets if packets.is_file() else None,
        damage=tuple(damage),
    )


def _without_missing(folder: Path, info: SessionInfo, damage: list[str]) -> SessionInfo:
    """What a whole recording had and the folder has not counts as not recorded: no rule then judges by it."""

    def gone(name: str, *, had: bool) -> bool:
        if not had or (folder / name).is_file():
            return False
        damage.append(f"{name} is missing")
        return True

    for name in (layout.DESCRIPTORS, layout.INTERESTS):
        gone(name, had=bool(info.syscalls.engine))
    if gone(layout.SYSCALLS, had=info.syscalls.event_count > 0):
        info = replace(info, syscalls=SyscallCoverage())
    if gone(layout.PACKETS, had=info.packets.seen_count > 0):
        info = replace(info, packets=PacketCoverage())
    if gone(layout.SOCKETS, had=info.sockets.snapshot_count > 0):
        info = replace(info, sockets=SocketCoverage())
    return info


def _close_open_end(info: SessionInfo, events: Events, sockets: Sockets) -> SessionInfo:
    """The end of a session that never wrote it: the last time anything says."""
    times = [info.ended_ns, info.started_ns]
    if len(events):
        times += [int(events.records["exit_ns"].max()), int(events.records["enter_ns"].max())]
    if len(sockets):
        times.append(int(sockets.records["time_ns"].max()))
    counted = replace(info.syscalls, event_count=len(events))
    snapshots = int(sockets.records["snapshot"].max()) + 1 if len(sockets) else 0
    return replace(
        info,
        ended_ns=max(times),
        syscalls=counted,
        sockets=replace(info.sockets, snapshot_count=max(snapshots, info.sockets.snapshot_count)),
    )


def _batches(source: pa.NativeFile, name: str, damage: list[str]) -> Iterator[pa.RecordBatch]:
    """Every whole batch; a cut or damaged tail is reported and left out."""
    count = 0
    try:
        with pa.ipc.open_stream(source) as reader:
            while True:
                try:
                    batch = reader.read_next_batch()
                    batch.validate(full=True)
                except StopIteration:
                    return
                count += 1
                yield batch
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = str(error).splitlines()[0]
        whole = "1 whole batch" if count == 1 else f"{count} whole batches"
        damage.append(f"{name}: cut or damaged after {whole} ({reason})")


def _rows(path: Path, dtype: np.dtype[np.void], damage: list[str]) -> npt.NDArray[np.void]:
    if not path.is_file():
        return np.zeros(0, dtype)
    try:
        with _mapped(path) as source:
            batches = list(_batches(source, path.name, damage))
    except OSError as error:
        # An empty file cannot be mapped.
        damage.append(f"{path.name}: cut or damaged after 0 whole batches ({str(error).splitlines()[0]})")
        return np.zeros(0, dtype)
    if not batches:
        return np.zeros(0, dtype)
    try:
        return from_table(pa.Table.from_batches(batches), dtype)
    except _WRONG_CONTENT as error:
        raise _not_of_a_recording(path, error) from error


def _mapped(path: Path) -> pa.MemoryMappedFile:
    with path.open("rb") as file:
        truncation.watch(file.fileno())
    return pa.memory_map(str(path), "rb")


def _events(path: Path, damage: list[str]) -> Events:
    if not path.is_file():
        return Events.empty()
    try:
        if path.stat().st_size > storage.SPILL_BYTES:
            with path.open("rb") as file:
                truncation.watch(file.fileno())
                whole = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            with contextlib.suppress(_ElsewhereError), pa.BufferReader(pa.py_buffer(whole)) as source:
                return _EventTable(path, whole).read(source, damage)
        with _mapped(path) as source:
            return _EventTable(path, None).read(source, damage)
    except OSError as error:
        # An empty file cannot be mapped.
        damage.append(f"{path.name}: cut or damaged after 0 whole batches ({str(error).splitlines()[0]})")
        return Events.empty()


class _ElsewhereError(Exception):
    """The bytes of a batch do not lie in the file as they are: somebody compressed it."""


class _EventTable:
    """Takes batch after batch, so that a big recording is never in memory twice, or at all.

    Args:
        whole: the file, where it is big: it is the events' blob as it lies there, and offsets are places in it.
            None: the bytes are copied together.
    """

    def __init__(self, path: Path, whole: npt.NDArray[np.uint8] | None) -> None:
        self._path = path
        self._whole = whole
        self._records = storage.Growing(EVENT_DTYPE)
        self._blob = storage.Growing(np.uint8)

    def read(self, source: pa.NativeFile, damage: list[str]) -> Events:
        for batch in _batches(source, self._path.name, damage):
            try:
                for at in range(0, len(batch), _ROWS_AT_ONCE):
                    self._take(batch.slice(at, _ROWS_AT_ONCE))
            except _WRONG_CONTENT as error:
                raise _not_of_a_recording(self._path, error) from error
        blob = self._blob.whole() if self._whole is None else self._whole
        events = Events(records=self._records.whole(), blob=blob)
        self._records.close()
        self._blob.close()
        return events

    def _take(self, batch: pa.RecordBatch) -> None:
        index = batch.schema.get_field_index("call")
        plain = batch.set_column(index, "call", batch.column(index).indices)
        records = from_table(pa.Table.from_batches([plain]), EVENT_DTYPE)
        data = batch.column("data")
        _, offsets_buffer, bytes_buffer = data.buffers()
        offsets = np.frombuffer(offsets_buffer, np.int64)[data.offset : data.offset + len(batch) + 1]
        begin, end = int(offsets[0]), int(offsets[-1])
        shift = -begin
        if end > begin and self._whole is None:
            shift += len(self._blob)
            self._blob.append(np.frombuffer(bytes_buffer, np.uint8)[begin:end])
        elif end > begin and self._whole is not None:
            shift = bytes_buffer.address - self._whole.ctypes.data
            if not 0 <= shift <= len(self._whole) - end:
                raise _ElsewhereError
        records["blob_offset"] = offsets[:-1] + shift
        records["blob_bytes"] = np.diff(offsets)
        self._records.append(records)


def _not_of_a_recording(path: Path, error: Exception) -> DamagedInputError:
    return DamagedInputError(f"{path} does not hold what a recording's {path.name} holds: {error}")
