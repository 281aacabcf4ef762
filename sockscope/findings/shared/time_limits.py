"""Whether a program limits how long it waits: by its waits' own limits, timers, or SIGALRM."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.evidence import NS_PER_S, program
from sockscope.model.calls import READS, Call
from sockscope.model.events import EventFlag
from sockscope.model.ids import NO_ID
from sockscope.model.seed import FileKind

_MILLISECONDS = {Call.poll: 2, Call.epoll_wait: 3, Call.epoll_pwait: 3}
"""Which argument is the limit; negative: none."""
_POINTERS = {Call.ppoll: 2, Call.select: 4, Call.pselect6: 4, Call.epoll_pwait2: 3}
"""Which argument points to the limit; NULL: none."""

_READS = np.array(sorted(READS), np.uint16)
_SIGALRM = 14
_BLOCKS_NS = NS_PER_S

Mask = npt.NDArray[np.bool_]


class Limits:
    """Answers for one rule's run over a session; it must not change meanwhile."""

    def __init__(self, session: Session) -> None:
        self._session = session
        limited, self._endless = _waits(session)
        tgids = set(np.unique(session.events.records["tgid"][limited]).tolist())
        tgids |= _timers(session) | _alarms(session)
        self._programs = frozenset(program(session, tgid) for tgid in tgids)

    def of_program(self, name: str) -> bool:
        """Whether any process of the program limits any wait of its own, as far as was seen."""
        return name in self._programs

    def endless(self, tgid: int, connection: int) -> int:
        """The process's last wait without a limit, or its last long read of that connection; -1 where none was seen."""
        session = self._session
        records = session.events.records
        waits = self._endless[records["tgid"][self._endless] == tgid]
        if len(waits):
            return int(waits[-1])
        events = session.events_of(connection)
        rows = records[events]
        until = np.where(rows["exit_ns"] < 0, session.info.ended_ns, rows["exit_ns"])
        since = np.where(rows["enter_ns"] < 0, session.info.started_ns, rows["enter_ns"])
        reads = events[np.isin(rows["call"], _READS) & (until - since >= _BLOCKS_NS)]
        return int(reads[-1]) if len(reads) else NO_ID


def _waits(session: Session) -> tuple[Ids, Ids]:
    """Waits with a limit above 0, and those without one, in order. What only looks (0) is neither."""
    records = session.events.records
    limited = np.zeros(len(records), np.bool_)
    endless = np.zeros(len(records), np.bool_)
    for call, at in _MILLISECONDS.items():
        rows = _plain(session, call)
        limit = records["args"][rows, at].astype(np.int64).astype(np.int32)
        limited[rows[limit > 0]] = True
        endless[rows[limit < 0]] = True
    for call, at in _POINTERS.items():
        rows = _plain(session, call)
        pointed = records["args"][rows, at] != 0
        limited[rows[pointed]] = True
        endless[rows[~pointed]] = True
    in_order = np.flatnonzero(endless)
    in_order = in_order[np.argsort(session.effective_ns[in_order], kind="stable")]
    return np.flatnonzero(limited), in_order


def _plain(session: Session, call: Call) -> Ids:
    """Every such call that did not go through an io_uring."""
    rows = np.flatnonzero(session.event_call == call)
    found: Ids = rows[(session.events.records["flags"][rows] & EventFlag.URING) == 0]
    return found


def _timers(session: Session) -> set[int]:
    """Processes with a timerfd: made while watched, or before."""
    records = session.events.records
    made = records["tgid"][session.event_call == Call.timerfd_create]
    found = session.seed.fds["tgid"][session.seed.fds["kind"] == FileKind.TIMERFD]
    return set(np.unique(np.concatenate([made, found])).tolist())


def _alarms(session: Session) -> set[int]:
    """Processes that got SIGALRM, or have a handler for it."""
    records = session.events.records
    signals = np.flatnonzero(session.event_call == Call.task_signal)
    got = records["tgid"][signals[records["args"][signals, 0] == _SIGALRM]]
    # The last sample of each: what a process caught before it executed its program says nothing.
    facts = session.facts.processes[::-1]
    facts = facts[np.unique(facts["tgid"], return_index=True)[1]]
    caught = facts["tgid"][(facts["sig_caught"] & np.uint64(1 << (_SIGALRM - 1))) != 0]
    return set(np.unique(np.concatenate([got, caught])).tolist())
