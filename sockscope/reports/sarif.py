"""The findings as SARIF 2.1.0, which code scanning, IDEs and CI dashboards read.

A fault of a running server has no line of source: its place is the program (a logical location, and the
executable's file), its evidence a code flow in order of time.
Source: OASIS "Static Analysis Results Interchange Format (SARIF) Version 2.1.0".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from sockscope import __version__
from sockscope.model.descriptors import Process
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.info import SessionInfo
from sockscope.model.report import Report
from sockscope.reports import format as words
from sockscope.reports.escape import safe
from sockscope.reports.json_value import Json

SCHEMA_URI = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}
RANKS = {Confidence.CERTAIN: 90.0, Confidence.LIKELY: 60.0, Confidence.POSSIBLE: 30.0}


def render_sarif(report: Report) -> str:
    """One SARIF log of one run, pure ASCII, newline at its end."""
    rules = _rules(report)
    places = {rule.slug: at for at, rule in enumerate(rules)}
    processes = {process.tgid: process for process in report.processes}
    info = report.info
    run: Json = {
        "tool": {"driver": {"name": "sockscope", "version": __version__, "rules": [_rule(rule) for rule in rules]}},
        "invocations": [
            {
                "executionSuccessful": True,
                "startTimeUtc": _utc(info.started_ns, info),
                "endTimeUtc": _utc(info.ended_ns, info),
                "toolExecutionNotifications": [_notification(note) for note in info.notes],
                "toolConfigurationNotifications": [_skipped(skip) for skip in report.skipped],
            }
        ],
        "columnKind": "unicodeCodePoints",
        "results": [_result(finding, places, processes, info) for finding in report.findings],
        "properties": {"coverage": {line.name: safe(line.text) for line in words.coverage_lines(report)}},
    }
    return json.dumps({"$schema": SCHEMA_URI, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _rules(report: Report) -> list[Rule]:
    return sorted(report.rules, key=lambda rule: rule.slug)


def _rule(rule: Rule) -> Json:
    return {
        "id": rule.slug,
        "shortDescription": {"text": rule.summary},
        "help": {"text": f"sockscope rules {rule.slug}"},
        "defaultConfiguration": {"level": LEVELS[rule.severity]},
    }


def _result(
    finding: Finding, places: Mapping[str, int], processes: Mapping[int, Process], info: SessionInfo
) -> dict[str, Json]:
    process = processes.get(finding.tgid)
    name = safe(words.process_name(finding.comm, finding.tgid))
    place: dict[str, Json] = {
        "logicalLocations": [
            {
                "name": name,
                "kind": "process",
                "fullyQualifiedName": name if finding.fd is None else f"{name} fd {finding.fd}",
            }
        ]
    }
    exe = process.exe if process is not None else ""
    if exe.startswith("/"):
        place["physicalLocation"] = {"artifactLocation": {"uri": f"file://{quote(exe, errors='surrogateescape')}"}}
    text = f"{finding.title}. {finding.explanation}\nMend: {finding.remedy}"
    result: dict[str, Json] = {
        "ruleId": finding.rule,
        "level": LEVELS[finding.severity],
        "rank": RANKS[finding.confidence],
        "message": {"text": "\n".join(map(safe, text.split("\n")))},
        "locations": [place],
        "occurrenceCount": max(1, finding.count),
        "partialFingerprints": {"faultInProgram/v1": _fingerprint(finding, exe)},
        "properties": {
            "confidence": finding.confidence.value,
            "tgid": finding.tgid,
            "fd": finding.fd,
            "connections": list(finding.connections),
            "consequences": [each.rule for each in finding.consequences],
        },
    }
    if finding.rule in places:
        result["ruleIndex"] = places[finding.rule]
    if finding.evidence:
        steps = [_step(fact, info) for fact in sorted(finding.evidence, key=lambda fact: fact.time_ns)]
        result["codeFlows"] = [{"threadFlows": [{"locations": steps}]}]
    return result


def _fingerprint(finding: Finding, exe: str) -> str:
    """The same fault of the same program has the same one in the next run, whatever its pid and numbers."""
    return hashlib.sha256(f"{finding.rule}\0{exe or finding.comm}".encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _step(fact: Evidence, info: SessionInfo) -> Json:
    return {
        "location": {"message": {"text": f"{fact.source.value}: {safe(fact.text)}"}},
        "executionTimeUtc": _utc(fact.time_ns, info),
    }


def _skipped(skip: Skip) -> Json:
    return {
        "level": "note",
        "message": {"text": f"skipped: {safe(skip.reason)}"},
        "associatedRule": {"id": skip.rule},
        "descriptor": {"id": "skipped"},
    }


def _notification(note: str) -> Json:
    return {"level": "note", "message": {"text": safe(note)}, "descriptor": {"id": "note"}}


def _utc(time_ns: int, info: SessionInfo) -> str:
    moment = datetime.fromtimestamp(0, UTC) + timedelta(
        microseconds=(info.started_realtime_ns + time_ns - info.started_ns) // 1000
    )
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
