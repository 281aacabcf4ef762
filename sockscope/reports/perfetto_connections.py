"""The connections of a Perfetto trace: the life of each, for some the kernel's states and the packets beside it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from sockscope.model.connections import Connection
from sockscope.model.kernel import KernelStory
from sockscope.model.report import ConnectionRow, Report
from sockscope.model.tables import SessionTables
from sockscope.model.tcp import TcpFlag, TcpState
from sockscope.reports.escape import safe
from sockscope.reports.export_words import mark_words
from sockscope.reports.format import process_name
from sockscope.reports.perfetto_lanes import lanes
from sockscope.reports.perfetto_names import Names, Tracks
from sockscope.reports.perfetto_wire import BEGIN, END, INSTANT, Int64s, Note, Rows, counters, note, track_event

MOST_TOLD = 200
"""So many connections have tracks of their own; the UI grows slow with thousands."""

MOST_LANES = 500
"""Of connections open at once; where more are, the others are instants."""

_TCP = 6
_PROTOCOLS = {1: "ICMP", 17: "UDP", 58: "ICMPv6"}
_ENDED = frozenset({TcpState.UNKNOWN, TcpState.CLOSE, TcpState.TIME_WAIT})
_FLOWING = int(TcpFlag.SYN | TcpFlag.FIN | TcpFlag.RST)


def title(row: ConnectionRow) -> str:
    """How a connection is called throughout the trace."""
    one = row.connection
    far = str(one.peer) if one.peer is not None and str(one.peer) else row.far or "?"
    return f"#{one.id} {far}"


def state_name(state: int) -> str:
    return TcpState(state).name if state in TcpState._value2member_map_ else f"state {state}"


class Connections:
    """All connections, and which of them have tracks of their own."""

    def __init__(self, report: Report, tables: SessionTables, tracks: Tracks) -> None:
        self._report, self._tables = report, tables
        self._rows = report.connections
        self._group = (
            tracks.plain("Connections", about="the life of each connection", ordered=True) if self._rows else 0
        )
        self._told = {
            index: self._tracks_of(index, rank, tracks) for rank, index in enumerate(_worth_telling(report), start=2)
        }
        self._flows = _flowing(tables, len(self._rows))
        self._ends = [_end(row.connection, report.info.ended_ns) for row in self._rows]
        self._lives = self._lay_out_lives(tracks)
        self._open = tracks.counter("open connections") if self._rows else 0
        self.wire = tracks.plain("Packets") if len(tables.packets) else 0

    def _tracks_of(self, index: int, rank: int, tracks: Tracks) -> tuple[int, int]:
        """Of a told connection the track of its states and that of its packets."""
        row = self._rows[index]
        states = tracks.plain(title(row), parent=self._group, rank=rank, about=row.summary)
        return states, tracks.plain("packets", parent=states)

    def _lay_out_lives(self, tracks: Tracks) -> Int64s:
        """The track of each connection's life."""
        begin = np.array([row.connection.first_ns for row in self._rows], np.int64)
        end = np.array(self._ends, np.int64)
        order = np.lexsort((end, begin))
        lane = np.zeros(len(begin), np.int64)
        lane[order] = lanes(np.zeros(len(begin), np.int64), begin[order], end[order])
        count = min(int(lane.max(initial=-1)) + 1, MOST_LANES)
        made = [tracks.plain("lives", parent=self._group, rank=1) for _ in range(count)]
        self._crowded = lane >= MOST_LANES
        found: Int64s = np.array(made, np.int64)[np.minimum(lane, MOST_LANES - 1)]
        return found

    def packets_track(self) -> Int64s:
        """Shape (connections + 1,): where each connection's packets lie; the last: those of none."""
        out = np.full(len(self._rows) + 1, self.wire, np.int64)
        for index, (_, wire) in self._told.items():
            out[index] = wire
        return out

    def lives(self) -> Iterator[bytes]:
        """Slices from the first to the last sign of each connection; of those that are left, to the end."""
        for row, end_ns, track, crowded in zip(
            self._rows, self._ends, self._lives.tolist(), self._crowded.tolist(), strict=True
        ):
            one = row.connection
            name = safe(f"{title(row)} {row.summary}".strip())
            flow = one.id + 1 if self._flows[one.id] else 0
            kind = INSTANT if crowded else BEGIN
            yield track_event(kind, track, one.first_ns, name=name, flow=flow, notes=self._about(row))
            if not crowded:
                yield track_event(END, track, end_ns)

    def _about(self, row: ConnectionRow) -> bytes:
        one = row.connection
        said = [
            ("protocol", str(one.protocol)),
            ("role", str(one.role)),
            ("local", safe(str(one.local)) if one.local else ""),
            ("peer", safe(str(one.peer)) if one.peer else ""),
            ("far end", safe(row.far)),
            ("processes", safe(", ".join(process_name(self._tables.comm(t), t) for t in row.processes[:9]))),
            ("last state", state_name(one.state) if one.state else ""),
            ("wire", safe(row.wire)),
            ("findings", ", ".join(self._report.findings[index].rule for index in row.finding_indexes)),
        ]
        words = b"".join(note(name, value) for name, value in said if value)
        return words + note("bytes read", one.read_bytes) + note("bytes written", one.written_bytes)

    def states(self) -> Iterator[bytes]:
        """The kernel's states of the told connections, as slices, and what happened to their sockets, as instants."""
        for index, (track, _) in self._told.items():
            story = self._report.kernel_stories(index)
            changes = _told_states(story) or self._sampled_states(index)
            last_ns = max(self._report.info.ended_ns, changes[-1][0]) if changes else 0
            for (begin, state), (end, _) in pairwise([*changes, (last_ns, 0)]):
                if state != TcpState.CLOSE:
                    yield track_event(BEGIN, track, begin, name=state_name(state))
                    yield track_event(END, track, end)
            for reset in story.resets:
                yield track_event(INSTANT, track, reset.time_ns, name="RST sent" if reset.sent else "RST received")

    def _sampled_states(self, index: int) -> list[tuple[int, int]]:
        """As snapshots showed them; a state begins with the first that shows it."""
        rows = np.flatnonzero(self._tables.socket_connection == index)
        records = self._tables.sockets.records[rows]
        pairs = list(zip(records["time_ns"].tolist(), records["state"].tolist(), strict=True))
        changes = [now for before, now in pairwise([(0, -1), *pairs]) if now[1] != before[1]]
        gone = self._rows[index].connection.gone_ns
        if changes and gone is not None and gone >= changes[-1][0]:
            changes.append((gone, int(TcpState.CLOSE)))
        return changes

    def open_count(self) -> bytes:
        """The counter of open connections."""
        if not self._rows:
            return b""
        when = np.array([row.connection.first_ns for row in self._rows] + self._ends, np.int64)
        step = np.repeat([1, -1], len(self._rows))
        order = np.lexsort((-step, when))
        when, total = when[order], np.cumsum(step[order])
        last = np.append(when[1:] != when[:-1], True)
        return counters(self._open, when[last], total[last])


def _flowing(tables: SessionTables, count: int) -> npt.NDArray[np.bool_]:
    """Shape (connections + 1,): something else than its life lies on the connection's flow."""
    out = np.zeros(count + 1, np.bool_)
    out[tables.event_connection[tables.order]] = True
    out[tables.packet_connection[_moves(tables.packets.records)]] = True
    return out


def _moves(records: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Packets that carry something, or begin or end a connection: the others would make arrows of no meaning."""
    found: npt.NDArray[np.bool_] = (records["payload_bytes"] > 0) | ((records["flags"] & _FLOWING) != 0)
    return found


def _end(one: Connection, ended_ns: int) -> int:
    """When a connection's life ends: that of one which is still there, with the watching."""
    last = max(one.first_ns, one.last_ns, one.gone_ns or 0)
    is_left = one.gone_ns is None and (bool(one.owners) or one.never_accepted or one.state not in _ENDED)
    return max(last, ended_ns) if is_left else last


def _worth_telling(report: Report) -> list[int]:
    """Connections that findings name, the worst finding first, then the first ones."""
    named: dict[int, None] = {}
    for finding in report.findings:
        if finding.worst is not None:
            named.setdefault(finding.worst)
    for finding in report.findings:
        named.update(dict.fromkeys(finding.connections[:MOST_TOLD]))
    named.update(dict.fromkeys(range(min(MOST_TOLD, len(report.connections)))))
    return [index for index in named if 0 <= index < len(report.connections)][:MOST_TOLD]


def _told_states(story: KernelStory) -> list[tuple[int, int]]:
    return [(change.time_ns, int(change.after)) for change in story.state_changes]


class PacketRows:
    """Makes instants of packets, a chunk at a time."""

    def __init__(self, tables: SessionTables, names: Names, track: Int64s, connection_string: Int64s) -> None:
        """`track`, `connection_string`: shape (connections + 1,), the last of no connection."""
        self._tables, self._track, self._connection_string = tables, track, connection_string
        kinds, self._kind = np.unique(_kinds(tables), return_inverse=True)
        self._name = np.array([names.events.id(_kind_name(kind)) for kind in kinds.tolist()], np.int64)
        marks, self._mark = np.unique(tables.packet_marks, return_inverse=True)
        self._marks = np.array([names.strings.id(mark_words(mark)) for mark in marks.tolist()], np.int64)
        self._category = names.categories.id("packet")
        self._notes = {name: names.notes.id(name) for name in ("connection", "payload bytes", "seq", "ack", "window")}
        self._segment = names.notes.id("segment")
        self._order = np.argsort(tables.packet_ns, kind="stable")

    def rows(self, begin: int, end: int) -> Rows:
        """The packets `begin` to `end`, counted in order of time."""
        at = self._order[begin:end]
        tables, records = self._tables, self._tables.packets.records[at]
        connection = tables.packet_connection[at].astype(np.int64)
        is_tcp = records["protocol"] == _TCP
        moves = _moves(records)
        when = tables.packet_ns[at]
        every = np.ones(len(at), np.bool_)
        columns = (("payload bytes", "payload_bytes", every), ("seq", "seq", is_tcp), ("ack", "ack", is_tcp))
        notes = [
            Note(name=self._notes[name], value=records[column].astype(np.int64), present=present)
            for name, column, present in (*columns, ("window", "window", is_tcp))
        ]
        strings = self._connection_string[connection]
        notes.append(
            Note(name=self._notes["connection"], value=strings, present=connection >= 0, interned=True),
        )
        marks = tables.packet_marks[at] != 0
        notes.append(Note(name=self._segment, value=self._marks[self._mark[at]], present=marks, interned=True))
        return Rows(
            track=self._track[connection],
            begin_ns=when,
            end_ns=when,
            instant=every,
            name=self._name[self._kind[at]],
            category=np.full(len(at), self._category),
            flow=np.where(moves, connection + 1, 0),
            notes=notes,
        )


def _kinds(tables: SessionTables) -> Int64s:
    """Direction, protocol and flags in one number."""
    records = tables.packets.records
    direction = np.where(tables.packet_connection < 0, 0, np.where(tables.local_is_source, 1, 2))
    flags = np.where(records["protocol"] == _TCP, records["flags"], 0)
    kinds: Int64s = direction << 16 | records["protocol"].astype(np.int64) << 8 | flags
    return kinds


def _kind_name(kind: int) -> str:
    protocol, flags = kind >> 8 & 0xFF, kind & 0xFF
    if protocol == _TCP:
        name = ",".join(flag.name or "" for flag in TcpFlag if flags & flag) or "no flags"
    else:
        name = _PROTOCOLS.get(protocol, f"protocol {protocol}")
    return ("-- ", "-> ", "<- ")[kind >> 16] + name
