"""Evidence on disk into a joined session: a recording, strace logs, captures, socket listings, or any mix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sockscope import storage
from sockscope.analysis.alignment.clocks import Clocks, Files, Strand
from sockscope.analysis.build import build_session
from sockscope.analysis.session import Session
from sockscope.errors import UsageError
from sockscope.model.columns import pieces, rows_of
from sockscope.model.events import EventFlag, Events
from sockscope.model.facts import Facts
from sockscope.model.info import PacketCoverage, SessionInfo, SocketCoverage, SyscallCoverage, Target
from sockscope.model.packets import Packets
from sockscope.model.seed import Seed
from sockscope.model.sockets import Sockets
from sockscope.recording.reader import read_recording
from sockscope.sources.packets.files import read_captures

if TYPE_CHECKING:
    from sockscope.sources.sockets.text.reader import SocketText
    from sockscope.sources.syscalls.strace_log.reader import StraceLog
    from sockscope.sources.unread import UnreadLine

Progress = Callable[[str, int, int], None]
"""What is being read, bytes done, bytes of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What to join. What is named beside a recording takes the place of its own.

    Attributes:
        recording: a folder made by `record`.
        straces: strace logs of one session: one with -f, or all that -ff made.
        captures: pcap or pcapng files of one session.
        listings: text of ss or netstat, in order of time.
        ports: the server's, where the evidence does not tell them.
    """

    recording: Path | None = None
    straces: Sequence[Path] = ()
    captures: Sequence[Path] = ()
    listings: Sequence[Path] = ()
    ports: Sequence[int] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the files, a name each kind."""
        kinds = (self.straces, self.captures, self.listings)
        return tuple(_names(kind) for kind in kinds if kind)


@dataclass(kw_only=True)
class _Tables:
    """What was read so far."""

    info: SessionInfo | None = None
    seed: Seed = field(default_factory=Seed.empty)
    events: Events = field(default_factory=Events.empty)
    packets: Packets = field(default_factory=Packets.empty)
    sockets: Sockets = field(default_factory=Sockets.empty)
    facts: Facts = field(default_factory=Facts)
    captures: tuple[Path, ...] = ()
    files: Files | None = None
    notes: list[str] = field(default_factory=list)


def load_session(
    evidence: Evidence | Path, *, info: SessionInfo | None = None, progress: Progress | None = None
) -> Session:
    """Read and join.

    Args:
        evidence: what there is; a path is a recording.
        info: what `record` said of the session; it knows more than a full disk could hold.
        progress: told while big files are read.

    Raises:
        DamagedInputError: a file cannot be read at all.
        UsageError: nothing was given, or a file is not there.
    """
    if isinstance(evidence, Path):
        evidence = Evidence(recording=evidence)
    if not (evidence.recording or evidence.straces or evidence.captures or evidence.listings):
        raise UsageError(
            "nothing to analyze", help_text="name a recording folder, --strace FILE, --pcap FILE, or --ss FILE"
        )
    tables = _Tables()
    captures = tuple(evidence.captures)
    if evidence.recording is not None:
        data = read_recording(evidence.recording)
        tables.info = info or data.info
        tables.notes += [*tables.info.notes, *data.damage]
        tables.seed, tables.events, tables.sockets, tables.facts = data.seed, data.events, data.sockets, data.facts
        own = data.packets_path
        if not captures and own is not None and own.stat().st_size:
            captures = (own,)
    log = _read_logs(evidence, tables, progress)
    coverage = _read_captures(captures, evidence, tables, progress)
    text = _read_listings(evidence, tables)
    known = _session_info(evidence, tables, log, coverage, text)
    known = replace(known, notes=(*tables.notes, *_io_uring_notes(known.syscalls.engine, tables.events)))
    session = build_session(
        info=known,
        seed=tables.seed,
        events=tables.events,
        packets=tables.packets,
        sockets=tables.sockets,
        facts=tables.facts,
        clocks=_clocks(evidence, tables, text),
        columns=storage.allocate,
    )
    session.captures = tables.captures
    asked = " or ".join(map(str, evidence.ports))
    if asked and len(tables.packets) and not session.connections:
        names = " and ".join(path.name for path in tables.captures)
        note = f"no connection to port {asked} in {names}: without --port its servers are told from the packets"
        session.info = replace(session.info, notes=(*session.info.notes, note))
    return session


def _read_logs(evidence: Evidence, tables: _Tables, progress: Progress | None) -> StraceLog | None:
    if not evidence.straces:
        return None
    from sockscope.sources.syscalls.strace_log.reader import read_strace

    told = None if progress is None else lambda done, whole: progress(_names(evidence.straces), done, whole)
    log = read_strace(evidence.straces, progress=told)
    tables.events, tables.seed = log.events, log.seed
    tables.notes += [*log.notes, *_unread_notes(log.unread_count, log.unread)]
    return log


def _read_captures(
    captures: tuple[Path, ...], evidence: Evidence, tables: _Tables, progress: Progress | None
) -> PacketCoverage:
    known = tables.info.packets if tables.info is not None and not evidence.captures else PacketCoverage()
    if not captures:
        return known
    ports = frozenset(tables.info.target.ports) if tables.info is not None else frozenset[int]()
    told = None if progress is None else lambda done, whole: progress(_names(captures), done, whole)
    capture = read_captures(captures, ports=ports or None, progress=told)
    tables.packets, tables.captures = capture.packets, captures
    if len(captures) > 1:
        names, whole = zip(*((file.name, file.whole) for file in capture.files), strict=True)
        tables.files = Files(names=names, whole=whole, number=capture.file_of())
    tables.notes += [*capture.damage, *capture.notes]
    return replace(
        known,
        available=True,
        seen_count=max(known.seen_count, len(capture.packets)),
        lost_count=max(known.lost_count, capture.dropped_count),
        gap=known.gap or ("; ".join(capture.damage[:1]) if capture.has_hole else ""),
    )


def _read_listings(evidence: Evidence, tables: _Tables) -> SocketText | None:
    if not evidence.listings:
        return None
    from sockscope.sources.sockets.text.reader import read_socket_texts

    text = read_socket_texts(evidence.listings)
    tables.sockets = text.sockets
    if evidence.recording is None:
        tables.facts = text.facts
    tables.notes += [*text.notes, *_unread_notes(text.unread_count, text.unread)]
    return text


def _session_info(
    evidence: Evidence,
    tables: _Tables,
    log: StraceLog | None,
    packets: PacketCoverage,
    text: SocketText | None,
) -> SessionInfo:
    sockets = text.coverage if text is not None else None
    if tables.info is not None:
        return replace(
            tables.info,
            target=replace(tables.info.target, files=evidence.names),
            syscalls=log.coverage if log is not None else tables.info.syscalls,
            packets=packets,
            sockets=sockets or tables.info.sockets,
        )
    first, last = _span(tables, log)
    return SessionInfo(
        target=Target(ports=tuple(evidence.ports), files=evidence.names),
        started_realtime_ns=_started_realtime(evidence, log, first, last),
        started_ns=first,
        ended_ns=last,
        clock_samples=((first, first),),
        syscalls=log.coverage if log is not None else SyscallCoverage(),
        packets=packets,
        sockets=sockets or SocketCoverage(),
    )


def _clocks(evidence: Evidence, tables: _Tables, text: SocketText | None) -> Clocks:
    """What was not recorded together may have been stamped anywhere; the pieces of a rotated capture were not."""
    packets = tables.packets if evidence.captures else Packets.empty()
    sockets = tables.sockets if text is not None else Sockets.empty()
    strands = _strands(_names(evidence.captures), len(packets)) if len(packets) else ()
    clocks = Clocks(packets=strands, files=tables.files if strands else None)
    if text is None or not len(sockets):
        return clocks
    if all(text.times_known):
        return replace(clocks, sockets=_strands(_names(evidence.listings), len(sockets)))
    numbers, starts = np.unique(sockets.records["snapshot"], return_index=True)
    ends = [*starts[1:].tolist(), len(sockets)]
    strands = tuple(
        Strand(source=f"socket listing {number + 1}", start=start, stop=stop)
        for number, start, stop in zip(numbers.tolist(), starts.tolist(), ends, strict=True)
    )
    return replace(clocks, sockets=strands, guessed=True)


def _strands(source: str, count: int) -> tuple[Strand, ...]:
    return (Strand(source=source, start=0, stop=count),)


def _span(tables: _Tables, log: StraceLog | None) -> tuple[int, int]:
    """First and last moment on the session's clock: the log's, else the capture's, else the listings'."""
    if log is not None and log.span_ns is not None and log.coverage.resolution_ns:
        # Calls that are of no interest are no events, and yet show that strace was there.
        return log.span_ns
    if len(tables.events):
        records = tables.events.records
        spans = [_times(records[part]) for part in pieces(len(records))]
        times = np.array([end for span in spans if len(span) for end in (span.min(), span.max())], np.int64)
    elif len(tables.packets):
        times = tables.packets.records["time_ns"]
    else:
        times = tables.sockets.records["time_ns"]
    return (int(times.min()), int(times.max())) if len(times) else (0, 0)


def _times(records: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    times = np.concatenate([records["enter_ns"], records["exit_ns"]])
    return times[times >= 0]


def _started_realtime(evidence: Evidence, log: StraceLog | None, first: int, last: int) -> int:
    """A log without a date was most likely last written when its last call came."""
    if log is None or log.clock == "dated":
        return first
    written = max(path.stat().st_mtime_ns for path in evidence.straces)
    return written - (last - first)


def _names(paths: Sequence[Path]) -> str:
    return paths[0].name if len(paths) == 1 else f"{paths[0].name} and {len(paths) - 1} more"


def _unread_notes(count: int, kept: Sequence[UnreadLine]) -> list[str]:
    """How many lines were not understood, and where the first of them stand."""
    if not count:
        return []
    first = kept[0]
    many = "1 line was" if count == 1 else f"{count} lines were"
    others = ", ".join(str(line.line_number) for line in kept[1:6] if line.file == first.file)
    more = f" (then line {others}{' …' if count > 6 else ''})" if others else ""
    return [f"{many} not understood, the first in {first.file} line {first.line_number}: {first.text[:80]!r}{more}"]


def _io_uring_notes(engine: str, events: Events) -> list[str]:
    """Who speaks through an io_uring that the engine sees into; what is not seen the rule io-uring-blind-spot says."""
    ringed = rows_of(events.records, lambda part: part["flags"] & EventFlag.URING != 0)
    by_engine = f"{engine} engine" if engine else "engine"
    return [
        f"process {tgid} uses io_uring: seen through the {by_engine}"
        for tgid in np.unique(events.records["tgid"][ringed]).tolist()
    ]
