"""A request was read, and the connection closed without one byte of an answer.

What it reports:
    Connections on which the program read a request, wrote nothing after it, and then ended the connection
    itself (close, shutdown, or by going away) while its client still waited.

Why it matters:
    The client cannot tell whether the request was carried out: browsers and libraries report "empty reply" or
    "connection reset", proxies answer 502, and some ask again, so that what was done is done twice. In the program
    it is most often an exception path that closes and says nothing.

Evidence:
    The read of the request, the close (or the end of the process), and from the packets that the
    client had not closed before and that no payload went to it.

Example:
    `recvfrom(5, "GET /broken HTTP/1.1\\r\\n…") = 41`, `close(5) = 0`; three of 13 connections, the other ten
    got their answer.

Mend:
    Answer before closing, whatever went wrong: 500 for what failed, 400 for what was not understood,
    408 for what came too late; catch it around the whole handler.

False positives:
    A client that closed first, or closed its half, does not wait: nothing is said. Neither is it where a byte was
    written at all to this connection after the request, by whichever process, or seen on the wire. HTTP requests want
    an answer each; one that is cut off by a limit of the server's (a head that does not end within seconds) is left
    alone, and where the copied bytes do not show the head's end the confidence is less. Of
    other protocols the connection's only request must be without answer, while ten and more other connections
    of this server, and nine in ten, got one: that is information, since some requests are not meant to be answered
    (quit, a close notification). What ends by a signal to stop is told by abrupt-shutdown; a descriptor closed by
    mistake (double-close, use-after-close) is the cause of an answer that never went; so is a request that was
    never seen whole (edge-triggered-read-not-drained, select-fd-overflow). A worker that served others and ends well
    within 5 s is being replaced: information. A refusal on purpose
    (nginx's `return 444`) looks the same and is reported: --ignore it.

References:
    RFC 9112 section 9.6 (tear-down); RFC 9110 section 15.6; curl error 52 (empty reply from server).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.exchanges.latency import request_words, servers_of
from sockscope.analysis.replay.control import IS_WRITE
from sockscope.analysis.session import Ids, Session
from sockscope.analysis.stops.proc_facts import ENDING
from sockscope.findings.shared.evidence import (
    NS_PER_S,
    from_event,
    from_proc,
    kept,
    listed,
    plural,
    since_start,
    span,
    who,
)
from sockscope.model.calls import USUAL_GROUPS, Call, CallGroup
from sockscope.model.descriptors import Ended
from sockscope.model.events import Section
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.ids import NO_ID

RULE = Rule(
    slug="unanswered-request",
    severity=Severity.WARNING,
    summary="a request was read, and its connection closed without a byte of an answer",
    yields_to=frozenset({"reset-on-close", "abortive-linger", "edge-triggered-read-not-drained", "select-fd-overflow"}),
    follows=frozenset({"abrupt-shutdown", "double-close", "use-after-close"}),
    groups=USUAL_GROUPS | {CallGroup.TASKS},
)

_LIMIT_NS = 2 * NS_PER_S
"""A head not known to be whole that was closed on later than this: a time limit of the server's."""
_LEAVING_NS = 5 * NS_PER_S
_LOOKED_AT = 1000
_FEWEST_ANSWERED = 10
_ANSWERED_SHARE = 0.9
_HEAD_END = (b"\r\n\r\n", b"\n\n")
_BODILESS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
_PACKETS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unanswered:
    """One request without an answer.

    Attributes:
        row: of the exchanges.
        http: in words; empty where it is not HTTP/1.
        whole: its head was seen to end.
        closed_ns: when the last descriptor went; by `closed_event`, -1 for none.
        leaving: its process, which had served others, was about to end by itself.
    """

    row: int
    connection: int
    tgid: int
    http: str
    whole: bool
    closed_ns: int
    closed_event: int
    ended: Ended
    leaving: bool


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a server and process."""
    rows = session.exchanges
    silent = np.flatnonzero((rows["answered"] == 0) & (rows["read_count"] > 0))
    if not len(silent):
        return
    found = [one for row in _newest(silent) if (one := _judge(session, row)) is not None]
    found = [one for one in found if one.connection not in explained]
    if not found:
        return
    names, server = servers_of(session, rows["connection"])
    groups: defaultdict[tuple[int, int, bool, bool], list[_Unanswered]] = defaultdict(list)
    for one in found:
        groups[int(server[one.row]), one.tgid, bool(one.http), one.leaving].append(one)
    for (number, tgid, http, _), ones in groups.items():
        mine = np.flatnonzero(server == number)
        answered = len(np.unique(rows["connection"][mine[rows["answered"][mine] > 0]]))
        if not http:
            ones = [one for one in ones if rows["number"][one.row] == 0]
            if answered < _FEWEST_ANSWERED or answered < _ANSWERED_SHARE * (answered + len(ones)):
                continue
        if ones:
            yield _finding(session, names[number], tgid, ones, answered)


def _newest(rows: Ids) -> list[int]:
    """A server that answers nobody has as many of them as connections: a thousand will do."""
    newest: list[int] = rows[-_LOOKED_AT:].tolist()
    return newest


def _judge(session: Session, row: int) -> _Unanswered | None:
    """The request as a fault; None where it is answered yet, given up, or excused."""
    one = session.exchanges[row]
    connection = session.connections[int(one["connection"])]
    file = session.open_files[connection.open_file] if connection.open_file >= 0 else None
    if file is None or file.released_ns is None or not file.descriptors:
        return None
    closed_ns = file.released_ns
    last = max((session.descriptors[d] for d in file.descriptors), key=lambda d: (d.closed_ns or 0, d.id))
    if last.ended is None or (connection.eof_ns is not None and connection.eof_ns <= closed_ns):
        return None
    if connection.flow >= 0:
        flow, peer = session.flows[connection.flow], 1 - connection.local_side
        gone = [when for when in (flow.fin_ns[peer], flow.rst_ns[peer]) if when is not None]
        ended_ns = flow.fin_ns[connection.local_side] or closed_ns
        if any(when <= min(ended_ns, closed_ns) for when in gone):
            return None
        sent_ns = flow.last_payload_ns[connection.local_side]
        if sent_ns is not None and sent_ns >= int(one["first_read_ns"]):
            return None
    if _failed_to_write(session, connection.id, int(one["last_read_event"])):
        return None
    tgid = int(one["tgid"])
    if _told_to_stop(session, tgid, closed_ns):
        return None
    event = int(one["first_read_event"])
    http = request_words(session, event)
    whole = _is_whole(session, event, connection.id, http)
    if http and not whole and (_cut_short(session, event) or closed_ns - int(one["last_read_ns"]) > _LIMIT_NS):
        return None
    return _Unanswered(
        row=row,
        connection=connection.id,
        tgid=tgid,
        http=http,
        whole=whole,
        closed_ns=closed_ns,
        closed_event=last.closed_event,
        ended=last.ended,
        leaving=last.ended is not Ended.EXIT and _was_leaving(session, tgid, closed_ns, connection.id),
    )


def _failed_to_write(session: Session, connection: int, after: int) -> bool:
    """Whether it tried to answer, and was refused: the client had gone."""
    events = session.events_of(connection)
    since = events[int(np.flatnonzero(events == after)[0]) + 1 :]
    return bool(IS_WRITE[session.events.records["call"][since]].any())


def _told_to_stop(session: Session, tgid: int, before_ns: int) -> bool:
    events = session.events_of_tgid(tgid)
    records = session.events.records
    signals = events[records["call"][events] == Call.task_signal]
    signals = signals[np.isin(records["args"][signals, 0], ENDING)]
    return bool((session.effective_ns[signals] <= before_ns).any())


def _was_leaving(session: Session, tgid: int, closed_ns: int, connection: int) -> bool:
    """Whether the process ended well soon after: a worker that was replaced, told so by a pipe or its own count."""
    process = session.processes.get(tgid)
    if process is None or process.exited_ns is None or process.exit_status != 0:
        return False
    served = session.event_connection[session.events_of_tgid(tgid)]
    served_others = bool(((served >= 0) & (served != connection)).any())
    return served_others and 0 <= process.exited_ns - closed_ns <= _LEAVING_NS


def _payload(session: Session, event: int) -> bytes:
    return session.events.section(event, Section.PAYLOAD) or b""


def _is_whole(session: Session, event: int, connection: int, http: str) -> bool:
    """Whether all of the request was there: its head ended, and no body had to follow."""
    if http.split(" ", 1)[0] not in _BODILESS:
        return False
    if any(end in _payload(session, event) for end in _HEAD_END):
        return True
    # The copy of a read is short; packets were captured longer, most often.
    rows = session.packets_of(connection)
    packets = session.packets.records[rows]
    wanted = np.flatnonzero((packets["payload_bytes"] > 0) & (packets["captured_payload_bytes"] > 0))
    return any(session.packets.payload_of(int(rows[at])).endswith(_HEAD_END) for at in wanted[-_PACKETS:].tolist())


def _cut_short(session: Session, event: int) -> bool:
    """All that was read was copied, and it is no whole head."""
    payload = _payload(session, event)
    if any(end in payload for end in _HEAD_END):
        return False
    return len(payload) >= int(session.events.records["ret"][event])


def _finding(session: Session, name: str, tgid: int, ones: list[_Unanswered], answered: int) -> Finding:
    worst = next((one for one in ones if one.whole), ones[0])
    rows = session.exchanges
    count = len(ones)
    read_ns = int(rows["last_read_ns"][worst.row])
    asked = worst.http or f"{int(rows['read_bytes'][worst.row])} bytes"
    kinds = sorted({one.http for one in ones if one.http})
    which = f" They asked for {listed(kinds)}." if len(kinds) > 1 else ""
    others = f" {plural(answered, 'other connection')} of this server got answers." if answered else ""
    left = " The process was on its way out, and ended by itself soon after." if worst.leaving else ""
    descriptor = int(session.event_descriptor[int(rows["first_read_event"][worst.row])])
    fd = session.descriptors[descriptor].fd if descriptor >= 0 else None
    return Finding(
        rule=RULE.slug,
        severity=Severity.WARNING if worst.http and not worst.leaving else Severity.INFO,
        confidence=Confidence.CERTAIN if worst.whole and worst.http else Confidence.LIKELY,
        title=f"{plural(count, 'request')} to {name} read, and the connection closed without an answer",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        connections=tuple(sorted({one.connection for one in ones})),
        count=count,
        worst=worst.connection,
        explanation=(
            f"{who(session, tgid)} read {asked} on connection {worst.connection} (fd {fd}) at "
            f"{since_start(session, read_ns)}, wrote nothing, and {_ended(worst)} "
            f"{span(worst.closed_ns - read_ns)} later, while the client still waited.{left}{which}{others}"
        ),
        remedy=_remedy(worst, fd),
        evidence=kept(_evidence(session, worst)),
    )


def _ended(one: _Unanswered) -> str:
    if one.ended is Ended.EXIT:
        return "ended with the connection open"
    return "replaced it by exec" if one.ended is Ended.EXEC else "closed it"


def _remedy(one: _Unanswered, fd: int | None) -> str:
    if one.ended is Ended.EXIT:
        return "Find out why the process ended with a request in hand: its exit status is in the list of processes."
    if one.http:
        return (
            f"Send an answer before close({fd}), whatever happened: 500 for what failed, 400 for what was not "
            "understood; catch errors around the whole handler."
        )
    return f"Send an answer, or an error of the protocol's, before close({fd})."


def _evidence(session: Session, one: _Unanswered) -> Iterator[Evidence]:
    rows = session.exchanges
    if one.closed_event != NO_ID:
        yield from_event(session, one.closed_event, "ended, and nothing was written")
    else:
        yield from_proc(one.closed_ns, "its last descriptor went, and nothing was written")
    yield from_event(session, int(rows["first_read_event"][one.row]), "the request is read")
    last = int(rows["last_read_event"][one.row])
    if last != int(rows["first_read_event"][one.row]):
        yield from_event(session, last, "the last of it")
