"""What the kernel told of connections, and what its socket tables showed, as timelines have it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache

import numpy as np

from sockscope.analysis.narration.kernel_story import Told, event_words, state_of
from sockscope.analysis.session import Ids, Session
from sockscope.model.calls import Call
from sockscope.model.columns import picked
from sockscope.model.connections import Connection
from sockscope.model.kernel import KERNEL_REF
from sockscope.model.report import Lane, TimelineRow
from sockscope.model.tcp import TcpState

_STATE_WORDS = {
    TcpState.CLOSE_WAIT: "the peer has ended its half, the program has not closed",
    TcpState.FIN_WAIT2: "the program has closed, the peer has not",
    TcpState.LAST_ACK: "both have closed, the last acknowledgement is due",
    TcpState.TIME_WAIT: "closed; the port is kept for stray segments",
    TcpState.SYN_RECV: "the handshake is not complete",
}


def telling_samples(session: Session, connections: Ids, told: Told) -> tuple[Ids, Ids]:
    """Socket rows that show a state which is new and not told by the kernel, or in CLOSE_WAIT another receive queue.

    Returns:
        The place in `connections` of each, and the rows, both shape (n,).
    """
    place, rows = session.samples_of_each(connections)
    fresh = ~told.stamped_early(place, rows)
    place, rows = place[fresh], rows[fresh]
    table = picked(session.sockets.records, rows)
    state, recv_q = table["state"], table["recv_q"]
    waits = state == TcpState.CLOSE_WAIT
    telling = np.ones(len(rows), np.bool_)
    telling[1:] = (place[1:] != place[:-1]) | (state[1:] != state[:-1]) | (waits[1:] & (recv_q[1:] != recv_q[:-1]))
    telling &= (told.at(place, table["time_ns"].astype(np.int64)) != state) | waits
    return place[telling], rows[telling]


def untold_ends(connections: Sequence[Connection], told: Told) -> tuple[Ids, Ids]:
    """Those whose end nothing else tells, neither their close, where no snapshot ever showed them, nor the kernel.

    Returns:
        The place in `connections` of each, and when it was gone, both shape (n,).
    """
    gone = [
        (place, one.gone_ns, one.state is TcpState.TIME_WAIT)
        for place, one in enumerate(connections)
        if one.gone_ns is not None and one.state is not TcpState.UNKNOWN
    ]
    place, times_ns, kept = np.array(gone, np.int64).reshape(-1, 3).T
    untold = (told.at(place, times_ns) != TcpState.CLOSE) | (kept != 0)
    return place[untold], times_ns[untold]


def sample_rows(session: Session, rows: Ids) -> Iterator[TimelineRow]:
    """Socket rows, one an item."""
    table = picked(session.sockets.records, rows)
    owned = (table["inode"] != 0) | (table["state"] == TcpState.TIME_WAIT)
    columns = (table["time_ns"], table["state"], table["recv_q"], table["send_q"], owned, rows)
    for time_ns, number, recv_q, send_q, has_owner, row in zip(*(each.tolist() for each in columns), strict=True):
        name, text, words = _sample(number, recv_q, send_q, has_owner)
        yield time_ns, 0, Lane.KERNEL, "--", name, text, words, row, False, False, False


@lru_cache(1 << 12)
def _sample(number: int, recv_q: int, send_q: int, owned: bool) -> tuple[str, str, str]:
    """Name, text and words."""
    state = state_of(number)
    owner = "" if owned else ", owned by no process"
    return state.name, f"{state.name} recv-q {recv_q} send-q {send_q}{owner}", _STATE_WORDS.get(state, "")


def kernel_rows(session: Session, rows: Ids) -> Iterator[TimelineRow]:
    """Rows of `session.kernel`, one an item."""
    table = picked(session.kernel, rows)
    columns = (table["time_ns"], table["event"], table["call"], table["old"], table["new"])
    for time_ns, event, call, old, new in zip(*(each.tolist() for each in columns), strict=True):
        actor, name, text, words, is_mark = _told(call, old, new)
        yield time_ns, 0, Lane.KERNEL, actor, name, text, words, KERNEL_REF + event, False, True, is_mark


@cache
def _told(call: int, old: int, new: int) -> tuple[str, str, str, str, bool]:
    """Actor, name, text, words, and whether it is a mark."""
    actor = "->" if call in (Call.tcp_reset_sent, Call.tcp_retransmit) else "--"
    name, text, words = event_words(call, old, new)
    return "<-" if call == Call.tcp_reset_received else actor, name, text, words, call != Call.sock_state


def gone_rows(times_ns: Iterable[int]) -> Iterator[TimelineRow]:
    """The ends that `untold_ends` found."""
    for time_ns in times_ns:
        yield time_ns, 0, Lane.KERNEL, "--", "gone", "no longer in the kernel's tables", "", -1, False, False, False
