"""What every reporting command does at its end: terminal, HTML, JSON, exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sockscope.cli import options as shared
from sockscope.cli.numpy_threads import load_numpy
from sockscope.cli.options import FailOn
from sockscope.cli.progress import told
from sockscope.cli.stdout import reader_may_leave
from sockscope.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from sockscope.analysis.session import Session
    from sockscope.model.report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What shall be written, and how much of it be told."""

    html: shared.HtmlOption = None
    json: shared.JsonOption = None
    markdown: shared.MarkdownOption = None
    sarif: shared.SarifOption = None
    perfetto: shared.PerfettoOption = None
    pcapng: shared.PcapngOption = None
    parquet: shared.ParquetOption = None
    verbose: shared.VerboseOption = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Output(Written):
    """What the user wants made of a session."""

    select: shared.SelectOption = ""
    ignore: shared.IgnoreOption = ""
    fail_on: shared.FailOnOption = FailOn.warning

    @property
    def json_to_stdout(self) -> bool:
        return self.json == "-"

    def check(self) -> None:
        """Refuse before any watching what could only fail after it.

        Raises:
            UsageError: a file that cannot be written, or a rule that does not exist.
        """
        json = Path(self.json) if self.json and not self.json_to_stdout else None
        for path in (self.html, json, self.markdown, self.sarif, self.perfetto, self.pcapng):
            if path is not None:
                check_writable(path)
        if self.parquet is not None:
            check_folder(self.parquet)
        # From here on every command needs it.
        load_numpy()
        selected, ignored = slugs(self.select), slugs(self.ignore)
        if selected or ignored:
            from sockscope.findings.catalogue import find

            for slug in sorted(selected | ignored):
                find(slug)
        if selected and not selected - ignored:
            raise UsageError("no rule is left to run", help_text="--ignore takes away all that --select names")

    def emit(self, session: Session) -> int:
        """Judge the session, write what was asked for, and give the exit code."""
        from sockscope.pipeline.analyze import RuleChoice, make_report

        report = make_report(session, RuleChoice(select=slugs(self.select), ignore=slugs(self.ignore)))
        for path, write in self._writers(session, report):
            with writing(path):
                write()
            print(f"sockscope: wrote {path}", file=sys.stderr)
        with reader_may_leave():
            if self.json_to_stdout:
                from sockscope.reports.json import json_pieces

                sys.stdout.writelines(json_pieces(report))
            else:
                from rich.console import Console

                from sockscope.reports.terminal import print_report

                print_report(report, console=Console(highlight=False), verbose=self.verbose)
        return exit_code(report, self.fail_on)

    def _writers(self, session: Session, report: Report) -> Iterator[tuple[Path, Callable[[], None]]]:
        """Each file that was asked for, and what writes it. Only what is used is imported."""
        if path := self.html:
            from sockscope.reports.html import write_html

            yield path, partial(write_html, report, path)
        if self.json and not self.json_to_stdout:
            from sockscope.reports.json import json_pieces

            path = Path(self.json)
            yield path, partial(_write_text, path, json_pieces(report))
        if path := self.markdown:
            from sockscope.reports.markdown import render_markdown

            yield path, partial(_write_text, path, [render_markdown(report)])
        if path := self.sarif:
            from sockscope.reports.sarif import render_sarif

            yield path, partial(_write_text, path, [render_sarif(report)])
        if not (self.perfetto or self.pcapng or self.parquet):
            return
        from sockscope.pipeline.export import session_tables

        tables = session_tables(session)
        if path := self.perfetto:
            from sockscope.reports.perfetto import write_perfetto

            yield path, partial(write_perfetto, report, tables, path, progress=told(path))
        if path := self.pcapng:
            from sockscope.reports.pcapng import write_pcapng

            yield path, partial(write_pcapng, report, tables, path, progress=told(path))
        if path := self.parquet:
            from sockscope.reports.parquet import write_parquet

            yield path, partial(write_parquet, report, tables, path)


def _write_text(path: Path, pieces: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(pieces)


def slugs(text: str) -> frozenset[str]:
    """`a,b` → {a, b}."""
    return frozenset(part.strip() for part in text.split(",") if part.strip())


def exit_code(report: Report, fail_on: FailOn) -> ExitCode:
    """1 where a finding is at or above the bar."""
    if fail_on is FailOn.never:
        return ExitCode.OK
    from sockscope.model.findings import Severity

    bar = Severity[fail_on.value.upper()]
    return ExitCode.FINDINGS if any(f.severity >= bar for f in report.findings) else ExitCode.OK


def check_writable(path: Path) -> None:
    """Raises: UsageError where the file could not be written."""
    if str(path) == "-":
        raise UsageError("this goes to a file, not to standard output", help_text="name one; ./- if it shall be -")
    if path.is_dir():
        raise UsageError(f"{path} is a folder", help_text="name a file")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} does not exist", help_text=f"mkdir -p {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: permission denied", help_text="name another file")


def check_folder(path: Path) -> None:
    """Raises: UsageError where no files could be put there."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file", help_text="name a folder; it is made where it is missing")
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"{path} is not empty", help_text="name a new folder")
    if not path.exists() and not path.parent.is_dir():
        raise UsageError(f"{path.parent} does not exist", help_text=f"mkdir -p {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"cannot write into {path}: permission denied", help_text="name another folder")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError while writing becomes a clear message."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", help_text="name a file on another disk") from error


def show_connection(session: Session, connection: int) -> int:
    """Print one connection's whole timeline.

    Raises:
        UsageError: there is no such connection.
    """
    from rich.console import Console

    from sockscope.pipeline.analyze import make_report
    from sockscope.reports.terminal import print_timeline

    if not 0 <= connection < len(session.connections):
        raise UsageError(f"no connection {connection}", help_text=f"they go from 0 to {len(session.connections) - 1}")
    print_timeline(make_report(session), connection, console=Console(highlight=False), limit=100_000)
    return ExitCode.OK
