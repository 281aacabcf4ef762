"""Runs one session for attach, run and diagnose: signals, progress, the folder, then the output."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from sockscope.cli.output import Output
from sockscope.cli.progress import Line
from sockscope.errors import ExitCode

if TYPE_CHECKING:
    from sockscope.model.seed import Seed
    from sockscope.pipeline.options import RecordOptions
    from sockscope.pipeline.record import Progress, Recorded, Watcher


def watch(
    options: RecordOptions,
    output: Output,
    *,
    keep: Path | None,
    watcher: Watcher,
    show_progress: bool = True,
    done: Callable[[], None] = lambda: None,
) -> tuple[int, Recorded]:
    """Record, then report.

    Args:
        options: target and means.
        output: what to make of it.
        keep: where the recording stays; None: it is removed afterwards.
        watcher: hooks of the caller; its `stop` is set by SIGINT, SIGTERM and SIGHUP.
        show_progress: a line on stderr while watching (terminal only).
        done: called between the watching and the report.

    Returns:
        The exit code of the report, and what `record` says.
    """
    from sockscope.pipeline.record import record

    flying = options.keep_s is not None
    with (
        recording_folder(keep) as folder,
        _stopping(watcher, launched=bool(options.command)),
        _dumping(watcher) if flying else nullcontext(),
    ):
        watcher.on_note = _say_note
        line = Line()
        if show_progress and line.wanted:
            watcher.on_progress = _progress_line(options, line)
        elif show_progress:
            watcher.on_ready = _say_when_ready
        recorded = record(options, folder, watcher)
        done()
        line.clear()
        # Only now: the target is watched the sooner.
        from sockscope.pipeline.load import load_session

        code = output.emit(load_session(recorded.folder, info=recorded.info))
        if keep is not None:
            print(f"sockscope: recording kept in {recorded.folder}", file=sys.stderr)
    # What fired in the night counts, though the end is quiet.
    return max(code, ExitCode.FINDINGS) if recorded.fired_count else code, recorded


@contextmanager
def recording_folder(keep: Path | None) -> Iterator[Path]:
    """Where the recording goes: kept if named, else a temporary folder that is removed."""
    if keep is not None:
        yield keep
        return
    folder = Path(tempfile.mkdtemp(prefix="sockscope-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _dumping(watcher: Watcher) -> Iterator[None]:
    """SIGUSR1 has the flight recorder write."""
    former = signal.signal(signal.SIGUSR1, lambda number, frame: watcher.dump.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, former)


@contextmanager
def _stopping(watcher: Watcher, *, launched: bool) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP (the terminal is gone) end the watching, not sockscope: the report still comes."""
    interrupts = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        # The terminal's Ctrl-C reached a launched command too: it may end by itself first.
        if not (launched and number == signal.SIGINT and interrupts == 1):
            watcher.stop.set()
        if interrupts >= 3:
            raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        # Ignored, under nohup: the watching goes on without the terminal.
        numbers.append(signal.SIGHUP)
    former = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _say_note(note: str) -> None:
    print(f"sockscope: {note}", file=sys.stderr, flush=True)


def _say_when_ready(tgids: tuple[int, ...], seed: Seed) -> None:
    """For scripts: from this line on everything is seen."""
    many = "process" if len(tgids) == 1 else "processes"
    print(f"sockscope: watching {many} {', '.join(map(str, tgids))}", file=sys.stderr, flush=True)


def _progress_line(options: RecordOptions, line: Line) -> Callable[[Progress], None]:
    total = f" of {options.duration_s:g} s" if options.duration_s else " s, Ctrl-C ends"

    def show(progress: Progress) -> None:
        lost = f", {progress.lost_count} lost" if progress.lost_count else ""
        processes = "1 process" if progress.process_count == 1 else f"{progress.process_count} processes"
        line.put(
            f"watching {processes}: {progress.elapsed_s:.0f}{total},"
            f" {progress.event_count} events{lost}, {progress.snapshot_count} snapshots"
        )

    return show
