"""Facts of /proc as rules and reports ask for them: one process's rows, its signals, the PID 1 above it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sockscope.analysis.session import Ids, Session
from sockscope.model.calls import Call

SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGTERM, SIGCHLD = 1, 2, 3, 9, 15, 17
ENDING = (SIGHUP, SIGINT, SIGQUIT, SIGTERM)
"""Signals by which programs are asked to end."""

Rows = npt.NDArray[np.void]


def rows_of(session: Session, tgid: int) -> Rows:
    """All rows of a process, in time."""
    facts = session.facts.processes
    found: Rows = facts[facts["tgid"] == tgid]
    return found


def has_signal(mask: int, number: int) -> bool:
    """Whether a signal is in a set as /proc prints it."""
    return bool(int(mask) >> (number - 1) & 1)


def handles(row: np.void, number: int) -> bool:
    """By a handler, or blocked: then it waits for a signalfd or sigwait to fetch it."""
    return has_signal(row["sig_caught"], number) or has_signal(row["sig_blocked"], number)


def is_init(row: np.void) -> bool:
    """PID 1 of a pid namespace that is not the host's: signals without a handler do not reach it."""
    return int(row["init_tgid"]) == int(row["tgid"])


def comm_of(session: Session, tgid: int) -> str:
    """Its name, also where it is not traced."""
    process = session.processes.get(tgid)
    if process is not None:
        return process.comm
    rows = rows_of(session, tgid)
    return rows[-1]["comm"].tobytes().rstrip(b"\0").decode("utf-8", "backslashreplace") if len(rows) else "?"


def numbers(session: Session, tgid: int) -> str:
    """`4711`, or `4711 (7 in its pid namespace)`."""
    rows = rows_of(session, tgid)
    inner = int(rows[-1]["ns_tgid"]) if len(rows) else tgid
    return str(tgid) if inner in (0, tgid) else f"{tgid} ({inner} in its pid namespace)"


def named(session: Session, tgid: int) -> str:
    """`sh[811]`, traced or not; with the number it knows itself by, where that is another."""
    rows = rows_of(session, tgid)
    inner = int(rows[-1]["ns_tgid"]) if len(rows) else tgid
    seen_there = f", {inner} in its pid namespace" if inner not in (0, tgid) else ""
    return f"{comm_of(session, tgid)}[{tgid}{seen_there}]"


def signals_to(session: Session, numbers: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Every such signal that came to a target process: (event, tgid, time), in time."""
    records = session.events.records
    events: Ids = np.flatnonzero(session.event_call == Call.task_signal)
    events = events[np.isin(records["args"][events, 0], numbers)]
    events = events[np.argsort(session.effective_ns[events], kind="stable")]
    for event in events.tolist():
        yield event, int(records["tgid"][event]), int(session.effective_ns[event])
