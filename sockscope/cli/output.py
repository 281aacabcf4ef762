"""What every reporting command does at its end: terminal, HTML, JSON, exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sockscope.cli.options import FailOn
from sockscope.cli.stdout import reader_may_leave
from sockscope.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from sockscope.analysis.session import Session
    from sockscope.model.report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What the user wants made of a session."""

    html: Path | None = None
    json: str | None = None
    select: str = ""
    ignore: str = ""
    fail_on: FailOn = FailOn.warning
    verbose: bool = False

    @property
    def json_to_stdout(self) -> bool:
        return self.json == "-"

    def check(self) -> None:
        """Refuse before any watching what could only fail after it.

        Raises:
            UsageError: a file that cannot be written, or a rule that does not exist.
        """
        for path in (self.html, Path(self.json) if self.json and self.json != "-" else None):
            if path is not None:
                check_writable(path)
        from sockscope.findings.catalogue import find

        for slug in sorted(slugs(self.select) | slugs(self.ignore)):
            find(slug)
        if slugs(self.select) and not slugs(self.select) - slugs(self.ignore):
            raise UsageError("no rule is left to run", help_text="--ignore takes away all that --select names")

    def emit(self, session: Session) -> int:
        """Judge the session, write what was asked for, and give the exit code."""
        from sockscope.pipeline.analyze import RuleChoice, make_report

        report = make_report(session, RuleChoice(select=slugs(self.select), ignore=slugs(self.ignore)))
        if self.html is not None:
            from sockscope.reports.html import write_html

            with writing(self.html):
                write_html(report, self.html)
            print(f"sockscope: wrote {self.html}", file=sys.stderr)
        if self.json is not None:
            from sockscope.reports.json import render_json

            text = render_json(report)
            if not self.json_to_stdout:
                with writing(Path(self.json)):
                    Path(self.json).write_text(text + "\n", encoding="utf-8")
                print(f"sockscope: wrote {self.json}", file=sys.stderr)
        with reader_may_leave():
            if self.json_to_stdout:
                print(text)
            else:
                from rich.console import Console

                from sockscope.reports.terminal import print_report

                print_report(report, console=Console(highlight=False), verbose=self.verbose)
        return exit_code(report, self.fail_on)


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
