"""strace logs as an event table, a seed and what is known of the log: the way in.

log = read_strace([Path("server.strace")])
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sockscope.errors import DamagedInputError, UsageError
from sockscope.model.calls import Call, CallGroup
from sockscope.model.events import Events
from sockscope.model.info import SyscallCoverage
from sockscope.sources.syscalls.strace_log.chunks import CHUNK_BYTES, Progress, read_chunks
from sockscope.sources.syscalls.strace_log.log import LogClock, StraceLog
from sockscope.sources.syscalls.strace_log.missing import Signs, missing_groups
from sockscope.sources.syscalls.strace_log.seeding import tell_names
from sockscope.sources.syscalls.strace_log.table import FileState, Table
from sockscope.sources.syscalls.strace_log.tasks import Evidence, Tasks
from sockscope.sources.syscalls.strace_log.templates import TEXT_LIMIT

__all__ = ["LogClock", "StraceLog", "read_strace"]

Rows = npt.NDArray[np.void]

_PID_SUFFIX = re.compile(r"\.(\d{1,7})(?:\.gz)?$")


def read_strace(
    paths: Sequence[Path],
    *,
    progress: Callable[[int, int], None] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    text_limit: int = TEXT_LIMIT,
) -> StraceLog:
    """Read one strace log, or several that belong together (`strace -ff -o log` writes one a thread).

    Args:
        paths: plain or gzip'ed. Lines that name no thread belong to the one in the file's suffix, else to one process.
        progress: told the bytes read and the bytes of all files, as they are read.
        chunk_bytes, text_limit: how much is read at once, and how many different texts are remembered.

    Raises:
        UsageError: no file, or one that cannot be read.
        DamagedInputError: a file that is no strace log: nothing in it was understood.
    """
    if not paths:
        raise UsageError("no strace log was named", help_text="--strace FILE")
    told = Progress(sum(_size(path) for path in paths), progress)
    table = Table(text_limit=text_limit)
    files: list[tuple[FileState, int, int]] = []
    notes: list[str] = []
    for number, path in enumerate(paths):
        suffix = _PID_SUFFIX.search(path.name)
        file = FileState(str(path), int(suffix[1]) if suffix and int(suffix[1]) else -1 - number)
        first_part = table.part_count
        for chunk in read_chunks(path, told, chunk_bytes):
            table.take(file, chunk)
        table.finish(file)
        files.append((file, first_part, table.part_count))
        if told.damage:
            notes.append(f"{path}: {told.damage}")
            told.damage = ""
        _judge(file, notes)
    if not any(file.understood for file, _, _ in files):
        raise DamagedInputError(
            "there is nothing in the strace log: " + ", ".join(map(str, paths)),
            help_text="strace -f -ttt -T -yy -o FILE …",
        )
    for file, first, last in files:
        _name_root(file, table, first, last)
    return _settle(table, [file for file, _, _ in files], notes)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror or error}", help_text="check its name and rights"
        ) from error


def _judge(file: FileState, notes: list[str]) -> None:
    if file.understood:
        return
    if not file.first_line:
        notes.append(f"{file.name} is empty")
        return
    shown = file.first_line[:80].decode("utf-8", "backslashreplace")
    if file.first_line.startswith(b"% time"):
        raise DamagedInputError(
            f"{file.name} is a summary of strace -c: it counts calls, and holds none",
            help_text="trace again without -c",
        )
    raise DamagedInputError(
        f"{file.name} is no strace log: nothing in it was understood; its first line is {shown!r}",
        help_text="give what `strace -f -ttt -T -yy -o FILE …` wrote",
    )


def _name_root(file: FileState, table: Table, first: int, last: int) -> None:
    """The process whose number strace left out while it was alone: the first that is named and was not made."""
    if not file.default_used or file.default_tid > 0:
        return
    made: set[int] = set()
    seen: dict[int, None] = {}
    parts = table.parts()[first:last]
    for part in parts:
        forks = part[np.isin(part["call"], (Call.clone, Call.clone3, Call.fork, Call.vfork))]
        made.update(forks["ret"].tolist())
        tids, at = np.unique(part["tid"], return_index=True)
        seen.update(dict.fromkeys(tids[np.argsort(at)].tolist()))
    announced = file.threads.announced
    named = [tid for tid in seen if tid > 0] or list(announced)
    root = next((tid for tid in named if tid not in made), -file.default_tid)
    for columns in (*parts, *table.uses):
        columns["tid"][columns["tid"] == file.default_tid] = root


def _settle(table: Table, files: list[FileState], notes: list[str]) -> StraceLog:
    evidence = Evidence(tids=table.tids)
    for file in files:
        evidence.attached.update(file.threads.attached)
        evidence.execs.extend(file.threads.execs)
    parts = table.parts()
    tasks = Tasks(parts, table.blob, evidence)
    for part in parts:
        tasks.fill_tgids(part)
    first_ns = min((int(part["enter_ns"].min()) for part in parts), default=0)
    seed, told = tell_names(table.uses, tasks, table.comms, first_ns)
    signs = Signs.of(parts, unfiltered=table.templates.unfiltered, unfollowed=tasks.unfollowed_count > 0)
    of_tasks = tasks.events()
    event_count = table.row_count + len(of_tasks)
    parts.clear()
    missing = missing_groups(signs)
    clock, resolution_ns = _clock(files)
    _write_notes(notes, table, tasks, files, clock, missing)
    return StraceLog(
        events=Events(records=table.records([of_tasks, told]), blob=np.frombuffer(table.blob, np.uint8)),
        seed=seed,
        clock=clock,
        coverage=SyscallCoverage(
            engine="strace", event_count=event_count, missing_groups=missing, resolution_ns=resolution_ns
        ),
        line_count=table.line_count,
        call_count=table.call_count,
        unread=tuple(table.unread),
        unread_count=table.unread_count,
        notes=tuple(notes),
        span_ns=table.span_ns,
    )


def _clock(files: list[FileState]) -> tuple[LogClock, int]:
    clocks = [file.clock for file in files if file.clock.kind is not LogClock.NONE]
    if not clocks:
        return LogClock.NONE, 0
    return clocks[0].kind, 10 ** (9 - min(clock.digits for clock in clocks))


def _write_notes(
    notes: list[str],
    table: Table,
    tasks: Tasks,
    files: list[FileState],
    clock: LogClock,
    missing: tuple[CallGroup, ...],
) -> None:
    kinds = {file.clock.kind for file in files if file.understood}
    if clock is LogClock.NONE:
        notes.append("the strace log has no times: only the order of the calls is known (strace -ttt)")
    elif len(kinds) > 1:
        notes.append(
            "the strace logs have different clocks (" + ", ".join(sorted(kinds)) + "): they cannot be compared"
        )
    if clock in (LogClock.NONE, LogClock.RELATIVE) and len(files) > 1:
        notes.append("the order of calls in different strace logs is not known (strace -ttt)")
    if tasks.unfollowed_count:
        notes.append(
            f"{tasks.unfollowed_count} children or threads were made whose calls are not in the strace log (strace -f)"
        )
    if set(missing) - {CallGroup.TASKS}:
        left_out = ", ".join(group for group in missing if group is not CallGroup.TASKS)
        notes.append(f"the strace log seems to be filtered (-e): it holds no call of these groups: {left_out}")
    no_entry = sum(file.threads.no_entry_count for file in files)
    if no_entry:
        notes.append(
            f"{no_entry} calls were under way when strace came: how they began is not in the log, they are left out"
        )
    shown = tasks.assumed[:5]
    notes.extend(shown)
    if len(tasks.assumed) > len(shown):
        notes.append(
            f"{len(tasks.assumed) - len(shown)} more threads were taken for threads of a process in the same way"
        )
    alone = [tid for tid, tgid in tasks.roots.items() if tid == tgid]
    if len(alone) > 1:
        notes.append(
            f"{len(alone)} tasks were there before the log begins and are each taken for a process of its own;"
            " threads among them cannot be told"
        )
