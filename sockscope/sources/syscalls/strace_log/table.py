"""Chunk after chunk of log lines into columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from sockscope import storage
from sockscope.model.calls import FIRST_TASK_EVENT
from sockscope.model.events import EVENT_DTYPE, EventFlag
from sockscope.sources.syscalls.strace_log.halves import Pairs, in_order_of, join_halves
from sockscope.sources.syscalls.strace_log.log import LogClock
from sockscope.sources.syscalls.strace_log.odd_lines import NO_RESTART, Found, Threads
from sockscope.sources.syscalls.strace_log.prefix import NO_TID, Lines, guess_layout, split_lines
from sockscope.sources.syscalls.strace_log.templates import FIRST_UNREAD, NAME_DTYPE, TEXT_LIMIT, UNTRACED, Templates
from sockscope.sources.syscalls.strace_log.times import Clock
from sockscope.sources.unread import UNREAD_KEPT, UNREAD_LENGTH, UnreadLine

Ids = npt.NDArray[np.int64]
Rows = npt.NDArray[np.void]

USE_DTYPE = np.dtype([*NAME_DTYPE.descr, ("row", "<i8"), ("time_ns", "<i8"), ("tid", "<i4")])
"""A descriptor is used under a name that its thread did not last use for it, or was made."""

_SAMPLE_LINES = 64
_PAD = bytes(64)


@dataclass(slots=True)
class FileState:
    """One file, as far as it is read.

    Attributes:
        default_tid: of lines that name none: from the file's name, or a negative number that stands for
            a process whose number is not known yet.
        alive: tids that were named and have not ended; while strace writes to a terminal it names nobody where only
            one is left.
        understood: at least one line was.
    """

    name: str
    default_tid: int
    clock: Clock = field(default_factory=Clock)
    threads: Threads = field(default_factory=Threads)
    alive: dict[int, None] = field(default_factory=dict)
    default_used: bool = False
    line_count: int = 0
    understood: bool = False
    first_line: bytes = b""


@dataclass(frozen=True, slots=True)
class _Calls:
    """Calls read in bulk: `line` is the one that ended each. Shape (k,) each."""

    line: Ids
    enter_ns: Ids
    tid: Ids
    texts: list[bytes]


class Table:
    """The growing table.

    Attributes:
        blob: what the events refer to.
        uses: USE_DTYPE pieces.
        comms: tid → name, from -Y.
        tids: who has a line at all, if only of calls that no row is made of.
        span_ns: times of the first and last line, whatever it says, on the log's clock; None: there is no line.
    """

    def __init__(self, *, text_limit: int = TEXT_LIMIT) -> None:
        self.blob = bytearray()
        self.templates = Templates(self.blob, text_limit=text_limit)
        self._records = storage.Growing(EVENT_DTYPE)
        self._bounds = [0]
        self.uses: list[Rows] = []
        self.comms: dict[int, bytes] = {}
        self.tids: set[int] = set()
        self.row_count = 0
        self.span_ns: tuple[int, int] | None = None
        self.line_count = 0
        self.call_count = 0
        self.unread: list[UnreadLine] = []
        self.unread_count = 0
        self._last_row: dict[int, int] = {}
        self._last_name: dict[int, int] = {}

    @property
    def part_count(self) -> int:
        return len(self._bounds) - 1

    def parts(self) -> list[Rows]:
        """The events, a piece a chunk, in the order of the log; tgid is 0. Views: void once events are added."""
        records = self._records.whole()
        return [records[a:b] for a, b in pairwise(self._bounds)]

    def records(self, extra: list[Rows]) -> Rows:
        """All events, and these behind them. The table is of no use any more."""
        for part in extra:
            self._append(part)
        records = self._records.whole()
        self._records.close()
        return records

    def _append(self, records: Rows) -> None:
        self._records.append(records)
        self.row_count = len(self._records)
        self._bounds.append(self.row_count)

    def take(self, file: FileState, data: bytes) -> None:
        """The lines of one chunk."""
        if b"\0" in data:
            # Holes that a rotated log has where its head was.
            data = data.replace(b"\0", b"")
        if not data:
            return
        starts, ends, chunk = _lines_of(data)
        sample = [data[a:b] for a, b in zip(starts[:_SAMPLE_LINES].tolist(), ends.tolist(), strict=False)]
        lines = split_lines(data, chunk, starts, ends, guess_layout(sample))
        self.comms.update(lines.comms)
        time_ns = file.clock.run(lines, self.line_count)
        self._widen(time_ns, lines.duration_ns)
        tid = _name_threads(file, data, chunk, lines)
        self.tids.update(np.unique(tid).tolist())
        if not file.first_line:
            file.first_line = next((line for line in sample if line.strip()), b"")[:UNREAD_LENGTH]
        regular, odd, pairs = _sort_out(data, chunk, lines, tid)
        found = Found()
        take_odd = file.threads.take
        for line in odd.tolist():
            text = data[lines.at[line] : lines.end[line]]
            take_odd(found, line, text, int(tid[line]), int(time_ns[line]))
        begins, stops = lines.at[regular].tolist(), lines.end[regular].tolist()
        texts = [data[a:b] for a, b in zip(begins, stops, strict=True)]
        begun = np.concatenate([time_ns[regular], time_ns[pairs.first]])
        calls = _Calls(
            np.concatenate([regular, pairs.second]),
            begun,
            tid[np.concatenate([regular, pairs.second])],
            texts + pairs.texts,
        )
        self._encode(file, calls, found, tid, time_ns, lines.duration_ns)
        self.line_count += len(starts)
        file.line_count += len(starts)

    def _widen(self, time_ns: Ids, duration_ns: Ids) -> None:
        if len(time_ns):
            first, last = int(time_ns.min()), int((time_ns + np.maximum(duration_ns, 0)).max())
            known = self.span_ns or (first, last)
            self.span_ns = min(known[0], first), max(known[1], last)

    def finish(self, file: FileState) -> None:
        """The file has ended: what has not returned never will."""
        found = Found()
        file.threads.leave_all(found, 0)
        nothing = np.zeros(1, np.int64)
        self._encode(file, _Calls(nothing[:0], nothing[:0], nothing[:0], []), found, nothing, nothing, nothing)
        self._last_row.clear()

    def _encode(self, file: FileState, calls: _Calls, found: Found, tid: Ids, time_ns: Ids, duration_ns: Ids) -> None:
        """Events of these calls and of what odd lines completed, in the order of the lines that ended them."""
        self.templates.make_room(len(calls.texts) + len(found.text))
        texts = calls.texts + found.text
        ids = self.templates.look_up(texts)
        line = np.concatenate([calls.line, np.array(found.line, np.int64)])
        enter_ns = np.concatenate([calls.enter_ns, np.array(found.enter_ns, np.int64)])
        who = np.concatenate([calls.tid, np.array(found.tid, np.int64)])
        joined = np.concatenate([calls.enter_ns != time_ns[calls.line], np.array(found.joined, np.bool_)])
        if len(line) > 1 and (np.diff(line) < 0).any():
            order = in_order_of(line)
            line, enter_ns, who, joined, ids = line[order], enter_ns[order], who[order], joined[order], ids[order]
            if (ids <= FIRST_UNREAD).any():
                texts = [texts[at] for at in order.tolist()]
        self._note_unread(file, ids, line, texts, found)
        took = duration_ns[line] if file.clock.kind is not LogClock.NONE else np.full(len(line), -1, np.int64)
        # Measured beats told: strace writes the second half when it gets round to it. Unless seconds are all.
        measured = (took >= 0) & ((file.clock.digits > 0) | ~joined)
        exit_ns = np.where(measured, enter_ns + took, np.where(joined, time_ns[line], enter_ns))
        kept = ids >= 0
        self.call_count += int(np.count_nonzero(ids == UNTRACED))
        file.understood = file.understood or bool((ids >= UNTRACED).any())
        if not kept.any():
            return
        ids, enter_ns, exit_ns, who = ids[kept], enter_ns[kept], exit_ns[kept], who[kept]
        records = self.templates.rows[ids]
        self.call_count += int(np.count_nonzero(records["call"] < FIRST_TASK_EVENT))
        records["enter_ns"] = enter_ns
        records["tid"] = who
        unreturned = (records["flags"] & EventFlag.ENTERED_ONLY) != 0
        records["exit_ns"] = np.where(unreturned, -1, exit_ns)
        self._keep_order(records, who)
        self._note_uses(records, ids, who)
        self._append(records)

    def _keep_order(self, records: Rows, who: Ids) -> None:
        """No call returns after its thread made the next one: times are rounded, and with -t there are only seconds."""
        enter, leave = records["enter_ns"], records["exit_ns"]
        order = in_order_of(who)
        sorted_who = who[order]
        fresh = np.diff(sorted_who, prepend=sorted_who[0] - 1) != 0
        before, after = order[:-1], order[1:]
        late = ~fresh[1:] & (leave[before] > enter[after]) & (enter[after] >= enter[before])
        leave[before[late]] = enter[after[late]]
        firsts = np.flatnonzero(fresh)
        lasts = np.append(firsts[1:], len(order)) - 1
        for first, last in zip(order[firsts].tolist(), order[lasts].tolist(), strict=True):
            tid = int(who[first])
            known = self._last_row.get(tid)
            if known is not None:
                row = self._records.whole()[known]
                if row["exit_ns"] > enter[first] >= row["enter_ns"]:
                    row["exit_ns"] = enter[first]
            self._last_row[tid] = self.row_count + last

    def _note_uses(self, records: Rows, ids: Ids, who: Ids) -> None:
        """Which descriptors got a name that their thread did not last use for them."""
        counts = self.templates.name_count[ids]
        total = int(counts.sum())
        if not total:
            return
        rows = np.repeat(np.arange(len(ids)), counts)
        within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
        flat = self.templates.name_start[ids][rows] + within
        fd, key = self.templates.names["fd"][flat], self.templates.names["key"][flat]
        whose, wide = who[rows], fd.astype(np.int64)
        group = (whose << 32) | (wide & 0xFFFF_FFFF)
        order = in_order_of(wide)
        order = order[in_order_of(whose[order])]
        group, key = group[order], key[order]
        fresh = np.diff(group, prepend=group[0] - 1) != 0
        changed = np.diff(key, prepend=key[0] - 1) != 0
        firsts = np.flatnonzero(fresh)
        lasts = np.append(firsts[1:], len(order)) - 1
        last_name = self._last_name
        first_keys, last_keys = key[firsts].tolist(), key[lasts].tolist()
        groups = group[firsts].tolist()
        changed[firsts] = [last_name.get(g) != k for g, k in zip(groups, first_keys, strict=True)]
        last_name.update(zip(groups, last_keys, strict=True))
        # The same name made anew: of interest where a new socket has the addresses of the one before.
        anew = (self.templates.names["made"][flat[order]] != 0) & (self.templates.names["local_bytes"][flat[order]] > 0)
        picked = np.sort(order[changed | anew])
        if not len(picked):
            return
        uses = np.zeros(len(picked), USE_DTYPE)
        for column in NAME_DTYPE.names or ():
            uses[column] = self.templates.names[column][flat[picked]]
        used = rows[picked]
        uses["row"] = used + self.row_count
        uses["tid"] = who[used]
        leave = records["exit_ns"][used]
        enter = records["enter_ns"][used]
        uses["time_ns"] = np.where((uses["made"] != 0) & (leave >= 0), leave, enter)
        self.uses.append(uses)

    def _note_unread(self, file: FileState, ids: Ids, line: Ids, texts: list[bytes], found: Found) -> None:
        unread = np.flatnonzero(ids <= FIRST_UNREAD)
        self.unread_count += len(unread) + len(found.unread)
        if len(self.unread) >= UNREAD_KEPT:
            return
        told = [
            (int(line[at]), texts[at], self.templates.reasons[FIRST_UNREAD - int(ids[at])])
            for at in unread[:UNREAD_KEPT].tolist()
        ]
        for number, text, why in sorted([*told, *found.unread[:UNREAD_KEPT]])[: UNREAD_KEPT - len(self.unread)]:
            shown = text[:UNREAD_LENGTH].decode("utf-8", "backslashreplace")
            at = file.line_count + number + 1
            self.unread.append(UnreadLine(file=file.name, line_number=at, text=shown, why=why))


def _lines_of(data: bytes) -> tuple[Ids, Ids, npt.NDArray[np.uint8]]:
    """Where the lines begin and end (line ends left out), and the bytes with zeros behind."""
    chunk = np.frombuffer(data + _PAD, np.uint8)
    breaks = np.flatnonzero(chunk[: len(data)] == 0x0A)
    starts = np.concatenate([np.zeros(1, np.int64), breaks + 1])
    ends = np.concatenate([breaks, np.array([len(data)], np.int64)])
    if starts[-1] == len(data):
        starts, ends = starts[:-1], ends[:-1]
    ends = ends - ((ends > starts) & (chunk[np.maximum(ends - 1, 0)] == 0x0D))
    return starts, ends, chunk


def _name_threads(file: FileState, data: bytes, chunk: npt.NDArray[np.uint8], lines: Lines) -> Ids:
    """The thread of each line, where lines that name none are told apart by who is left."""
    tid = lines.tid
    nameless = tid == NO_TID
    if nameless.all() and not file.alive:
        file.default_used = True
        return np.full(len(tid), file.default_tid, np.int64)
    named = np.unique(tid[~nameless])
    if not nameless.any() and len(named) <= len(file.alive) and all(t in file.alive for t in named.tolist()):
        ended = np.flatnonzero(chunk[lines.at] == 0x2B)
        for line in ended.tolist():
            if data[lines.at[line] : lines.at[line] + 4] == b"+++ ":
                file.alive.pop(int(tid[line]), None)
        return tid
    whose = tid.copy()
    alive = file.alive
    texts = zip(tid.tolist(), lines.at.tolist(), lines.end.tolist(), strict=True)
    for line, (who, at, end) in enumerate(texts):
        if who == NO_TID:
            if at == end:
                continue
            if alive:
                who = next(reversed(alive))
            else:
                who = file.default_tid
                file.default_used = True
            whose[line] = who
        else:
            alive[who] = None
        if data[at : at + 4] == b"+++ ":
            alive.pop(who, None)
    return whose


def _sort_out(data: bytes, chunk: npt.NDArray[np.uint8], lines: Lines, tid: Ids) -> tuple[Ids, Ids, Pairs]:
    """Lines that are a whole call or signal; those that must be looked at one by one; and calls in two halves.

    Blank lines are none of these.
    """
    at, end = lines.at, lines.end
    filled = end > at
    first = chunk[np.minimum(at, len(chunk) - 1)]
    last, before = chunk[np.maximum(end - 1, 0)], chunk[np.maximum(end - 2, 0)]
    cut = (last == 0x3E) & (before == 0x2E)  # `...>`
    fourth = chunk[np.minimum(at + 3, len(chunk) - 1)]
    signal = (first == 0x2D) & (fourth == 0x20)  # `--- `
    usual = filled.copy()
    for sign in (b"ERESTART_RESTARTBLOCK", NO_RESTART, b"Process "):
        place = data.find(sign)
        while place >= 0:
            line = int(np.searchsorted(at, place, "right")) - 1
            usual[line : line + 2] = False  # the next may go on with it
            place = data.find(sign, place + 1)
    regular = usual & ((((first >= 0x61) & (first <= 0x7A)) & ~cut) | signal)
    pairs = join_halves(data, chunk, lines, tid, usual)
    odd = filled & ~regular
    odd[pairs.first] = False
    odd[pairs.second] = False
    return np.flatnonzero(regular), np.flatnonzero(odd), pairs
