"""The report as one HTML file that needs nothing else: no network, no server, no build.

What came from the target is text in the page and never script: Jinja escapes the markup, the tables
travel as JSON in a `<script type="application/json">` whose `<`, `>` and `&` are written as \\u escapes,
and the Content-Security-Policy lets run only the one script (and style) whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from sockscope import __version__
from sockscope.errors import UsageError
from sockscope.model.report import Report
from sockscope.reports import format as words
from sockscope.reports.escape import safe
from sockscope.reports.html_choice import choose
from sockscope.reports.html_data import PageData, page_data
from sockscope.reports.html_findings import cards
from sockscope.reports.html_group_table import group_table
from sockscope.reports.html_groups import VARIOUS
from sockscope.reports.html_latency import latency_cards
from sockscope.reports.stop_words import stop_cards

if TYPE_CHECKING:
    from jinja2 import Environment

SCRIPTS = ("util.js", "table.js", "scale.js", "lanes.js", "detail.js", "main.js")
"""In this order they make the page's script."""
STYLES = ("page.css", "connections.css", "groups.css", "timeline.css", "latency.css", "stops.css", "print.css")


def write_html(report: Report, path: Path) -> None:
    """Write the report to one file, replacing what is there.

    Raises:
        UsageError: the file cannot be written; says why.
    """
    text = render_html(report)
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}", help_text="name a file in a folder you may write to"
        ) from error


def render_html(report: Report) -> str:
    """The whole page."""
    script = "'use strict';\n(() => {\n" + "".join(_resource(name) for name in SCRIPTS) + "})();\n"
    style = "".join(_resource(name) for name in STYLES)
    choice = choose(report)
    data, kept_count = page_data(report, choice)
    info = report.info
    began = datetime.fromtimestamp(info.started_realtime_ns / 1e9, UTC)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            policy=_policy(script, style),
            # Ours, not the target's: the only strings that are not escaped.
            script=script,
            style=style,
            data=_inert(data),
            target=words.target_words(info),
            verdict=words.verdict(report),
            worst=report.findings[0].severity.label if report.findings else "none",
            began=began.strftime("%Y-%m-%d %H:%M:%S UTC"),
            watched=words.watched(info),
            info=info,
            version=__version__,
            cards=cards(report, choice.rows),
            connection_count=len(report.connections),
            shown_count=len(choice.rows),
            sums=None if choice.grouped is None else group_table(choice.grouped, choice.groups, report.findings),
            drawn=choice.drawn,
            various=VARIOUS,
            kept_count=kept_count,
            processes=[
                {
                    "name": words.process_name(process.comm, process.tgid),
                    "command": " ".join(process.cmdline) or process.exe,
                    "started": ""
                    if process.started_ns is None
                    else words.since_start(process.started_ns, info)[:-3] + " s",
                    "ended": words.ended_words(process),
                }
                for process in report.processes
            ],
            idle=report.idle_words,
            architecture=report.architecture,
            latency=latency_cards(report),
            stops=stop_cards(report, step_count=200),
            coverage=words.coverage_lines(report),
            skipped=words.skip_groups(report),
            number=words.number,
        )
    )


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("sockscope.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )


def _visible(value: object) -> object:
    """Control characters become visible text; markup is left to autoescape."""
    return safe(value) if type(value) is str else value


def _resource(name: str) -> str:
    return resources.files("sockscope.reports").joinpath("templates", name).read_text("utf-8")


def _policy(script: str, style: str) -> str:
    """Everything forbidden but this script and this style (CSP level 2 hashes)."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _inert(data: PageData) -> str:
    """JSON that cannot end its element or begin another (HTML Living Standard 4.12.1.3)."""
    timelines = ",".join(f'"{number}":{timeline}' for number, timeline in data["timelines"].items())
    written = {"timelines": f"{{{timelines}}}"}
    encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode
    text = ",".join(f'"{name}":{written.get(name) or encode(value)}' for name, value in data.items())
    text = f"{{{text}}}"
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
