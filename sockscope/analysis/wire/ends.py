"""How a flow ended, as far as its packets tell."""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from sockscope.analysis.wire.columns import NEVER
from sockscope.analysis.wire.flow_table import FlowColumns
from sockscope.model.connections import Flow


class FlowEnd(StrEnum):
    """The end of a TCP connection on the wire. Sides are the flow's: 0 opened it."""

    UNANSWERED = "never answered"  # SYN without SYN-ACK or RST
    REFUSED = "refused"  # the SYN got a RST
    OPEN = "still open"  # no FIN, no RST
    SIDE_0_LACKS_FIN = "side 0 never sent FIN"  # side 1 did
    SIDE_1_LACKS_FIN = "side 1 never sent FIN"
    BOTH_CLOSED = "both closed"  # a RST after both FINs changes nothing
    RESET_BY_SIDE_0 = "reset by side 0"
    RESET_BY_SIDE_1 = "reset by side 1"


def flow_end(flow: Flow) -> FlowEnd:
    """How the flow ended.

    A reset that came before both sides had sent FIN is the end, whoever had closed by then (RFC 9293
    section 3.10.7). Where both sides sent RST, the first counts.
    """
    fin_0, fin_1 = flow.fin_ns
    rst_0, rst_1 = flow.rst_ns
    if fin_0 is not None and fin_1 is not None:
        both_closed = max(fin_0, fin_1)
        if min(_or_never(rst_0), _or_never(rst_1)) >= both_closed:
            return FlowEnd.BOTH_CLOSED
    if rst_0 is not None or rst_1 is not None:
        if flow.syn_ns is not None and flow.synack_ns is None and flow.established_ns is None and rst_1 is not None:
            return FlowEnd.REFUSED
        return FlowEnd.RESET_BY_SIDE_0 if _or_never(rst_0) <= _or_never(rst_1) else FlowEnd.RESET_BY_SIDE_1
    if fin_0 is not None:
        return FlowEnd.SIDE_1_LACKS_FIN
    if fin_1 is not None:
        return FlowEnd.SIDE_0_LACKS_FIN
    if flow.syn_ns is not None and flow.synack_ns is None and flow.packet_count[1] == 0:
        return FlowEnd.UNANSWERED
    return FlowEnd.OPEN


def flow_ends(flows: FlowColumns) -> list[FlowEnd]:
    """`flow_end` of all, column by column."""
    (fin_0, fin_1), (rst_0, rst_1) = flows.fin_ns.T, flows.rst_ns.T
    reset = np.minimum(rst_0, rst_1)
    syn, unanswered = flows.syn_ns != NEVER, flows.synack_ns == NEVER
    refused = syn & unanswered & (flows.established_ns == NEVER) & (rst_1 != NEVER)
    # The first that holds is the end.
    cases = (
        (FlowEnd.BOTH_CLOSED, (fin_0 != NEVER) & (fin_1 != NEVER) & (reset >= np.maximum(fin_0, fin_1))),
        (FlowEnd.REFUSED, refused),
        (FlowEnd.RESET_BY_SIDE_0, (reset != NEVER) & (rst_0 <= rst_1)),
        (FlowEnd.RESET_BY_SIDE_1, reset != NEVER),
        (FlowEnd.SIDE_1_LACKS_FIN, fin_0 != NEVER),
        (FlowEnd.SIDE_0_LACKS_FIN, fin_1 != NEVER),
        (FlowEnd.UNANSWERED, syn & unanswered & (flows.packet_count[:, 1] == 0)),
    )
    which = np.select([case for _, case in cases], list(range(len(cases))), len(cases))
    names = (*(name for name, _ in cases), FlowEnd.OPEN)
    return [names[number] for number in which.tolist()]


def side_lacking_fin(flow: Flow) -> int | None:
    """The side that never sent FIN though the other did (and nobody reset); None for every other end."""
    end = flow_end(flow)
    if end == FlowEnd.SIDE_0_LACKS_FIN:
        return 0
    return 1 if end == FlowEnd.SIDE_1_LACKS_FIN else None


def describe_end(flow: Flow, local_side: int, *, since_ns: int = 0) -> str:
    """The end in words, from the local side: `local never sent FIN (peer's FIN at +2.504 s)`.

    Args:
        flow: the flow.
        local_side: which side is the target's.
        since_ns: what the times are counted from, CLOCK_MONOTONIC.
    """
    end = flow_end(flow)
    sides = ("local", "peer") if local_side == 0 else ("peer", "local")
    lacking = side_lacking_fin(flow)
    if lacking is not None:
        return f"{sides[lacking]} never sent FIN ({sides[1 - lacking]}'s FIN {_at(flow.fin_ns[1 - lacking], since_ns)})"
    if end in (FlowEnd.RESET_BY_SIDE_0, FlowEnd.RESET_BY_SIDE_1):
        by = 0 if end == FlowEnd.RESET_BY_SIDE_0 else 1
        return f"reset by {sides[by]} ({_at(flow.rst_ns[by], since_ns)})"
    if end == FlowEnd.REFUSED:
        return f"refused by {sides[1]}"
    if end == FlowEnd.BOTH_CLOSED:
        first = 0 if (flow.fin_ns[0] or 0) <= (flow.fin_ns[1] or 0) else 1
        return f"both closed, {sides[first]} first ({_at(flow.fin_ns[first], since_ns)})"
    if end == FlowEnd.UNANSWERED:
        return f"{sides[0]}'s SYN was never answered"
    return str(end)


def _or_never(time_ns: int | None) -> int:
    return 2**63 - 1 if time_ns is None else time_ns


def _at(time_ns: int | None, since_ns: int) -> str:
    return "unseen" if time_ns is None else f"at +{(time_ns - since_ns) / 1e9:.3f} s"
