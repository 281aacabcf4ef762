"""A stop in words: what the signal did, step by step and in sum."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sockscope.model.ids import NO_ID
from sockscope.model.report import Report
from sockscope.model.signals import exit_words, signal_name
from sockscope.model.stops import A_GROUP, Disposition, StopAct, StopAudit, StopClients, StopProcess, StopStep
from sockscope.reports import format as words

STEPS_SHOWN = 14
STOPS_SHOWN = 3
_WITH_NS = 1_000_000
"""Whoever ends so shortly after a child cannot have waited for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLine:
    """`+0.412 ms`, `python3[811]`, `closes its listener 127.0.0.1:80 (fd 3)`."""

    when: str
    who: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopCard:
    """One stop, as terminal and page show it.

    Attributes:
        lines: sentences, one fact each.
        more: how many steps are not among `steps`.
    """

    title: str
    lines: tuple[str, ...]
    steps: tuple[StepLine, ...]
    more: int


def stop_cards(report: Report, *, step_count: int = STEPS_SHOWN) -> list[StopCard]:
    """Every stop of the report, in order of time."""
    return [_card(stop, report, step_count) for stop in report.stops]


def sentences(stop: StopAudit) -> list[str]:
    """What there is to know of it, one fact a line."""
    return [
        line for line in (_disposition(stop), _sender(stop), _order(stop), *_children(stop), *_clients(stop)) if line
    ]


def _card(stop: StopAudit, report: Report, step_count: int) -> StopCard:
    shown = _most_telling(stop.steps, step_count)
    return StopCard(
        title=_title(stop, report),
        lines=tuple(sentences(stop)),
        steps=tuple(_step(stop, step) for step in shown),
        more=len(stop.steps) - len(shown) + stop.left_out_count,
    )


def _most_telling(steps: Sequence[StopStep], count: int) -> Sequence[StopStep]:
    """The beginning and the end: what comes between is more of the same."""
    return steps if len(steps) <= count else (*steps[: count - count // 2], *steps[-(count // 2) :])


def _name(process: StopProcess) -> str:
    """With the number that it knows itself by, where that is another."""
    inner = f" ({process.ns_tgid} in its pid namespace)" if process.ns_tgid != process.tgid else ""
    return words.process_name(process.comm, process.tgid) + inner


def _of(stop: StopAudit, tgid: int) -> str:
    comm = next((one.comm for one in stop.processes if one.tgid == tgid), "?")
    return words.process_name(comm, tgid)


def _listed(names: Sequence[str], limit: int = 6) -> str:
    shown = list(names[:limit])
    more = len(names) - len(shown)
    if more:
        return f"{', '.join(shown)} and {more} more"
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else "".join(shown)


def _title(stop: StopAudit, report: Report) -> str:
    at = words.since_start(stop.time_ns, report.info)[:-3]
    told = f"{signal_name(stop.signal)} to {_name(stop.process)} at {at} s"
    if stop.ended_ns is None:
        return f"{told}: still running {words.duration(report.info.ended_ns - stop.time_ns)} later"
    took = words.duration(stop.ended_ns - stop.time_ns)
    return f"{told}: {exit_words(stop.process.status)}, {took} later"


def _disposition(stop: StopAudit) -> str:
    name = signal_name(stop.signal)
    return {
        Disposition.UNKNOWN: "",
        Disposition.DEFAULT: f"It has no handler for {name}, which ends it where it stands.",
        Disposition.HANDLER: f"It has a handler for {name}.",
        Disposition.IGNORED: f"It ignores {name}.",
        Disposition.BLOCKED: f"It blocks {name}, and fetches it itself (signalfd, sigwait).",
        Disposition.UNHEARD: f"As PID 1 of its pid namespace, without a handler, it does not hear {name}.",
    }[stop.process.disposition if stop.signal == signal.SIGTERM else Disposition.UNKNOWN]


def _sender(stop: StopAudit) -> str:
    if stop.sender:
        return f"Process {stop.sender} sent it."
    return "It was sent from outside its pid namespace." if stop.process.ns_tgid != stop.tgid else ""


def _order(stop: StopAudit) -> str:
    closed = [step for step in stop.steps if step.act in (StopAct.CLOSED, StopAct.SHUT)]
    ends = [step for step in stop.steps if step.act is StopAct.ENDED]
    if stop.listeners_first:
        return "Listeners were closed first, then connections."
    if stop.listeners_first is not None:
        return "Connections were closed before the listeners: new clients still came in meanwhile."
    left = sum(step.listener_count for step in ends)
    if left and not any(step.is_listener for step in closed):
        many = "the listener" if left == 1 else "the listeners"
        return f"Nobody closed {many}: clients came in until the end of {_listed(_closers(stop, ends))}."
    return ""


def _closers(stop: StopAudit, ends: Sequence[StopStep]) -> list[str]:
    return [_of(stop, step.tgid) for step in ends if step.listener_count]


def _children(stop: StopAudit) -> Iterator[str]:
    children = stop.processes[1:]
    if not children:
        return
    told = [one for one in children if one.signalled_ns is not None]
    untold = [one for one in children if one.signalled_ns is None]
    deaf = [one for one in told if one.disposition is Disposition.UNHEARD]
    heard = [one for one in told if one not in deaf]
    if heard:
        yield f"The signal came to {_listed([_name(one) for one in heard])}, too."
    for one in deaf:
        yield f"The signal came to {_name(one)}, too, which as PID 1 without a handler does not hear it."
    by_itself = [one for one in untold if one.status is not None and not one.status & 0x7F]
    if by_itself:
        yield f"No such signal came to {_listed([_name(one) for one in by_itself])}: told by other means, or of itself."
    unheard = [one for one in untold if one not in by_itself]
    if unheard:
        yield f"No such signal came to {_listed([_name(one) for one in unheard])}."
    waited = [one for one in children if one.waited_by != NO_ID]
    ended = [one for one in children if one.ended_ns is not None]
    left = [one for one in children if one.ended_ns is None]
    if ended and len(waited) == len(ended):
        yield f"{_all_of(ended, left)} waited for by {_listed(sorted({_of(stop, one.waited_by) for one in waited}))}."
    else:
        unfetched = [_name(one) for one in ended if one.waited_by == NO_ID and not _orphaned(stop, one)]
        if unfetched:
            yield f"Nobody was seen to wait for {_listed(unfetched)}."
    killed = [one for one in children if one.status is not None and one.status & 0x7F == signal.SIGKILL]
    if killed:
        yield f"{_listed([_name(one) for one in killed])} {'was' if len(killed) == 1 else 'were'} killed by SIGKILL."
    if left:
        yield f"{_listed([_name(one) for one in left])} still ran at the end of the session."
    last_ns = stop.last_ended_ns
    if stop.ended_ns is not None and last_ns is not None and last_ns > stop.ended_ns:
        yield f"The last of them ended {words.duration(last_ns - stop.time_ns)} after the signal."


def _all_of(ended: Sequence[StopProcess], left: Sequence[StopProcess]) -> str:
    if len(ended) == 1:
        return f"{_name(ended[0])} was"
    if left:
        return f"{len(ended)} were"
    return "Both were" if len(ended) == 2 else f"All {len(ended)} were"


def _orphaned(stop: StopAudit, child: StopProcess) -> bool:
    """Its parent was gone before it, or with it."""
    parent = next((one for one in stop.processes if one.tgid == child.parent), None)
    ends = (parent.ended_ns if parent is not None else None, child.ended_ns)
    return ends[0] is not None and ends[1] is not None and ends[0] < ends[1] + _WITH_NS


def _clients(stop: StopAudit) -> Iterator[str]:
    clients = stop.clients
    told = _running(clients)
    if clients.open_count:
        told = f"{words.counted(clients.open_count, 'connection')} open at the signal{told}"
        seen = _seen(clients)
        yield f"Clients: {told}. {seen}".rstrip()
    else:
        yield "Clients: no connection was open at the signal."
    if clients.accepted_count:
        yield f"{words.counted(clients.accepted_count, 'connection')} accepted after the signal."
    if clients.refused_count:
        yield f"{words.counted(clients.refused_count, 'later attempt')} to connect refused."


def _running(clients: StopClients) -> str:
    if not clients.running_count:
        return ", none with a request under way"
    parts = [f"{clients.answered_count} answered"] if clients.answered_count else []
    parts += [f"{clients.cut_count} cut without an answer"] if clients.cut_count else []
    waiting = clients.running_count - clients.answered_count - clients.cut_count
    parts += [f"{waiting} still waiting at the end"] if waiting > 0 else []
    told = ", ".join(parts)
    if len(parts) == 1:
        # One fate for all: its number was just said.
        told = ("all " if clients.running_count > 1 else "") + told.partition(" ")[2]
    return f", {clients.running_count} with a request under way ({told})"


def _seen(clients: StopClients) -> str:
    parts = [f"{clients.fin_count} saw FIN"] if clients.fin_count else []
    parts += [f"{clients.reset_count} saw RST"] if clients.reset_count else []
    parts += [f"{clients.still_open_count} still open at the end"] if clients.still_open_count else []
    parts += [f"of {clients.untold_count} it was not seen"] if clients.untold_count and parts else []
    text = ", ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _step(stop: StopAudit, step: StopStep) -> StepLine:
    when = f"+{words.duration(step.time_ns - stop.time_ns)}"
    return StepLine(when=when, who=_of(stop, step.tgid), text=_act(stop, step))


def _act(stop: StopAudit, step: StopStep) -> str:
    fds = _fds(step)
    sockets = words.counted(step.count, "listener" if step.is_listener else "connection")
    what = f"its listener {step.address}" if step.is_listener and step.count == 1 else sockets
    match step.act:
        case StopAct.SIGNALLED:
            sender = f" from {_of(stop, step.other)}" if step.other != NO_ID else ""
            return f"gets {signal_name(step.signal)}{sender}"
        case StopAct.SENT:
            return f"sends {signal_name(step.signal)} to {_others(stop, step)}"
        case StopAct.CLOSED:
            return f"closes {what}{fds}"
        case StopAct.SHUT:
            return f"shuts {what} down{fds}"
        case StopAct.ACCEPTED:
            return f"accepts {sockets}{fds}"
        case StopAct.ANSWERED:
            return f"finishes {words.counted(step.count, 'answer')}"
        case StopAct.FETCHED:
            return f"waited for {_others(stop, step)}"
        case StopAct.ENDED:
            return f"{exit_words(step.status)}{_with_it(step)}"


def _others(stop: StopAudit, step: StopStep) -> str:
    """The first of whom it concerned, and how many more."""
    more = f" and {step.count - 1} more" if step.count > 1 else ""
    if step.other == A_GROUP:
        return f"a process group{more}"
    return f"{_of(stop, step.other) if step.other != NO_ID else 'another process'}{more}"


def _fds(step: StopStep) -> str:
    if not step.fds:
        return ""
    more = " …" if step.count > len(step.fds) else ""
    return f" (fd {', '.join(map(str, step.fds))}{more})"


def _with_it(step: StopStep) -> str:
    parts = [words.counted(step.listener_count, "listener")] if step.listener_count else []
    parts += [words.counted(step.connection_count, "connection")] if step.connection_count else []
    return f", which closes {' and '.join(parts)}" if parts else ""
