"""One connection wakes every worker, and all but one find nothing.

What it reports:
    Several processes or threads wait for the same listener. A connection wakes many of them, one accepts it, and
    the others get EAGAIN: again and again, wake-ups for nothing.

Why it matters:
    Each wake-up in vain costs a context switch, an accept and another wait, and pushes aside who has work to do. The
    cost grows with the number of workers, and with each connection that comes. The server stays correct, and
    sound servers are built so (gunicorn's workers all select): the finding is an interesting fact, and a warning only
    where it costs a measurable share of a CPU: a thousand vain wake-ups a second and more, of more than two workers a
    connection.

Evidence:
    Wake-ups (a poll, select or epoll_wait that returned) after which accept was tried and failed with EAGAIN, with
    no connection accepted in the same wake-up, while another thread had taken one from the same listener.

Example:
    `epoll_wait(5) = 1` in six workers at once; worker[3]: `accept4(3) = 7`; the other five:
    `accept4(3) = -1 EAGAIN`.

Mend:
    Register the listener with EPOLLEXCLUSIVE; or give each worker a listener of its own (SO_REUSEPORT: nginx
    `listen … reuseport`, gunicorn `--reuse-port`); or let one worker at a time wait for it (an accept mutex). A
    blocking accept without a wait before it wakes one process only.

False positives:
    EAGAIN at the end of an accept loop that took a connection belongs to a sound loop and is not counted, nor is one
    that no other's accept explains (a program that tries accept at every turn). 50 wake-ups in vain are needed, and
    a quarter of all. Two or three workers without EPOLLEXCLUSIVE show a small herd at low load, and stay an
    interesting fact: of the wake-ups at most two thirds can be in vain. So do more workers with few clients: what
    happens now and then costs nothing.

References:
    epoll_ctl(2) EPOLLEXCLUSIVE; socket(7) SO_REUSEPORT; fs/eventpoll.c ep_poll_callback.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from sockscope.analysis.replay.control import IS_WAIT, by_call
from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.accept_queue import ACCEPTS, EAGAIN
from sockscope.findings.shared.evidence import NS_PER_MS, NS_PER_S, from_event, kept, listed, plural, who
from sockscope.model.calls import EPOLL_WAITS, CallGroup
from sockscope.model.columns import rows_of
from sockscope.model.events import EventFlag
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip

RULE = Rule(
    slug="thundering-herd",
    severity=Severity.INFO,
    summary="a connection wakes several workers, and all but one find nothing to accept",
    groups=frozenset({CallGroup.NETWORK, CallGroup.WAITS}),
    bears_loss=True,
)

_IS_ACCEPT: Final = by_call(ACCEPTS)
_IS_EPOLL: Final = by_call(EPOLL_WAITS)
_LEAST: Final = 50
_LEAST_SHARE: Final = 0.25
_WARN_EACH: Final = 2.2
"""Wake-ups in vain a connection: more than two or three workers can cause."""
_WARN_RATE_PER_S: Final = 1000
"""At 10 to 20 µs each, a hundredth of a CPU and more."""
_SLACK_NS: Final = 20 * NS_PER_MS
"""A tracer stamps a wait's return later than the kernel looked at the listener for it."""
_EPOLLEXCLUSIVE: Final = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class _Herd:
    """Wake-ups for one listener, columns of shape (n,).

    Attributes:
        wait: the wait that returned. tid: its thread. last: the last accept after it.
        began_ns, ended_ns: the wait's return, and the last accept's.
        vain: nothing was accepted, and another thread accepted meanwhile.
        accepted: connections taken from the listener in all.
        taken: their accepts, in time.
    """

    listener: int
    wait: Ids
    tid: Ids
    last: Ids
    began_ns: Ids
    ended_ns: Ids
    vain: np.ndarray[tuple[int], np.dtype[np.bool_]]
    taken: Ids

    @property
    def vain_count(self) -> int:
        return int(self.vain.sum())


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a listener."""
    records = session.events.records
    accepts = rows_of(session.event_call, lambda calls: _IS_ACCEPT[calls])
    files = session.event_open_file[accepts]
    refused = (records["ret"][accepts] == -EAGAIN) & (files >= 0)
    for file, count in zip(*(column.tolist() for column in np.unique(files[refused], return_counts=True)), strict=True):
        if count < _LEAST:
            continue
        herd = _herd(session, file, accepts[files == file])
        if herd is None or herd.vain_count < _LEAST or herd.vain_count < _LEAST_SHARE * len(herd.wait):
            continue
        yield _finding(session, herd)


def _herd(session: Session, listener: int, accepts: Ids) -> _Herd | None:
    """The wake-ups after which somebody tried to accept from the listener."""
    records = session.events.records
    done = (records["flags"][accepts] & (EventFlag.ENTERED_ONLY | EventFlag.URING)) == 0
    accepts = accepts[done]
    tids = np.unique(records["tid"][accepts])
    if len(tids) < 2:
        return None
    order = session.order
    rows = order[(IS_WAIT[session.event_call] & np.isin(records["tid"], tids))[order]]
    both = np.concatenate([rows, accepts])
    both = both[np.lexsort((records["exit_ns"][both], records["tid"][both]))]
    tid = records["tid"][both]
    is_wait = IS_WAIT[records["call"][both]]
    latest = np.maximum.accumulate(np.where(is_wait, np.arange(len(both)), -1))
    tries = np.flatnonzero(~is_wait & (latest >= 0))
    tries = tries[(tid[latest[tries]] == tid[tries]) & (records["ret"][both[latest[tries]]] > 0)]
    if not len(tries):
        return None
    wakes, first = np.unique(latest[tries], return_index=True)
    got = np.add.reduceat((records["ret"][both[tries]] >= 0).astype(np.int64), first)
    last = both[tries[np.append(first[1:], len(tries)) - 1]]
    taken = accepts[records["ret"][accepts] >= 0]
    taken = taken[np.argsort(records["exit_ns"][taken], kind="stable")]
    wait = both[wakes]
    began, ended = records["exit_ns"][wait].astype(np.int64), records["exit_ns"][last].astype(np.int64)
    return _Herd(
        listener=listener, wait=wait, tid=tid[wakes].astype(np.int64), last=last, began_ns=began, ended_ns=ended,
        vain=(got == 0) & _taken_by_another(session, taken, tid[wakes], began, ended), taken=taken,
    )  # fmt: skip


def _taken_by_another(
    session: Session, taken: Ids, tids: Ids, began: Ids, ended: Ids
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Of each wake-up, whether another thread's accept in its time explains that nothing was left."""
    records = session.events.records
    times, by = records["exit_ns"][taken].astype(np.int64), records["tid"][taken]

    def within(moments: Ids, rows: np.ndarray[tuple[int], np.dtype[np.bool_]] | slice) -> Ids:
        found: Ids = np.searchsorted(moments, ended[rows], "right") - np.searchsorted(moments, began[rows] - _SLACK_NS)
        return found

    count = within(times, slice(None))
    for tid in np.unique(tids).tolist():
        mine = tids == tid
        count[mine] -= within(times[by == tid], mine)
    return count > 0


def _finding(session: Session, herd: _Herd) -> Finding:
    records = session.events.records
    vain, woken, taken = herd.vain_count, len(herd.wait), len(herd.taken)
    each = vain / max(taken, 1)
    tgids = np.unique(records["tgid"][herd.wait]).tolist()
    tids = np.unique(herd.tid).tolist()
    workers = plural(len(tgids), "process", "processes") if len(tgids) > 1 else plural(len(tids), "thread")
    names = listed((who(session, tgid) for tgid in tgids), 4)
    tgid = tgids[0]
    fd = int(np.int64(records["args"][herd.last[records["tgid"][herd.last] == tgid][0], 0]).astype(np.int32))
    local = session.open_files[herd.listener].local
    where = f"the listener {local} (fd {fd})" if local is not None else f"the same listener (fd {fd})"
    rate = vain * NS_PER_S / max(int(herd.ended_ns.max() - herd.began_ns.min()), NS_PER_S // 10)
    severity = Severity.WARNING if each >= _WARN_EACH and rate >= _WARN_RATE_PER_S else Severity.INFO
    small = ""
    if each < _WARN_EACH:
        small = " At so few workers that costs little; it grows with each worker that is added."
    elif severity is Severity.INFO:
        small = f" At {rate:.0f} a second that costs little; it grows with the clients."
    return Finding(
        rule=RULE.slug,
        severity=severity,
        confidence=Confidence.CERTAIN,
        title=f"{vain} of {woken} wake-ups for new connections in vain: {workers} share a listener",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        count=vain,
        explanation=(
            f"{workers} ({names}) wait for {where}. Of {woken} wake-ups after which they tried to accept, {vain} got "
            f"EAGAIN and nothing else, because another had taken the connection: {each:.1f} wake-ups in vain for each "
            f"of {plural(taken, 'connection')}.{small}"
        ),
        remedy=_remedy(session, herd, fd),
        evidence=kept(_evidence(session, herd)),
    )


def _remedy(session: Session, herd: _Herd, fd: int) -> str:
    own = (
        "give each worker a listener of its own with SO_REUSEPORT before bind "
        "(nginx: listen … reuseport, gunicorn: --reuse-port)"
    )
    if not _IS_EPOLL[session.events.records["call"][herd.wait]].any():
        return f"poll and select wake everybody: {own}; or let one worker at a time wait for fd {fd} (a lock)."
    exclusive = any(one.open_file == herd.listener and one.events & _EPOLLEXCLUSIVE for one in session.interests)
    if exclusive or len(np.unique(session.events.records["tgid"][herd.wait])) == 1:
        return f"{own[0].upper()}{own[1:]}; or let only one worker at a time wait for fd {fd}."
    return f"Add fd {fd} to each worker's epoll with EPOLLIN | EPOLLEXCLUSIVE, which wakes one of them; or {own}."


def _evidence(session: Session, herd: _Herd) -> Iterator[Evidence]:
    """One connection and whom it woke: the one that woke most."""
    records = session.events.records
    vain = np.flatnonzero(herd.vain)
    vain = vain[np.argsort(herd.ended_ns[vain], kind="stable")]
    times = records["exit_ns"][herd.taken].astype(np.int64)
    nearest = np.maximum(np.searchsorted(times, herd.ended_ns[vain], "right") - 1, 0)
    found, counts = np.unique(nearest, return_counts=True)
    best = int(found[np.argmax(counts)])
    yield from_event(session, int(herd.taken[best]), "takes the connection")
    for row in vain[nearest == best][:3].tolist():
        yield from_event(session, int(herd.wait[row]), "woken for it too")
        yield from_event(session, int(herd.last[row]), "and finds nothing")
