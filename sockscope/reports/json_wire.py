"""What a connection went through on the wire, in JSON."""

from __future__ import annotations

from sockscope.model.wire_facts import WireFacts, WireSide
from sockscope.reports.json_value import Json


def wire_document(facts: WireFacts | None, words: str) -> Json:
    """Null where the connection has no packets. All `_ns` are durations."""
    if facts is None:
        return None
    return {
        "words": words,
        "handshake_rtt_ns": facts.handshake_ns,
        "one_sided": facts.one_sided,
        "began_before": facts.began_before,
        "port_reused": facts.port_reused,
        "simultaneous_open": facts.simultaneous_open,
        "simultaneous_close": facts.simultaneous_close,
        "reset_by": facts.reset_by or None,
        "half_close_ns": facts.half_close_ns,
        "local": _side(facts.local),
        "peer": _side(facts.peer),
    }


def _side(side: WireSide) -> Json:
    trip = side.rtt_ns
    return {
        **side.counts,
        "longest_stall_ns": side.stall_ns or None,
        "rtt_ns": None if trip is None else {"min": trip[0], "median": trip[1], "max": trip[2]},
    }
