"""`sockscope demo [SLUG]`: a faulty server, its clients, the diagnosis."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from sockscope.cli import options as shared
from sockscope.cli.output import Output, Written

EXAMPLES = (
    "sudo sockscope demo",
    "sudo sockscope demo fin-withheld --html report.html",
    "sudo sockscope demo fin-withheld --sound",
    "sockscope demo --list",
)


def complete_demo(incomplete: str) -> list[str]:
    """Fixture names for the shell."""
    from sockscope.fixture import slugs

    return [slug for slug in slugs() if slug.startswith(incomplete)]


def demo(
    written: Written,
    slug: Annotated[
        str, typer.Argument(metavar="[SLUG]", help="The fault to show.", autocompletion=complete_demo)
    ] = "close-wait-leak",
    list_all: Annotated[bool, typer.Option("--list", help="List the demos.")] = False,
    sound: Annotated[bool, typer.Option("--sound", help="Run the sound twin instead: nothing to find.")] = False,
    output: shared.OutputOption = None,
) -> int:
    """Start a faulty server and its clients on this machine, diagnose them, clean up."""
    from sockscope import fixture

    if list_all:
        from rich.console import Console

        from sockscope.cli.listing import print_groups

        lines = [(name, fixture.load(name).summary) for name in fixture.slugs()]
        print_groups([("", lines)], console=Console(highlight=False))
        return 0
    wanted = Output(**asdict(written), fail_on=shared.FailOn.never)
    wanted.check()
    loaded = fixture.load(slug)
    from sockscope.cli.watch import recording_folder
    from sockscope.pipeline.options import EngineChoice

    print(f"sockscope: demo {slug}: {loaded.summary}", file=sys.stderr)
    mode = loaded.modes[0]
    engine = loaded.engines[0] if len(loaded.engines) == 1 else EngineChoice.AUTO
    with recording_folder(output) as folder:
        fixture.rehearse(loaded, folder, program="sound" if sound else "faulty", mode=mode, engine=engine)
        from sockscope.pipeline.load import load_session

        return wanted.emit(load_session(folder))
