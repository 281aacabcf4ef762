"""`sockscope analyze`: offline, from a recording, strace logs, captures, socket listings, or any mix."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sockscope.cli.output import Output
from sockscope.cli.progress import Line
from sockscope.errors import UsageError

EXAMPLES = (
    "sockscope analyze rec/",
    "sockscope analyze --strace s.log --pcap c.pcap --ss ss.txt --html report.html",
    "sockscope analyze --strace log.*          (what strace -ff wrote)",
    "sockscope analyze --pcap customer.pcapng.gz --port 8080 --markdown ticket.md",
)


def analyze(
    written: Output,
    recording: Annotated[
        Path | None, typer.Argument(metavar="[RECORDING]", help="A folder that --output made.")
    ] = None,
    strace: Annotated[
        list[Path] | None,
        typer.Option("--strace", metavar="FILE…", help="What strace wrote; strace -f -ttt -T -yy -s 256 says most."),
    ] = None,
    pcap: Annotated[
        list[Path] | None, typer.Option("--pcap", metavar="FILE…", help="pcap or pcapng, also compressed.")
    ] = None,
    ss: Annotated[
        list[Path] | None,
        typer.Option("--ss", metavar="FILE…", help="What ss -tanpeimo or netstat -anp printed, once or often."),
    ] = None,
    port: Annotated[
        list[int] | None, typer.Option("--port", "-p", metavar="N", help="The server's port; may be repeated.")
    ] = None,
) -> int:
    """Analyze what was recorded earlier, by whatever tool. Rules whose evidence is not there say so.

    The pieces need no common clock: how they lie to each other is told from the data, and how surely. What is named
    beside a recording takes the place of its own.
    """
    for number in port or ():
        if not 1 <= number <= 65535:
            raise UsageError(f"port {number} is out of range", help_text="ports go from 1 to 65535")
    written.check()
    from sockscope.pipeline.load import Evidence, load_session

    evidence = Evidence(
        recording=recording, straces=strace or (), captures=pcap or (), listings=ss or (), ports=port or ()
    )
    line = Line()
    try:
        session = load_session(evidence, progress=lambda names, done, whole: line.show(f"reading {names}", done, whole))
    finally:
        line.clear()
    return written.emit(session)
