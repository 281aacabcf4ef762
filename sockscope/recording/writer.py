"""Writes a recording as the session goes. A full disk costs what no longer fits, never the session."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sockscope.errors import UsageError
from sockscope.model.calls import Call
from sockscope.model.events import EVENT_DTYPE, Events
from sockscope.model.facts import Facts
from sockscope.model.info import SessionInfo
from sockscope.model.seed import Seed
from sockscope.model.sockets import Sockets
from sockscope.recording import layout, manifest
from sockscope.recording.columns import to_arrays

if TYPE_CHECKING:
    import pyarrow as pa


RESERVE_BYTES = 128 * 1024


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class _Stream:
    """One Arrow IPC stream file, opened with its first batch; every batch is flushed whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: pa.NativeFile | None = None
        self._writer: pa.ipc.RecordBatchStreamWriter | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        import pyarrow as pa

        if self._writer is None:
            self._file = pa.PythonFile(open(self._path, "wb", opener=_private), mode="w")  # noqa: SIM115
            self._writer = pa.ipc.new_stream(self._file, batch.schema)
        self._writer.write_batch(batch)
        assert self._file is not None
        self._file.flush()

    @property
    def begun(self) -> bool:
        return self._writer is not None

    def close(self) -> None:
        if self._writer is not None and self._file is not None:
            try:
                self._writer.close()
            finally:
                self._file.close()
            self._writer = None


def blobs(events: Events) -> pa.Array:
    """The blob column: one large_binary an event, without a copy where the blob lies in row order."""
    import pyarrow as pa

    lengths = events.records["blob_bytes"].astype(np.int64)
    starts = events.records["blob_offset"].astype(np.int64)
    offsets = np.zeros(len(events) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    total = int(offsets[-1])
    used = lengths > 0
    if total and np.array_equal(starts[used], offsets[:-1][used] + starts[used][0]):
        first = int(starts[used][0])
        data = np.ascontiguousarray(events.blob[first : first + total])
    else:
        data = events.blob[np.repeat(starts - offsets[:-1], lengths) + np.arange(total)]
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(events), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )


def call_names() -> list[str]:
    """Call number → name; gaps are `call_N`: pandas takes no name twice. The dictionary of the `call` column."""
    names = [f"call_{number}" for number in range(max(Call) + 1)]
    for call in Call:
        names[call] = call.name
    return names


def event_batch(events: Events) -> pa.RecordBatch:
    """The events as docs/recording-format.md describes them."""
    import pyarrow as pa

    arrays = to_arrays(events.records)
    del arrays["blob_offset"], arrays["blob_bytes"]
    arrays["call"] = pa.DictionaryArray.from_arrays(arrays["call"], pa.array(call_names()))
    arrays["data"] = blobs(events)
    return pa.RecordBatch.from_pydict(arrays)


class Writer:
    """A recording being made.

    Args:
        folder: made if missing; must be empty.

    Raises:
        UsageError: the folder holds something already, or cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problem: str | None = None
        self.lost_event_count = 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise UsageError(f"{folder} exists and is not empty", help_text="name another --output, or remove it")
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(f"{folder} is not a folder", help_text="name another --output") from error
        except OSError as error:
            raise UsageError(f"cannot write {folder}: {error.strerror}", help_text="name another --output") from error
        if not os.access(folder, os.W_OK):
            raise UsageError(f"cannot write {folder}: permission denied", help_text="name another --output")
        self._events = _Stream(folder / layout.SYSCALLS)
        self._sockets = _Stream(folder / layout.SOCKETS)
        self._processes = _Stream(folder / layout.PROCESSES)
        self._namespaces = _Stream(folder / layout.NAMESPACES)
        self._segments = _Stream(folder / layout.SEGMENTS)
        self._seed = Seed.empty()

    @property
    def packets_path(self) -> Path:
        """Where the capture writes its pcapng."""
        return self.folder / layout.PACKETS

    def begin(self, info: SessionInfo, seed: Seed) -> None:
        """Write what is known at the start, so that a recording cut off can be read."""
        self._seed = seed
        if not (self.folder / layout.RESERVE).exists():
            self._reserve()
        self._manifest(info)
        self._table(layout.DESCRIPTORS, seed.fds)
        self._table(layout.INTERESTS, seed.epolls)

    def add_seed(self, info: SessionInfo, later: Seed) -> None:
        """Add processes that came under watch after `begin`."""
        self.begin(info, self._seed.plus(later))

    def checkpoint(self, info: SessionInfo) -> None:
        """Write the manifest anew, as of now."""
        self._manifest(info)

    def write_events(self, events: Events) -> None:
        """Append events; their ids go on from the last batch's. What does not fit is counted as lost."""
        if not len(events):
            return
        if self.problem is not None:
            self.lost_event_count += len(events)
            return
        assert events.records.dtype == EVENT_DTYPE
        try:
            self._events.write(event_batch(events))
        except OSError as error:
            self.lost_event_count += len(events)
            self._trouble(error)

    def write_sockets(self, records: npt.NDArray[np.void]) -> None:
        """Append one or more snapshots' rows (SOCKET_DTYPE)."""
        if len(records):
            self._write_rows(self._sockets, records)

    def write_facts(self, facts: Facts) -> None:
        """Append what /proc said since the last call."""
        for stream, records in (
            (self._processes, facts.processes),
            (self._namespaces, facts.namespaces),
            (self._segments, facts.segments),
        ):
            if len(records):
                self._write_rows(stream, records)

    def _write_rows(self, stream: _Stream, records: npt.NDArray[np.void]) -> None:
        import pyarrow as pa

        if self.problem is None:
            try:
                stream.write(pa.RecordBatch.from_pydict(to_arrays(records)))
            except OSError as error:
                self._trouble(error)

    def finish(self, info: SessionInfo, sockets: Sockets | None = None) -> None:
        """Close the files; `sockets` brings the owners of the last snapshot."""
        if sockets is not None:
            self._table(layout.OWNERS, sockets.owners)
            # So that "no sockets seen" and "the file is lost" are two things.
            if not self._sockets.begun:
                self._write_rows(self._sockets, sockets.records[:0])
        for stream in (self._events, self._sockets, self._processes, self._namespaces, self._segments):
            try:
                stream.close()
            except OSError as error:
                self._trouble(error)
        # On a full disk this is the room that the last manifest needs.
        (self.folder / layout.RESERVE).unlink(missing_ok=True)
        self._manifest(info)

    def _reserve(self) -> None:
        with contextlib.suppress(OSError), open(self.folder / layout.RESERVE, "wb", opener=_private) as file:
            os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)

    def _table(self, name: str, records: npt.NDArray[np.void]) -> None:
        import pyarrow as pa

        if self.problem is not None:
            return
        fresh = self.folder / (name + ".new")
        stream = _Stream(fresh)
        try:
            stream.write(pa.RecordBatch.from_pydict(to_arrays(records)))
            stream.close()
            # Renamed: what an earlier call wrote is not lost in between.
            fresh.replace(self.folder / name)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            self._trouble(error)

    def _manifest(self, info: SessionInfo) -> None:
        text = manifest.encode(info, self._seed.processes)
        fresh = self.folder / (layout.MANIFEST + ".new")
        try:
            with open(fresh, "w", opener=_private) as file:
                file.write(text)
            # Renamed, so that there is a whole manifest at every moment.
            fresh.replace(self.folder / layout.MANIFEST)
        except OSError as error:
            self._trouble(error)

    def _trouble(self, error: OSError) -> None:
        if self.problem is None:
            reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
            self.problem = f"recording in {self.folder} stopped: {reason or error}"
