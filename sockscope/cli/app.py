"""The commands, registered. Each command's file imports the rooms only when it runs: `--help` is quick."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated

import typer

from sockscope import __version__
from sockscope.cli import analyze, attach, demo, diagnose, doctor, report, rules, run, snapshot
from sockscope.cli.groups import with_groups
from sockscope.cli.stdout import reader_may_leave

app = typer.Typer(
    name="sockscope",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sockscope {__version__}")
        raise typer.Exit


def _examples(lines: Sequence[str]) -> str:
    """Below the options, a line each."""
    # click: what follows a line with this alone keeps its line breaks.
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


@app.callback(
    epilog=_examples(
        ("sudo sockscope diagnose --port 8080", "sudo sockscope attach $(pgrep -o nginx)", "sudo sockscope demo")
    ),
)
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Says what is wrong with a server's sockets, with the evidence and the mend.

    Follows a running server (every child, every passed descriptor), records its socket syscalls,
    captures its packets, snapshots the kernel's socket states, and joins the three per connection.

    Exit codes: 0 nothing at or above --fail-on, 1 findings, 2 usage, 3 cannot observe, 4 damaged input.
    """


def _register(command: Callable[..., int | None], examples: Sequence[str], *, options_first: bool = False) -> None:
    """A command's exit code is what its function returns.

    Args:
        options_first: what follows the first plain word belongs to the command that it names.
    """
    grouped = with_groups(command)

    @wraps(grouped)
    def exiting(*arguments: object, **options: object) -> None:
        code: int | None = 0
        with reader_may_leave():
            code = grouped(*arguments, **options)
        raise typer.Exit(code or 0)

    settings = {"allow_interspersed_args": False} if options_first else {}
    app.command(command.__name__, epilog=_examples(examples), context_settings=settings)(exiting)


_register(attach.attach, attach.EXAMPLES)
_register(run.run, run.EXAMPLES, options_first=True)
_register(diagnose.diagnose, diagnose.EXAMPLES)
_register(snapshot.snapshot, snapshot.EXAMPLES)
_register(analyze.analyze, analyze.EXAMPLES)
_register(report.report, report.EXAMPLES)
_register(rules.rules, rules.EXAMPLES)
_register(doctor.doctor, doctor.EXAMPLES)
_register(demo.demo, demo.EXAMPLES)
