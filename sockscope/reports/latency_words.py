"""What reports say of a server's latency: words and lines that the terminal and the page share."""

from __future__ import annotations

from dataclasses import dataclass

from sockscope.model.latency import FEWEST_FOR_PERCENTILES, PLACES, PhaseLatency, Place, ServerLatency
from sockscope.reports import format as words

SHOWN_SERVERS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRow:
    """A line of the table.

    Attributes:
        place: who kept the client waiting; None of the whole.
        name, count: the phase, and how many exchanges show it.
        percentiles: p50, p95, p99 and the maximum; empty where there are too few for that.
        each: then all of them: `31 µs, 40 µs`, or, beside percentiles of other phases, `31 µs to 40 µs`; else empty.
    """

    place: Place | None
    name: str
    count: str
    percentiles: tuple[str, ...]
    each: str


def rows(server: ServerLatency) -> list[PhaseRow]:
    """A line a phase that ever took time, the whole last."""
    shown = (*(phase for phase in server.phases if phase.max_ns), server.whole)
    ranged = any(one.count >= FEWEST_FOR_PERCENTILES for one in shown)
    return [_row(one, ranged=ranged) for one in shown]


def _row(one: PhaseLatency, *, ranged: bool) -> PhaseRow:
    each = [words.duration(ns) for ns in one.each_ns]
    least_and_most = dict.fromkeys(words.duration(ns) for ns in (min(one.each_ns), max(one.each_ns))) if each else ()
    few = one.count < FEWEST_FOR_PERCENTILES
    times = () if few else (one.p50_ns, one.p95_ns, one.p99_ns, one.max_ns)
    return PhaseRow(
        place=PLACES[one.phase] if one.phase is not None else None,
        name=one.phase.value if one.phase is not None else "whole",
        count=words.number(one.count),
        percentiles=tuple(words.duration(ns) for ns in times),
        each=" to ".join(least_and_most) if ranged else ", ".join(each),
    )


def counts(server: ServerLatency) -> str:
    """`1,204 requests answered on 35 connections`."""
    asked = words.counted(server.exchange_count, "request")
    return f"{asked} answered on {words.counted(server.connection_count, 'connection')}"


def reservation(server: ServerLatency) -> str:
    """What the numbers leave out; empty where every exchange was found on the wire too."""
    if server.wire_count == server.exchange_count:
        return ""
    why = (
        "for the others no packets were seen from their connection's beginning on, so only the program's part is known"
    )
    if server.wire_count:
        return (
            f"{words.number(server.wire_count)} of {words.number(server.exchange_count)} were found on the wire; {why}"
        )
    return "Only the program's part is known: no packets of these connections were seen from their beginning on."


def slowest(server: ServerLatency) -> str:
    """`GET /slow (78 B → 1.2 kB), connection 12, request 3, by python3[812]: 1.5 s`."""
    one = server.slowest
    sizes = f"{words.byte_count(one.read_bytes)} → {words.byte_count(one.written_bytes)}"
    what = f"{one.request} ({sizes})" if one.request else sizes
    turn = f"connection {one.connection}" + (f", request {one.number + 1} on it" if one.number else "")
    return f"{what}, {turn}, by {words.process_name(one.comm, one.tgid)}: {words.duration(one.duration_ns)}"


def closing(server: ServerLatency) -> str:
    """When the server ended the connection of the slowest exchange; empty where it did not, or not after it."""
    one = server.slowest
    if one.fin_ns is None or not one.phases:
        return ""
    after = one.fin_ns - (one.phases[-1].start_ns + one.phases[-1].duration_ns)
    return f"FIN {words.duration(after)} later" if after >= 0 else ""
