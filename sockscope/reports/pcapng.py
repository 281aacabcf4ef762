"""The session's packets as a pcapng file, each with a comment: who sent or got its bytes by which syscall, what the
segment is, and which findings it shows. Any Wireshark opens it; `frame.comment contains "close-wait-leak"` filters it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sockscope import __version__
from sockscope.errors import DamagedInputError, UsageError
from sockscope.model.calls import Call
from sockscope.model.findings import Finding, Source
from sockscope.model.ids import NO_ID
from sockscope.model.packets import RawFrame
from sockscope.model.report import Report
from sockscope.model.tables import SessionTables
from sockscope.model.tcp import TcpFlag
from sockscope.reports.escape import safe
from sockscope.reports.export_file import Progress, no_progress, private_file
from sockscope.reports.export_words import call_text, mark_words
from sockscope.reports.format import holder_name, process_name
from sockscope.reports.pcapng_blocks import (
    INBOUND,
    OUTBOUND,
    comment,
    enhanced_packet,
    interface_description,
    section_header,
)

MOST_TEXTS = 200_000
"""So many calls are decoded; one takes 30 µs. Those after it are named with their descriptor and result."""

_BATCH = 1 << 14
_NAMELESS = "link type "
"""How an interface is called that has no name."""
_TITLES = 100
_FINDINGS_A_PACKET = 8
_SHOWS_MORE = int(TcpFlag.SYN | TcpFlag.FIN | TcpFlag.RST)


def write_pcapng(report: Report, tables: SessionTables, path: Path, *, progress: Progress | None = None) -> None:
    """Write all packets of the session, in capture order, with their comments.

    Args:
        path: made with mode 0600, or overwritten.
        progress: told after every few thousand packets.

    Raises:
        UsageError: the session holds no packets, or the file cannot be written.
        DamagedInputError: the capture no longer holds what was read from it.
    """
    total = len(tables.packets)
    if not total:
        raise UsageError("no packets to write", help_text="record without --no-packets, or give a capture: --pcap FILE")
    told = progress or no_progress
    commenter = _Commenter.of(report, tables)
    names = report.info.packets.interfaces
    interfaces: dict[tuple[int, int], int] = {}
    frames = tables.frames(np.arange(total, dtype=np.int64))
    with private_file(path) as file:
        file.write(section_header(f"sockscope {__version__}", _section_comments(report)))
        for begin in range(0, total, _BATCH):
            rows = np.arange(begin, min(begin + _BATCH, total), dtype=np.int64)
            for number, time_ns, direction, words in zip(
                tables.packets.records["interface"][rows].tolist(),
                tables.packets.records["time_ns"][rows].tolist(),
                _directions(tables, rows),
                commenter.comments(rows),
                strict=True,
            ):
                frame = _next(frames)
                key = number, frame.link
                if key not in interfaces:
                    interfaces[key] = len(interfaces)
                    name = names[number] if number < len(names) else ""
                    name = "" if name.startswith(_NAMELESS) else name
                    file.write(interface_description(safe(name), frame.link))
                file.write(
                    enhanced_packet(
                        frame.data,
                        wire_bytes=frame.wire_bytes,
                        time_ns=time_ns,
                        interface=interfaces[key],
                        direction=direction,
                        comments=words,
                    )
                )
            told("packets", begin + len(rows), total)


def _next(frames: Iterator[RawFrame]) -> RawFrame:
    frame = next(frames, None)
    if frame is None:
        raise DamagedInputError(
            "the capture holds fewer packets than were read from it", help_text="has the file changed? analyze it again"
        )
    return frame


def _directions(tables: SessionTables, rows: npt.NDArray[np.int64]) -> list[int]:
    sent = np.where(tables.local_is_source[rows], OUTBOUND, INBOUND)
    found: list[int] = np.where(tables.packet_connection[rows] >= 0, sent, 0).tolist()
    return found


def _section_comments(report: Report) -> Iterator[str]:
    info = report.info
    yield (
        f"Packets of a sockscope session: {len(report.connections)} connections, {info.syscalls.event_count} syscalls, "
        f"{len(report.findings)} findings. Packet comments say which process sent or got the bytes, by which call."
    )
    if report.findings:
        lines = [_finding_words(finding) for finding in report.findings[:_TITLES]]
        left = len(report.findings) - _TITLES
        yield "\n".join([*lines, *([f"and {left} more"] if left > 0 else [])])


def _apart(duration_ns: int, *, sent: bool) -> str:
    """How long before what it sent a call began, or after what it got it returned."""
    before = sent == (duration_ns >= 0)
    return f", {abs(duration_ns) / 1e6:.2f} ms {'before' if before else 'after'}"


def _finding_words(finding: Finding) -> str:
    return safe(f"sockscope: {finding.rule} ({finding.severity.label}): {finding.title}")


def _finding_rows(report: Report, tables: SessionTables) -> dict[int, list[int]]:
    """Packet row → indexes of the findings told there: on packets that are evidence, else each connection's first."""
    first_of: dict[int, int] = {}
    if any(finding.connections for finding in report.findings):
        connections, firsts = np.unique(tables.packet_connection, return_index=True)
        first_of = dict(zip(connections.tolist(), firsts.tolist(), strict=True))
    found: dict[int, list[int]] = {}
    for index, finding in enumerate(report.findings):
        shown = {e.ref for e in finding.evidence if e.source is Source.PACKET and 0 <= e.ref < len(tables.packets)}
        told = {int(tables.packet_connection[row]) for row in shown}
        shown |= {first_of[c] for c in finding.connections if c in first_of and c not in told}
        for row in shown:
            found.setdefault(row, []).append(index)
    return found


@dataclass(slots=True)
class _Commenter:
    """Makes the comments of packets, a batch at a time; a call's text is made once."""

    report: Report
    tables: SessionTables
    finding_rows: dict[int, list[int]]
    finding_words: list[bytes]
    """Comments; so are `marks`."""
    marks: dict[int, bytes] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    owners: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, report: Report, tables: SessionTables) -> _Commenter:
        words = [comment(_finding_words(finding)) for finding in report.findings]
        return cls(report, tables, _finding_rows(report, tables), words)

    def comments(self, rows: npt.NDArray[np.int64]) -> Iterator[bytes]:
        """Of each row its opt_comments, end to end; empty where there is nothing to say."""
        tables = self.tables
        records, events = tables.packets.records[rows], tables.events.records
        event = tables.packet_event[rows]
        sent = tables.local_is_source[rows]
        when = tables.packet_ns[rows]
        if len(events):
            called = events[np.maximum(event, 0)]
            moment = np.where(sent, called["enter_ns"], called["exit_ns"])
        else:
            moment = np.full(len(rows), -1)
        moment[event < 0] = -1
        shows = (records["payload_bytes"] > 0) | ((records["flags"] & _SHOWS_MORE) != 0)
        connection = np.where(shows, tables.packet_connection[rows], -1)
        for row, number, apart, timed, near, mark in zip(
            rows.tolist(),
            event.tolist(),
            np.where(sent, when - moment, moment - when).tolist(),
            (moment >= 0).tolist(),
            zip(connection.tolist(), sent.tolist(), strict=True),
            tables.packet_marks[rows].tolist(),
            strict=True,
        ):
            out = b""
            if number >= 0:
                out = comment(self._call(number) + (_apart(apart, sent=near[1]) if timed else ""))
            elif near[0] >= 0 and (owner := self._owner(near[0])):
                out = comment(owner)
            if mark:
                out += self._mark(mark)
            found = self.finding_rows.get(row)
            if found:
                out += b"".join(self.finding_words[index] for index in found[:_FINDINGS_A_PACKET])
            yield out

    def _call(self, event: int) -> str:
        text = self.texts.get(event)
        if text is not None:
            return text
        row = self.tables.events.records[event]
        tgid, fd = int(row["tgid"]), int(row["args"][0]) & 0xFFFFFFFF
        who = safe(process_name(self.tables.comm(tgid), tgid))
        call = self.tables.events.call(event)
        if call in (Call.accept, Call.accept4) and row["ret"] >= 0:
            fd = int(row["ret"])
        if len(self.texts) < MOST_TEXTS:
            text = self.texts[event] = f"{who} fd {fd}: {call_text(self.tables, event)}"
            return text
        return f"{who} fd {fd}: {call.name}({fd}, …) = {int(row['ret'])}"

    def _owner(self, connection: int) -> str:
        """Whose packet it is, where no call is known."""
        text = self.owners.get(connection)
        if text is None:
            row = self.report.connections[connection]
            fds = dict(row.connection.owners)
            named = [
                holder_name(self.tables.comm(tgid), tgid, fds.get(tgid, NO_ID))
                for tgid in (row.processes or tuple(fds))[:3]
            ]
            text = self.owners[connection] = safe(", ".join(named))
        return text

    def _mark(self, mark: int) -> bytes:
        made = self.marks.get(mark)
        if made is None:
            made = self.marks[mark] = comment(f"sockscope: {mark_words(mark)}")
        return made
