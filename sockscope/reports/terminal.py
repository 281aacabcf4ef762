"""The diagnosis on a terminal: findings first, worst first; then what was watched and how well."""

from __future__ import annotations

from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

from sockscope.model.findings import Finding, Severity
from sockscope.model.report import Report
from sockscope.reports import format as words
from sockscope.reports.escape import safe
from sockscope.reports.terminal_summary import summary
from sockscope.reports.terminal_timeline import ends_of, story, whole
from sockscope.reports.trimmed import Trimmed

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.INFO: "bold cyan"}
INDENT = 2
CLOSING_SLUGS = 5


def print_report(report: Report, *, console: Console, verbose: bool = False) -> None:
    """Print the whole report.

    What came from the target is printed as text only: no control sequence, no markup. Lines that do
    not fit are folded, never cut.

    Args:
        console: where to; its width, colours and encoding are kept.
        verbose: whole timelines, all evidence and up to 100 connections instead of the telling ones.
    """
    ascii_only = _ascii_only(console)
    _line(console, _heading(report), ascii_only)
    for finding in report.findings:
        _line(console, Text(), ascii_only)
        _finding(console, report, finding, verbose=verbose, ascii_only=ascii_only)
    _line(console, Text(), ascii_only)
    for part in summary(report, console=console, verbose=verbose, ascii_only=ascii_only):
        console.print(part if part == "" else Trimmed(part))
    _line(console, _closing(report), ascii_only)


def print_timeline(report: Report, connection: int, *, console: Console, limit: int) -> None:
    """Print the whole timeline of one connection, under what is known of it.

    Args:
        connection: its id, the row in `report.connections`.
        console: where to; its width, colours and encoding are kept.
        limit: items; of a longer timeline the middle is left out, and one line says how much.
    """
    ascii_only = _ascii_only(console)
    row = report.connections[connection]
    one = row.connection
    heading = Text(ends_of(row, ascii_only=ascii_only), "bold")
    heading.append(f"  {one.protocol.value}  {words.state_name(one)}", "yellow" if row.finding_indexes else "")
    _line(console, heading, ascii_only)
    for name, text in words.connection_lines(row, report):
        line = Text(f"{name}: ", "dim").append(safe(text), "")
        _line(console, line, ascii_only, INDENT)
    for index in row.finding_indexes:
        finding = report.findings[index]
        title = Text(finding.severity.label.upper(), STYLES[finding.severity])
        title.append(f"  {finding.rule}  ", "bold cyan").append(safe(finding.title), "bold")
        _line(console, title, ascii_only, INDENT)
    console.print()
    nothing = True
    for block in whole(report, row, limit=limit, console=console, ascii_only=ascii_only):
        console.print(block, no_wrap=True, overflow="ignore", crop=False)
        nothing = False
    if nothing:
        _line(console, Text("nothing was recorded of it but this", "dim"), ascii_only, INDENT)


def _ascii_only(console: Console) -> bool:
    return not console.encoding.lower().replace("_", "-").startswith("utf")


def _line(console: Console, text: Text, ascii_only: bool, indent: int = 0) -> None:
    plain = _plain_ascii(text) if ascii_only else text
    part = Padding(plain, (0, 0, 0, indent), expand=False) if indent else plain
    console.print(Trimmed(part), overflow="fold")


def _plain_ascii(text: Text) -> Text:
    """The same text for a terminal without UTF-8."""
    return Text(words.to_ascii(text.plain), style=text.style)


def _heading(report: Report) -> Text:
    text = Text()
    text.append(safe(words.target_words(report.info)), "bold")
    text.append(f"  watched for {words.watched(report.info)}", "dim")
    if report.findings:
        text.append(f"  {words.severity_counts(report.findings)}", STYLES[report.findings[0].severity])
    return text


def _closing(report: Report) -> Text:
    """The verdict again, for whoever reads from the end of a long report: what to look for above."""
    style = STYLES[report.findings[0].severity] if report.findings else "bold green"
    text = Text(words.verdict(report), style)
    slugs = list(dict.fromkeys(finding.rule for finding in report.findings))
    if slugs:
        more = f" and {len(slugs) - CLOSING_SLUGS} more" if len(slugs) > CLOSING_SLUGS else ""
        text.append(f"  {', '.join(slugs[:CLOSING_SLUGS])}{more}", "not bold cyan")
    return text


def _finding(console: Console, report: Report, finding: Finding, *, verbose: bool, ascii_only: bool) -> None:
    title = Text()
    title.append(finding.severity.label.upper(), STYLES[finding.severity])
    title.append("  ")
    title.append(finding.rule, "bold cyan")
    title.append("  ")
    title.append(safe(finding.title), "bold")
    _line(console, title, ascii_only)
    _line(console, _who(finding), ascii_only, INDENT)
    console.print()
    for paragraph in finding.explanation.split("\n"):
        _line(console, Text(safe(paragraph)), ascii_only, INDENT)
    if finding.holder is not None:
        holder = Text("Held by: ", "bold")
        holder.append(safe(words.process_name(finding.holder.comm, finding.holder.tgid)), "magenta")
        holder.append(f" fd {finding.holder.fd}")
        _line(console, holder, ascii_only, INDENT)
    for each in finding.consequences:
        follows = Text("Follows from it: ", "bold").append(f"{each.rule}  ", "cyan").append(safe(each.title), "")
        _line(console, follows, ascii_only, INDENT)
    mend = Text("Mend: ", "bold green")
    mend.append(safe(finding.remedy))
    _line(console, mend, ascii_only, INDENT)
    _line(console, Text(f"More: sockscope rules {finding.rule}", "dim"), ascii_only, INDENT)
    told = story(report, finding, console=console, width=console.width - INDENT, verbose=verbose, ascii_only=ascii_only)
    if told is not None:
        console.print()
        console.print(Trimmed(Padding(Group(*told), (0, 0, 0, INDENT), expand=False)))


def _who(finding: Finding) -> Text:
    text = Text()
    text.append(safe(words.process_name(finding.comm, finding.tgid)), "magenta")
    if finding.fd is not None:
        text.append(f" fd {finding.fd}")
    if finding.connections:
        text.append(f" · {words.counted(len(finding.connections), 'connection')}")
    if finding.count != len(finding.connections) and finding.count > 1:
        text.append(f" · {words.number(finding.count)} times")
    text.append(f" · {finding.confidence.value}", "dim")
    return text
