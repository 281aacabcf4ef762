"""SO_REUSEADDR is set after bind, too late to matter.

What it reports:
    A listening TCP socket on which SO_REUSEADDR was switched on only after bind, and not before.

Why it matters:
    Whether an address may be shared is decided in bind. Set afterwards, the option does nothing for this
    socket: the next start finds the connections of this run in TIME_WAIT, and its bind (in the same
    wrong order) fails with EADDRINUSE for up to a minute. In tests it works, as long as no
    connection was open.

Evidence:
    The bind and the setsockopt on the same socket, in their order.

Example:
    `bind(3, 127.0.0.1:8080) = 0`, `setsockopt(3, SOL_SOCKET, SO_REUSEADDR, [1]) = 0`, `listen(3, 16) = 0`.

Mend:
    Move the setsockopt call before bind.

False positives:
    A warning as it stands, since this start did work, and an error where a bind to that port was
    refused in the same session. Ephemeral ports (bind to port 0), unix and datagram sockets are left
    out, and so is an option set between a refused bind and a second attempt, which is in time.

References:
    socket(7) SO_REUSEADDR; net/ipv4/inet_connection_sock.c inet_csk_get_port.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Session
from sockscope.findings.shared.binding import (
    EADDRINUSE,
    INET,
    SO_REUSEADDR,
    SOCK_STREAM,
    SOL_SOCKET,
    binds_of,
    bound_to,
    reuse_events,
)
from sockscope.findings.shared.evidence import from_event, kept, plural, program, since_start, who
from sockscope.model.calls import Call, CallGroup
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.sockaddr import Address

RULE = Rule(
    slug="reuseaddr-after-bind",
    severity=Severity.WARNING,
    summary="SO_REUSEADDR is set after bind, where it does nothing",
    groups=frozenset({CallGroup.NETWORK}),
    times=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Late:
    """One socket: `bind` took (or was refused) the address, `option` came after it."""

    bind: int
    option: int
    address: Address


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program and address."""
    records = session.events.records
    options = np.flatnonzero((session.event_call == Call.setsockopt) & (session.event_open_file >= 0))
    asked = records["args"][options, 1:3]
    options = options[(asked[:, 0] == SOL_SOCKET) & (asked[:, 1] == SO_REUSEADDR)]
    groups: defaultdict[tuple[str, Address], list[_Late]] = defaultdict(list)
    for number in np.unique(session.event_open_file[options]).tolist():
        file = session.open_files[number]
        if file.witnessed and file.socket_type == SOCK_STREAM and file.family in INET:
            late = _judge(session, number)
            if late is not None:
                groups[program(session, int(records["tgid"][late.bind])), late.address].append(late)
    for found in groups.values():
        yield _finding(session, found)


def _judge(session: Session, file: int) -> _Late | None:
    switched, binds = reuse_events(session, file), binds_of(session, file)
    if not len(switched) or not len(binds):
        return None
    worked = binds[session.events.records["ret"][binds] == 0]
    # Where no bind worked, what counts is the last attempt: the option may have been meant for another.
    bind = int(worked[0]) if len(worked) else int(binds[-1])
    address = bound_to(session, bind)
    if address is None or not address.port or session.effective_ns[switched[0]] <= session.effective_ns[bind]:
        return None
    if not session.open_files[file].listening and len(worked):
        return None
    return _Late(bind=bind, option=int(switched[0]), address=address)


def _finding(session: Session, found: list[_Late]) -> Finding:
    late = found[0]
    row = session.events.records[late.option]
    tgid, fd = int(row["tgid"]), int(row["args"][0])
    refused = _refused(session, late.address.port)
    count = len(found)
    when = since_start(session, int(session.effective_ns[late.bind]))
    consequence = (
        f"In this session bind to port {late.address.port} was refused {plural(len(refused), 'time')} (EADDRINUSE)."
        if refused
        else f"As soon as a connection is left in TIME_WAIT, the next start cannot bind port {late.address.port}."
    )
    return Finding(
        rule=RULE.slug,
        severity=Severity.ERROR if refused else Severity.WARNING,
        confidence=Confidence.CERTAIN,
        title=f"SO_REUSEADDR set after bind to {late.address}",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        count=count,
        explanation=(
            f"{who(session, tgid)} bound fd {fd} to {late.address} at {when} and set SO_REUSEADDR only afterwards. "
            f"bind had decided by then. {consequence}"
        ),
        remedy=f"Call setsockopt(SO_REUSEADDR) on fd {fd} between socket and bind.",
        evidence=kept(_evidence(session, late, refused)),
    )


def _refused(session: Session, port: int) -> list[int]:
    binds = np.flatnonzero(session.event_call == Call.bind)
    events = binds[session.events.records["ret"][binds] == -EADDRINUSE]
    return [
        event for event in events.tolist() if (address := bound_to(session, event)) is not None and address.port == port
    ]


def _evidence(session: Session, late: _Late, refused: list[int]) -> Iterator[Evidence]:
    yield from_event(session, late.option, "too late")
    yield from_event(session, late.bind, "bind decides here")
    for event in refused[:1]:
        yield from_event(session, event, "and so it was refused")
