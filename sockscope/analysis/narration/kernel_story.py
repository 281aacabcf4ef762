"""What the kernel told of connections: as values, and as words."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from sockscope.analysis.session import Ids, Session
from sockscope.model.calls import Call
from sockscope.model.kernel import KernelCoverage, KernelStory, Reset, StateChange
from sockscope.model.tcp import TcpState

_STATES: Final = {int(state): state for state in TcpState}
_LONGEST_SNAPSHOT_NS: Final = 1_000_000_000
_RESETS: Final = (Call.tcp_reset_sent, Call.tcp_reset_received)


def state_of(number: int) -> TcpState:
    """A kernel state number; UNKNOWN for one of a newer kernel."""
    return _STATES.get(number, TcpState.UNKNOWN)


_S = TcpState
_CHANGES: Final = {
    (_S.CLOSE, _S.LISTEN): "takes connections from now on",
    (_S.LISTEN, _S.CLOSE): "takes no connections any more",
    (_S.CLOSE, _S.SYN_SENT): "our SYN went out",
    (_S.SYN_SENT, _S.ESTABLISHED): "the peer agreed: connected",
    (_S.SYN_SENT, _S.CLOSE): "the connect came to nothing",
    (_S.LISTEN, _S.SYN_RECV): "a client asks to connect",
    (_S.SYN_RECV, _S.ESTABLISHED): "the handshake is complete: it waits to be accepted",
    (_S.ESTABLISHED, _S.CLOSE_WAIT): "the peer's FIN arrived",
    (_S.CLOSE_WAIT, _S.LAST_ACK): "our FIN went out",
    (_S.LAST_ACK, _S.CLOSE): "the peer acknowledged our FIN: it is over",
    (_S.ESTABLISHED, _S.FIN_WAIT1): "our FIN went out",
    (_S.SYN_RECV, _S.FIN_WAIT1): "our FIN went out",
    (_S.FIN_WAIT1, _S.FIN_WAIT2): "the peer acknowledged our FIN",
    (_S.FIN_WAIT1, _S.CLOSING): "the peer's FIN arrived before it acknowledged ours",
    (_S.FIN_WAIT1, _S.TIME_WAIT): "the peer's FIN arrived and acknowledged ours",
    (_S.FIN_WAIT2, _S.TIME_WAIT): "the peer's FIN arrived",
    (_S.FIN_WAIT1, _S.CLOSE): "closed here: the kernel finishes on its own",
    (_S.FIN_WAIT2, _S.CLOSE): "closed here: the kernel finishes on its own (TIME_WAIT, or FIN_WAIT2 with a time limit)",
    (_S.CLOSING, _S.CLOSE): "closed here: the kernel finishes on its own (TIME_WAIT)",
    (_S.SYN_RECV, _S.CLOSE): "given up before it was accepted",
    (_S.ESTABLISHED, _S.CLOSE): "over at once, without a FIN of ours",
    (_S.CLOSE_WAIT, _S.CLOSE): "over at once, without a FIN of ours",
}


def change_words(before: TcpState, after: TcpState) -> str:
    """What a state change means: `the peer's FIN arrived`; empty where the names say it all.

    Source: RFC 9293 section 3.3.2; net/ipv4/tcp.c tcp_set_state(), net/ipv4/tcp_minisocks.c tcp_time_wait().
    """
    return _CHANGES.get((before, after), "")


def event_words(call: int, before: int, after: int) -> tuple[str, str, str]:
    """One kernel event: its name, the line that says what happened, and what it means in plain words."""
    state = state_of(before)
    if call == Call.sock_state:
        new = state_of(after)
        return new.name, f"kernel: {state.name} → {new.name}", change_words(state, new)
    if call == Call.tcp_retransmit:
        return "retransmit", f"kernel: a segment was sent again (in {state.name})", "no acknowledgement came in time"
    if call == Call.tcp_reset_sent:
        return "RST", f"kernel: RST went out (in {state.name})", "the connection is cut off from this side"
    return "RST", f"kernel: RST came in (in {state.name})", "the peer cut the connection off"


class Told:
    """What the kernel had told of some connections by any moment.

    Args:
        session: the joined session.
        connections: their ids, shape (k,); `place` is an index into them.
    """

    def __init__(self, session: Session, connections: Ids) -> None:
        self._sockets = session.sockets.records
        place, rows = session.kernel_of_each(connections)
        is_change = session.kernel["call"][rows] == Call.sock_state
        self._place = place[is_change]
        self.changes: Ids = rows[is_change]
        """Rows of `session.kernel` that are state changes of theirs: connection after connection, in time."""
        changes = session.kernel[self.changes]
        self._new: npt.NDArray[np.uint8] = changes["new"]
        self._times = np.unique(changes["time_ns"])
        self._keys = self._key(self._place, changes["time_ns"])

    def _key(self, place: Ids, times_ns: Ids) -> Ids:
        """Numbers in order of place, then time; between two changes all times are one."""
        return place * (len(self._times) + 1) + np.searchsorted(self._times, times_ns, "right")

    def _count(self, place: Ids, times_ns: Ids) -> Ids:
        """How many of all `changes` come before the end of these moments: shape (n,)."""
        found: Ids = np.searchsorted(self._keys, self._key(place, times_ns), "right")
        return found

    def at(self, place: Ids, times_ns: Ids) -> npt.NDArray[np.uint8]:
        """The state told by each of these times: shape (n,), TcpState, UNKNOWN before the first."""
        states = np.append(np.uint8(TcpState.UNKNOWN), self._new)
        count = self._count(place, times_ns)
        return np.where(count > np.searchsorted(self._place, place), states[count], np.uint8(TcpState.UNKNOWN))

    def stamped_early(self, place: Ids, rows: Ids) -> npt.NDArray[np.bool_]:
        """Which socket rows show what was told only after their time: shape (n,).

        A snapshot carries the time at which it began; on a busy machine it may take a while to come by a socket.
        """
        states, times_ns = self._sockets["state"][rows], self._sockets["time_ns"][rows].astype(np.int64)
        low, high = self._count(place, times_ns), self._count(place, times_ns + _LONGEST_SNAPSHOT_NS)
        early: npt.NDArray[np.bool_] = (self.at(place, times_ns) != states) & (high > low)
        for at in np.flatnonzero(early).tolist():
            early[at] = states[at] in self._new[low[at] : high[at]]
        return early


class Stories:
    """Kernel stories of a session's connections, made when asked for (a `model.kernel.KernelStories`)."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, connection: int) -> KernelStory:
        session = self._session
        rows = session.kernel_of(connection)
        if not len(rows):
            return KernelStory()
        told = session.kernel[["time_ns", "call", "old", "new"]][rows].tolist()
        return KernelStory(
            state_changes=tuple(
                StateChange(time_ns=time_ns, before=state_of(old), after=state_of(new))
                for time_ns, call, old, new in told
                if call == Call.sock_state
            ),
            retransmit_count=sum(call == Call.tcp_retransmit for _, call, _, _ in told),
            resets=tuple(
                Reset(time_ns=time_ns, sent=call == Call.tcp_reset_sent)
                for time_ns, call, _, _ in told
                if call in _RESETS
            ),
        )


def coverage(session: Session) -> KernelCoverage:
    """How much the kernel told in this session."""
    call = session.kernel["call"]
    return KernelCoverage(
        state_change_count=int((call == Call.sock_state).sum()),
        retransmit_count=int((call == Call.tcp_retransmit).sum()),
        reset_count=int(np.isin(call, _RESETS).sum()),
        unassigned_count=int((session.kernel_connection < 0).sum()),
    )
