"""Runs the rules over a session: what each needs, in which order, and what one rule's bug may not spoil."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from sockscope.analysis.session import Session
from sockscope.findings.catalogue import catalogue, find
from sockscope.findings.contract import RuleModule
from sockscope.model.findings import Confidence, Consequence, Finding, Need, Rule, Severity, Skip
from sockscope.model.info import SessionInfo

_CONFIDENCE_ORDER = (Confidence.CERTAIN, Confidence.LIKELY, Confidence.POSSIBLE)


def run_rules(
    session: Session,
    select: Iterable[str] | None = None,
    ignore: Iterable[str] | None = None,
    *,
    modules: Sequence[RuleModule] | None = None,
) -> tuple[list[Finding], list[Skip], list[Rule]]:
    """Run every wanted rule.

    A rule that a wanted one yields to, or follows, runs too, unseen: the same connection gets the same diagnosis
    whatever was selected, so `--ignore fin-withheld` does not make its connections a close-wait-leak.

    Args:
        session: the joined session.
        select: slugs to run; None or empty for all.
        ignore: slugs to leave out.
        modules: the rules to choose from; None for the catalogue.

    Returns:
        Findings (worst first), what was skipped and why, and the rules that ran.

    Raises:
        UsageError: a slug names no rule.
    """
    known = {module.RULE.slug: module for module in (catalogue() if modules is None else modules)}
    chosen, unwanted = set(select or ()), set(ignore or ())
    for slug in sorted((chosen | unwanted) - known.keys()):
        find(slug)  # raises, and names the nearest
    wanted = (chosen or set(known)) - unwanted
    findings: list[Finding] = []
    skips: list[Skip] = []
    ran: list[Rule] = []
    reported: dict[str, set[int]] = {}
    faulty: dict[str, set[int]] = {}
    causes: list[Finding] = []
    consequences: dict[int, list[Consequence]] = {}
    for module in in_order(list(known.values()), wanted):
        rule = module.RULE
        before = [slug for slug in rule.yields_to if slug in reported]
        # What silenced a rule silences those that yield to it as well, but a hint only the rule that names it.
        above = set[int]().union(*(faulty[slug] for slug in before))
        explained = frozenset(above.union(*(reported[slug] for slug in before)))
        found, skipped = _run_one(module, session, explained)
        reported[rule.slug] = _connections(found, Severity.INFO)
        faulty[rule.slug] = _connections(found, Severity.WARNING) | above
        found = _without_consequences(found, rule, causes, consequences, seen=rule.slug in wanted)
        causes += found
        if rule.slug not in wanted:
            continue
        findings += found
        skips += skipped
        if found or not skipped:
            ran.append(rule)
    findings = [_with(finding, consequences.get(id(finding), ())) for finding in findings]
    findings.sort(key=_worst_first)
    return findings, sorted(skips, key=lambda skip: skip.rule), sorted(ran, key=lambda rule: rule.slug)


def _connections(found: Iterable[Finding], least: Severity) -> set[int]:
    return {connection for finding in found if finding.severity >= least for connection in finding.connections}


def _without_consequences(
    found: list[Finding], rule: Rule, causes: list[Finding], consequences: dict[int, list[Consequence]], *, seen: bool
) -> list[Finding]:
    """What has no cause among the findings so far; the others are noted under theirs, by its `id`."""
    left = []
    for finding in found:
        cause = next((one for one in causes if one.rule in rule.follows and one.tgid == finding.tgid), None)
        if cause is None or finding.own_cause or cause.severity < finding.severity:
            # A hint must not hide a fault.
            left.append(finding)
        elif seen:
            consequences.setdefault(id(cause), []).append(Consequence(rule=finding.rule, title=finding.title))
    return left


def _with(finding: Finding, consequences: Sequence[Consequence]) -> Finding:
    return replace(finding, consequences=tuple(consequences)) if consequences else finding


def _worst_first(finding: Finding) -> tuple[int, int, int, str, int]:
    certainty = _CONFIDENCE_ORDER.index(finding.confidence)
    return -finding.severity, certainty, -finding.count, finding.rule, finding.tgid


def in_order(modules: Sequence[RuleModule], wanted: set[str]) -> list[RuleModule]:
    """The wanted rules and those that they yield to or follow, each after all of these.

    Raises:
        ValueError: rules yield to (or follow) each other in a circle.
    """
    by_slug = {module.RULE.slug: module for module in modules}
    placed: dict[str, RuleModule] = {}
    entered: set[str] = set()

    def place(slug: str) -> None:
        if slug in placed or slug not in by_slug:
            return
        if slug in entered:
            raise ValueError(f"rules yield to each other: {slug}")
        entered.add(slug)
        for before in sorted(by_slug[slug].RULE.yields_to | by_slug[slug].RULE.follows):
            place(before)
        placed[slug] = by_slug[slug]

    for slug in sorted(wanted):
        place(slug)
    return list(placed.values())


def _run_one(module: RuleModule, session: Session, explained: frozenset[int]) -> tuple[list[Finding], list[Skip]]:
    rule = module.RULE
    reason = missing(rule, session.info)
    if reason:
        return [], [Skip(rule=rule.slug, reason=reason)]
    found: list[Finding] = []
    skipped: list[Skip] = []
    try:
        for result in module.check(session, explained):
            if isinstance(result, Skip):
                skipped.append(result)
            else:
                found.append(result)
    except Exception as error:  # noqa: BLE001 - one rule's bug must not cost the user the others' findings
        return [], [Skip(rule=rule.slug, reason=f"internal error: {type(error).__name__}: {error}")]
    return found, skipped


COARSE_NS = 1_000_000
"""Times coarser than this tell who came first, not how long anything took."""


def _lack_of_syscalls(info: SessionInfo, rule: Rule) -> str:
    if not info.syscalls.engine:
        return "no syscalls were recorded"
    filtered = [group for group in info.syscalls.missing_groups if group in rule.groups]
    if filtered:
        return f"the log holds no calls of {' and '.join(filtered)}: record it without a filter (strace -f, no -e)"
    if rule.times and not info.syscalls.resolution_ns:
        return "the log has no times: record it with strace -f -ttt -T"
    if rule.times and info.syscalls.resolution_ns > COARSE_NS:
        return f"the log's times are {info.syscalls.resolution_ns / 1e9:g} s coarse: record it with strace -f -ttt -T"
    if not rule.bears_loss and info.syscalls.lost_count:
        return f"{info.syscalls.lost_count} syscall events were lost, so what seems missing may only be unseen"
    return ""


def _lack_of_packets(info: SessionInfo, rule: Rule) -> str:
    if not info.packets.available:
        return "no packets were captured"
    if Need.SYSCALLS in rule.needs:
        if info.apart_ns is None:
            return "packets and calls have no connection in common, so they are not joined"
        if rule.times and info.apart_ns > COARSE_NS:
            return f"packets are laid beside the calls to ± {info.apart_ns / 1e9:.3g} s only"
    if not rule.bears_loss and info.packets.lost_count:
        return f"{info.packets.lost_count} packets were lost, so what seems missing may only be unseen"
    if not rule.bears_loss and info.packets.gap:
        return info.packets.gap
    return ""


def _lack_of_sockets(info: SessionInfo, rule: Rule) -> str:
    return "" if info.sockets.snapshot_count else "no socket snapshots were taken"


_LACKS: dict[Need, Callable[[SessionInfo, Rule], str]] = {
    Need.SYSCALLS: _lack_of_syscalls,
    Need.PACKETS: _lack_of_packets,
    Need.SOCKETS: _lack_of_sockets,
}


def missing(rule: Rule, info: SessionInfo) -> str:
    """Why the rule cannot judge this session; empty where it can."""
    return next((lack for need in Need if need in rule.needs and (lack := _LACKS[need](info, rule))), "")
