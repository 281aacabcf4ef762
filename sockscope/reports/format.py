"""Numbers, names and sentences that more than one report uses. Plain text: escaping is the report's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sockscope.model.connections import Connection, Protocol, Role
from sockscope.model.descriptors import Process
from sockscope.model.findings import Evidence, Finding, Severity, Source
from sockscope.model.info import Alignment, SessionInfo
from sockscope.model.kernel import KernelCoverage
from sockscope.model.report import ConnectionRow, Lane, Report, TimelineItem
from sockscope.model.signals import exit_words
from sockscope.model.tcp import TcpState

SOURCE_LANES = {Source.SYSCALL: Lane.SYSCALL, Source.PACKET: Lane.WIRE, Source.SOCKET: Lane.KERNEL}
"""Where the item of an evidence's `ref` is found. Source.PROC is on no lane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the coverage.

    Attributes:
        name: what it is about (`syscalls`).
        text: what is known.
        doubt: something was lost or missing, so the report may be incomplete.
    """

    name: str
    text: str
    doubt: bool = False


def number(value: int) -> str:
    """`10,000`."""
    return f"{value:,}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """`1 connection`, `4 connections`."""
    return f"{number(count)} {noun if count == 1 else plural or noun + 's'}"


def ordinal(count: int) -> str:
    """`1st`, `12th`, `193rd`."""
    teen = count % 100 in (11, 12, 13)
    return f"{number(count)}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(count % 10, 'th')}"


def duration(ns: int) -> str:
    """`740 ns`, `52.1 µs`, `500 ms`, `10.0 s`, `12 min 5 s`."""
    if ns < 1_000:
        return f"{ns} ns"
    for limit, scale, unit in ((1_000_000, 1_000, "µs"), (1_000_000_000, 1_000_000, "ms")):
        if ns < limit:
            return f"{_three_digits(ns / scale)} {unit}"
    seconds = ns / 1e9
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def byte_count(count: int) -> str:
    """`615 B`, `1.2 kB`, `3.4 MB` (powers of 1000)."""
    if count < 1000:
        return f"{count} B"
    power = min(3, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.1f} {' kMG'[power]}B"


def since_start(time_ns: int, info: SessionInfo) -> str:
    """Seconds since the session began, to the microsecond: `+1.234567`, `-0.000120`."""
    return f"{(time_ns - info.started_ns) / 1e9:+.6f}"


def process_name(comm: str, tgid: int) -> str:
    """`nginx[812]`."""
    return f"{comm}[{tgid}]" if tgid >= 0 else "process not known"


def holder_name(comm: str, tgid: int, fd: int) -> str:
    """`nginx[812] fd 7`; netstat names no descriptor (-1)."""
    return process_name(comm, tgid) + (f" fd {fd}" if fd >= 0 else "")


def state_name(connection: Connection) -> str:
    """The state as people look for it; what is no longer there says so."""
    if connection.gone_ns is not None:
        return "closed"
    if connection.state is TcpState.UNKNOWN:
        return "unknown"
    return connection.state.name


def address(value: object) -> str:
    return "*" if value is None else str(value)


def unnamed_pair(connection: Connection) -> bool:
    """A unix socket of which neither end has a name: a channel between processes (socketpair)."""
    # Asked of every connection: most are answered by this.
    if connection.protocol is not Protocol.UNIX:
        return False
    return not any(end is not None and end.packed for end in (connection.local, connection.peer))


def far_end(row: ConnectionRow) -> str:
    """The other end: an address; of a unix connection who it is, as far as that is known."""
    if row.connection.protocol is not Protocol.UNIX:
        return address(row.connection.peer)
    named = next((end for end in (row.connection.local, row.connection.peer) if end is not None and end.packed), None)
    return row.far or ("unix pair" if named is None else f"unix {named}")


def idle_pair(row: ConnectionRow) -> bool:
    """Such a channel that carried nothing and is in no finding: nobody looks for it."""
    connection = row.connection
    return unnamed_pair(connection) and not connection.read_bytes + connection.written_bytes and not row.finding_indexes


def arrow(role: Role, *, ascii_only: bool = False) -> str:
    """Who opened it: the arrow goes from the one that connected."""
    if ascii_only:
        return {Role.SERVER: "<-", Role.CLIENT: "->"}.get(role, "--")
    return {Role.SERVER: "←", Role.CLIENT: "→"}.get(role, "–")


def target_words(info: SessionInfo) -> str:
    """What was watched, in one phrase: `./server --fast · port 80 · pid 812`."""
    target = info.target
    parts = []
    if target.command:
        parts.append(" ".join(target.command))
    if target.ports:
        parts.append(("port " if len(target.ports) == 1 else "ports ") + ", ".join(map(str, target.ports)))
    if target.pids and not target.command:
        shown = ", ".join(map(str, target.pids[:4]))
        more = len(target.pids) - 4
        parts.append(("pid " if len(target.pids) == 1 else "pids ") + shown + (f" and {more} more" if more > 0 else ""))
    parts += [" + ".join(target.files)] if target.files else []
    return " · ".join(parts) or "nothing"


def watched(info: SessionInfo) -> str:
    return duration(max(0, info.ended_ns - info.started_ns))


def severity_counts(findings: Sequence[Finding]) -> str:
    """`1 error, 2 warnings`, worst first; empty without findings."""
    words = {Severity.ERROR: ("error", ""), Severity.WARNING: ("warning", ""), Severity.INFO: ("info", "info")}
    parts = []
    for severity in sorted(Severity, reverse=True):
        count = sum(f.severity is severity for f in findings)
        if count:
            parts.append(counted(count, *words[severity]))
    return ", ".join(parts)


def connection_lines(row: ConnectionRow, report: Report) -> list[tuple[str, str]]:
    """What is known of one connection beside its ends and state: (`held by`, `nginx[812] fd 7`), …"""
    connection = row.connection
    comms = {process.tgid: process.comm for process in report.processes}
    holders = [holder_name(comms.get(tgid, "?"), tgid, fd) for tgid, fd in connection.owners]
    held = "nobody: no process has accepted it" if connection.never_accepted else ", ".join(holders)
    touched = ", ".join(process_name(comms.get(tgid, "?"), tgid) for tgid in row.processes)
    seen = f"{since_start(connection.first_ns, report.info)} to {since_start(connection.last_ns, report.info)}"
    moved = f"{byte_count(connection.read_bytes)} read, {byte_count(connection.written_bytes)} written"
    counts = f"{counted(row.event_count, 'event')}, {counted(row.packet_count, 'packet')}"
    lines = [("held by", held or "nobody"), ("used by", touched), ("seen", f"{seen}: {moved}; {counts}")]
    if connection.state_ns is not None and connection.gone_ns is None:
        queues = f"receive {byte_count(connection.recv_q)}, send {byte_count(connection.send_q)}"
        lines.append(("queues", f"{queues}, as of {since_start(connection.state_ns, report.info)}"))
    lines.append(("did", row.summary))
    lines.append(("story", report.stories(connection.id)))
    return [(name, text) for name, text in lines if text]


def verdict(report: Report) -> str:
    """The closing line: `3 findings: 1 error, 2 warnings`, or that there are none and what that rests on."""
    if report.findings:
        return f"{counted(len(report.findings), 'finding')}: {severity_counts(report.findings)}"
    seen = counted(len(report.connections), "connection")
    rules = f"{counted(len(report.rules), 'rule')} ran"
    if report.skipped:
        rules += f", {number(len({s.rule for s in report.skipped}))} could not"
    return f"No findings. {seen} watched for {watched(report.info)}; {rules}."


def coverage_lines(report: Report) -> list[Line]:
    """What the verdict rests on: what was seen, what was lost, what was not there."""
    info = report.info
    calls, packets = info.syscalls, info.packets
    lines = []
    if calls.engine:
        text = f"{counted(calls.event_count, 'event')} by {calls.engine}"
        text += ", tracer and target on one CPU" if calls.pinned else ""
        causes = ", ".join(f"{number(n)} {cause}" for cause, n in calls.lost.items() if n)
        text += f"; {number(calls.lost_count)} lost ({causes})" if causes else "; none lost"
        lines.append(Line(name="syscalls", text=text, doubt=bool(causes)))
    else:
        lines.append(Line(name="syscalls", text="not recorded", doubt=True))
    if packets.available:
        where = f" on {', '.join(packets.interfaces)}" if packets.interfaces else ""
        text = f"{number(packets.seen_count)} seen{where}"
        if packets.lost_count:
            text += f"; {number(packets.lost_count)} lost"
        elif calls.engine:
            # A capture made elsewhere does not say it.
            text += "; none lost"
        lines.append(Line(name="packets", text=text, doubt=packets.lost_count > 0))
    else:
        lines.append(Line(name="packets", text="not captured", doubt=True))
    taken = info.sockets.snapshot_count
    if taken:
        lines.append(Line(name="sockets", text=f"{counted(taken, 'snapshot')} of the kernel's states"))
    elif report.kernel.count:
        lines.append(Line(name="sockets", text="no snapshots"))
    else:
        lines.append(Line(name="sockets", text="no snapshots", doubt=True))
    if report.kernel.count:
        lines.append(Line(name="kernel", text=_told(report.kernel)))
    lines.extend(_aligned(one) for one in info.alignments)
    if packets.available and calls.engine and not info.alignments:
        skew = abs(info.clock_skew_ns)
        text = f"syscalls and packets {f'are {duration(skew)} apart' if skew else 'agree'}"
        lines.append(Line(name="clocks", text=text, doubt=skew > 1_000_000))
    if sum(report.unassigned.values()):
        text = ", ".join(f"{number(n)} {reason}" for reason, n in report.unassigned.items() if n)
        lines.append(Line(name="unassigned", text=f"events of no connection: {text}"))
    if not info.complete:
        lines.append(Line(name="recording", text="cut off before its end; this is what was written", doubt=True))
    lines.extend(Line(name="note", text=note, doubt=True) for note in info.notes)
    return lines


def _aligned(alignment: Alignment) -> Line:
    """`c.pcap laid beside the calls: +3600.000 212 s ± 38 µs, from 312 handshakes and 4,104 transfers`."""
    beside = alignment.beside or ("the calls" if alignment.packets else "the rest")
    if alignment.uncertainty_ns < 0:
        moved = f"moved by {_seconds(alignment.offset_ns)}" if alignment.offset_ns else "taken as it stands"
        text = f"{alignment.source} {moved}: {alignment.basis}"
        return Line(name="clocks", text=text, doubt=True)
    within = duration(alignment.uncertainty_ns)
    if alignment.offset_ns:
        text = f"{alignment.source} laid beside {beside}: {_seconds(alignment.offset_ns)} ± {within}"
    else:
        text = f"{alignment.source} and {beside} share one clock, to ± {within}"
    return Line(name="clocks", text=f"{text}, from {alignment.basis}", doubt=alignment.uncertainty_ns > 1_000_000)


def _seconds(ns: int) -> str:
    """`+3600.000 212 s`: to the microsecond, as far as anybody compares."""
    micros = (abs(ns) + 500) // 1_000
    return f"{'-' if ns < 0 else '+'}{micros // 1_000_000}.{micros // 1000 % 1000:03} {micros % 1000:03} s"


def _told(kernel: KernelCoverage) -> str:
    parts = [counted(kernel.state_change_count, "state change")]
    parts += [counted(kernel.retransmit_count, "retransmission")] if kernel.retransmit_count else []
    parts += [counted(kernel.reset_count, "reset")] if kernel.reset_count else []
    others = f"; {number(kernel.unassigned_count)} of other sockets" if kernel.unassigned_count else ""
    return f"told {', '.join(parts)} as they happened{others}"


def skip_groups(report: Report) -> list[tuple[str, list[str]]]:
    """(reason, slugs) for rules that could not judge, rules of one reason together, in first-seen order."""
    groups: dict[str, list[str]] = {}
    for skip in report.skipped:
        slugs = groups.setdefault(skip.reason, [])
        if skip.rule not in slugs:
            slugs.append(skip.rule)
    return list(groups.items())


def ended_words(process: Process) -> str:
    """How a process ended: `exit 1`, `killed by SIGKILL`; empty while it lives."""
    return "" if process.exited_ns is None else exit_words(process.exit_status)


def evidence_marks(items: Sequence[TimelineItem], evidence: Sequence[Evidence]) -> dict[int, int]:
    """Which items of a timeline the evidence points at: item index → evidence index, the primary first served."""
    by_ref = {(item.lane, item.ref): index for index, item in enumerate(items) if item.ref >= 0}
    marks: dict[int, int] = {}
    for number_, fact in enumerate(evidence):
        lane = SOURCE_LANES.get(fact.source)
        found = by_ref.get((lane, fact.ref)) if lane is not None and fact.ref >= 0 else None
        if found is not None:
            marks.setdefault(found, number_)
    return marks


_ACTOR = re.compile(r"(?s)(.{1,40}?\[\d+(?:/\d+)?\]) (.+)")


def actor_and_text(fact: Evidence) -> tuple[str, str]:
    """Evidence that is on no timeline item, parted: (`nginx[812]`, `close(5) = 0`)."""
    if fact.source is Source.PROC:
        return "/proc", fact.text
    found = _ACTOR.fullmatch(fact.text) if fact.source is Source.SYSCALL else None
    return (found[1], found[2]) if found else ("", fact.text)


def meaning(item: TimelineItem, fact: Evidence | None) -> str:
    """An item's words, led by what the rule adds to it: `close(5) = 0 (meant to end it)` adds `meant to end it`."""
    if fact is None or not item.text or item.text not in fact.text:
        return item.words
    added = fact.text.split(item.text, 1)[1].strip().removeprefix("(").removesuffix(")")
    if added in item.words:
        return item.words
    return "; ".join(part for part in (added, item.words) if part)


def to_ascii(text: str) -> str:
    """For a terminal without UTF-8: our own signs in their ASCII spelling, all else by backslashes."""
    for sign, plain in (
        ("→", "->"),
        ("←", "<-"),
        ("·", "-"),
        ("–", "-"),
        ("…", "..."),
        ("×", "x"),
        ("µ", "u"),
        ("⋮", ":"),
        ("—", "--"),
    ):
        text = text.replace(sign, plain)
    return text.encode("ascii", "backslashreplace").decode("ascii")
