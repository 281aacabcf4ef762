"""The diagnosis as Markdown for a ticket: what is wrong, since when we know, the evidence, the mend.

Source: GitHub Flavored Markdown (CommonMark), which GitLab, Gitea and Jira's importers read, too.
"""

from __future__ import annotations

import re

from sockscope.model.findings import Evidence, Finding
from sockscope.model.report import ConnectionRow, Report
from sockscope.reports import format as words
from sockscope.reports.escape import safe

CONNECTIONS_SHOWN = 5
EVIDENCE_SHOWN = 20

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$])")
_LINKS = re.compile(r"@(?=\w)|#(?=\d)|:(?=//)|\bwww(?=\.)")
"""Before these a forge finds somebody to tell, an issue, or an address, also in escaped text."""
_LIST = re.compile(r"^(\s*)([-+]|\d+[.)])(?=\s)")
_ZERO_WIDTH = "\u200b"


def render_markdown(report: Report) -> str:
    """The report as one document, newline at its end. What came from the target is text only: no markup, no mention."""
    parts = [f"## sockscope: {_text(words.verdict(report))}", "", _text(_target(report)), ""]
    for finding in report.findings:
        parts += [*_finding(finding, report), ""]
    parts += _rest(report)
    return "\n".join(parts).rstrip("\n") + "\n"


def _target(report: Report) -> str:
    info = report.info
    seen = words.counted(len(report.connections), "connection")
    return f"{words.target_words(info)}, watched for {words.watched(info)}: {seen}."


def _finding(finding: Finding, report: Report) -> list[str]:
    who = [words.process_name(finding.comm, finding.tgid)]
    who += [f"fd {finding.fd}"] if finding.fd is not None else []
    who += [words.counted(len(finding.connections), "connection")] if finding.connections else []
    who += [f"{words.number(finding.count)} times"] if finding.count not in (1, len(finding.connections)) else []
    lines = [
        f"### {finding.severity.label.upper()} `{finding.rule}`: {_text(finding.title)}",
        "",
        f"{_text(', '.join(who))}; {finding.confidence.value}",
        "",
        *(_text(paragraph) + "  " for paragraph in finding.explanation.split("\n")),
        "",
    ]
    if finding.holder is not None:
        holder = words.process_name(finding.holder.comm, finding.holder.tgid)
        lines += [f"**Held by:** {_text(holder)} fd {finding.holder.fd}", ""]
    lines += [f"**Follows from it:** `{each.rule}` {_text(each.title)}  " for each in finding.consequences]
    lines += [f"**Mend:** {_text(finding.remedy)}", ""]
    if finding.evidence:
        lines += _block([_fact(fact, report) for fact in finding.evidence[:EVIDENCE_SHOWN]])
        more = len(finding.evidence) - EVIDENCE_SHOWN
        lines += [f"and {words.number(more)} more", ""] if more > 0 else [""]
    shown = [report.connections[number] for number in finding.connections[:CONNECTIONS_SHOWN]]
    if shown:
        lines += ["| connection | state | did |", "|---|---|---|", *map(_row, shown)]
        more = len(finding.connections) - len(shown)
        lines += ["", f"and {words.counted(more, 'connection')} more"] if more > 0 else []
    return lines


def _fact(fact: Evidence, report: Report) -> str:
    return f"{words.since_start(fact.time_ns, report.info):>12}  {fact.source.value:<7}  {safe(fact.text)}"


def _row(row: ConnectionRow) -> str:
    one = row.connection
    ends = f"{one.id}: {words.address(one.local)} {words.arrow(one.role, ascii_only=True)} {words.address(one.peer)}"
    return f"| {_text(ends)} | {_text(words.state_name(one))} | {_text(row.summary)} |"


def _rest(report: Report) -> list[str]:
    lines = ["<details><summary>Coverage</summary>", ""]
    lines += [f"- {line.name}: {_text(line.text)}" for line in words.coverage_lines(report)]
    lines += [f"- {_text(line)}" for line in report.architecture]
    groups = words.skip_groups(report)
    if groups:
        lines += ["", "Rules that could not judge:", ""]
        lines += [f"- {_text(reason)}: {', '.join(f'`{slug}`' for slug in slugs)}" for reason, slugs in groups]
    return [*lines, "", "</details>"]


def _block(lines: list[str]) -> list[str]:
    """A code block that nothing within can end."""
    longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", *lines, fence]


def _text(text: str) -> str:
    """On one line, without markup: nobody is mentioned, no issue linked, no image loaded."""
    plain = _LINKS.sub(lambda found: found[0] + _ZERO_WIDTH, _MARKUP.sub(r"\\\1", safe(text)))
    return _LIST.sub(r"\1\\\2", plain).strip()
