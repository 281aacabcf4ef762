"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sockscope.pipeline.options import EngineChoice


class FailOn(StrEnum):
    info = "info"
    warning = "warning"
    error = "error"
    never = "never"


def complete_slug(incomplete: str) -> list[str]:
    """Rule slugs for the shell, also after a comma."""
    from sockscope.findings.catalogue import catalogue

    done, _, last = incomplete.rpartition(",")
    head = f"{done}," if done else ""
    return [head + rule.RULE.slug for rule in catalogue() if rule.RULE.slug.startswith(last)]


_WATCH = "How to watch"
_OUT = "What to make of it"

DurationOption = Annotated[
    float | None,
    typer.Option("--duration", "-d", min=0.1, metavar="SECONDS", help="How long to watch.", rich_help_panel=_WATCH),
]
EngineOption = Annotated[
    EngineChoice,
    typer.Option(
        "--engine",
        help="How syscalls are traced; auto: by bpf where it loads (nothing is stopped), else by ptrace.",
        rich_help_panel=_WATCH,
    ),
]
PayloadOption = Annotated[
    int,
    typer.Option(
        "--payload",
        min=0,
        max=4096,
        metavar="BYTES",
        help="How much of each read and write to keep; 0: none.",
        rich_help_panel=_WATCH,
    ),
]
NoPinOption = Annotated[
    bool,
    typer.Option(
        "--no-pin",
        help="ptrace: leave the target's CPU affinity alone (tracing then costs it about four times more).",
        rich_help_panel=_WATCH,
    ),
]
NoRedactOption = Annotated[
    bool, typer.Option("--no-redact", help="Keep what looks like credentials.", rich_help_panel=_WATCH)
]
NoPacketsOption = Annotated[bool, typer.Option("--no-packets", help="Capture no packets.", rich_help_panel=_WATCH)]
NoSocketsOption = Annotated[
    bool, typer.Option("--no-sockets", help="Sample no kernel socket states.", rich_help_panel=_WATCH)
]
KeepOption = Annotated[
    str | None,
    typer.Option(
        "--keep",
        metavar="TIME",
        help="Flight recorder: hold only the last so long (60s, 5m) in memory; a finding (--fail-on), SIGUSR1 and the"
        " end write it into a folder of its own in --output.",
        rich_help_panel=_WATCH,
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Keep the recording there.", rich_help_panel=_OUT),
]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write the HTML report.", rich_help_panel=_OUT)
]
JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE|-", help="Write JSON (sockscope/1); - for stdout.", rich_help_panel=_OUT),
]
PerfettoOption = Annotated[
    Path | None,
    typer.Option("--perfetto", metavar="FILE", help="Write a trace for ui.perfetto.dev.", rich_help_panel=_OUT),
]
PcapngOption = Annotated[
    Path | None,
    typer.Option(
        "--pcapng",
        metavar="FILE",
        help="Write the packets with process, descriptor, syscall and findings as comments.",
        rich_help_panel=_OUT,
    ),
]
ParquetOption = Annotated[
    Path | None,
    typer.Option("--parquet", metavar="DIR", help="Write every table as a Parquet file.", rich_help_panel=_OUT),
]
SarifOption = Annotated[
    Path | None, typer.Option("--sarif", metavar="FILE", help="Write the findings as SARIF.", rich_help_panel=_OUT)
]
MarkdownOption = Annotated[
    Path | None,
    typer.Option(
        "--markdown", metavar="FILE", help="Write the findings as Markdown, for a ticket.", rich_help_panel=_OUT
    ),
]
SelectOption = Annotated[
    str,
    typer.Option(
        "--select", metavar="SLUG,…", help="Only these rules.", autocompletion=complete_slug, rich_help_panel=_OUT
    ),
]
IgnoreOption = Annotated[
    str,
    typer.Option(
        "--ignore", metavar="SLUG,…", help="Not these rules.", autocompletion=complete_slug, rich_help_panel=_OUT
    ),
]
FailOnOption = Annotated[FailOn, typer.Option("--fail-on", help="Exit 1 from this severity on.", rich_help_panel=_OUT)]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Every connection, every piece of evidence.", rich_help_panel=_OUT)
]
