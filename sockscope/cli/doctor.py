"""`sockscope doctor`: what this machine allows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sockscope.cli.output import check_writable, writing
from sockscope.errors import ExitCode

EXAMPLES = (
    "sockscope doctor",
    "sudo sockscope doctor",
    "sockscope doctor --json -",
)


def doctor(
    json_path: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write JSON (sockscope-doctor/1).")
    ] = None,
) -> None:
    """Say what this machine allows, what follows from it, and the command that mends what it doesn't.

    Exit code 3 where the main job cannot be done.
    """
    from sockscope.model.capability import main_job_possible
    from sockscope.reports import doctor as report
    from sockscope.sources.capabilities import probe_all

    if json_path is not None and json_path != "-":
        check_writable(Path(json_path))
    found = probe_all()
    if json_path == "-":
        sys.stdout.write(report.to_json(found))
    elif json_path is not None:
        with writing(Path(json_path)):
            Path(json_path).write_text(report.to_json(found))
    elif sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False)
        console.print(report.table(found))
        console.print(report.verdict(found), style="bold", markup=False)
    else:
        sys.stdout.write(report.plain(found))
    sys.stdout.flush()
    if not main_job_possible(found):
        raise typer.Exit(ExitCode.CANNOT_OBSERVE)
