"""A datagram was longer than the buffer it was read into; the rest is gone.

What it reports:
    Reads of UDP and unix datagram sockets that took a part of a datagram: the kernel said so (MSG_TRUNC in
    recvmsg's msg_flags, or a result above the buffer's size where the call passed MSG_TRUNC), or recvfrom filled
    its buffer to the last byte while the packet on the wire (or the send, where its sender is watched too) was longer.

Why it matters:
    What does not fit is thrown away, not kept for the next read as in a stream. plain recv and recvfrom return the
    buffer's size and look like success; the program works on half a message. A warning: the loss is certain, but what
    the lost part was worth only the program knows. An info where fewer than one in a hundred of many datagrams were
    cut: one stranger's nonsense is no fault of a server.

Evidence:
    The reads that filled their buffer, and the packets they took: same sender, same first bytes, longer. Where the
    kernel set MSG_TRUNC, that flag. No packet that fits exactly may be left that the read could have taken instead.

Example:
    `recvfrom(3, …, 64) = 64` 3 times, while the packets carried 100, 200 and 1200 bytes.

Mend:
    Give the read a buffer as large as the protocol allows (65535 bytes take every UDP datagram over IPv4), or call
    recvmsg and refuse a message whose msg_flags have MSG_TRUNC, or ask for the size first with MSG_PEEK | MSG_TRUNC.

False positives:
    An exact fit is no loss: without a packet or a send that proves the contrary nothing is said. Looks that leave the
    datagram where it is (MSG_PEEK), reads of the error queue, reads of no bytes at all, and short reads right after
    a look throw away on purpose. Sends that the kernel cuts into several datagrams (UDP_SEGMENT) cross the loopback as
    one packet: where a socket returned more datagrams than packets came, packets prove nothing. Certain
    by the kernel's flag; likely by the wire, where a hole in the capture could hide a packet that fits.

References:
    recv(2) MSG_TRUNC; udp(7); unix(7); RFC 768.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.datagrams import Arrival, arrivals, beyond, is_datagram, prefix_of, source_of
from sockscope.findings.shared.evidence import from_event, from_packet, kept, plural, program, since_start, who
from sockscope.model.calls import READS, Call, CallGroup
from sockscope.model.descriptors import OpenFile
from sockscope.model.event_rows import find_sections, words_at
from sockscope.model.events import EventFlag, Section
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.sockaddr import Family

RULE = Rule(
    slug="datagram-truncated",
    severity=Severity.WARNING,
    summary="a datagram was longer than the buffer: the rest is gone",
    groups=frozenset({CallGroup.NETWORK, CallGroup.TRANSFERS}),
    bears_loss=True,
)

_READS = np.array(sorted(READS), np.uint16)
_PEEK, _TRUNC, _ERRQUEUE = 0x2, 0x20, 0x2000
_MANY = 100
"""Datagrams from which one in a hundred that was cut is an oddity."""
_LOOKED_AT = 2000
"""Reads that filled their buffer, looked into for each socket."""


@dataclass(slots=True, kw_only=True)
class _Cut:
    """What one open file lost.

    Attributes:
        told: reads of which the kernel said so.
        shown: reads with the longer packet or send that they took.
        doubtful: full reads that nothing could be held against.
        sizes: of the buffer, and of the datagram; the latter is 0 where unknown.
    """

    file: OpenFile
    read_count: int = 0
    told: list[int] = field(default_factory=list)
    shown: list[tuple[int, Arrival]] = field(default_factory=list)
    doubtful: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.told) + len(self.shown)


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program and address: its sockets there share the code that reads them."""
    groups: dict[tuple[str, str, str], list[_Cut]] = {}
    doubtful = 0
    for file in session.open_files:
        if is_datagram(file):
            cut = _judge(session, file)
            doubtful += cut.doubtful
            if cut.count:
                tgid = int(session.events.records["tgid"][_events(cut)[0]])
                key = program(session, tgid), session.events.call(_events(cut)[0]).name, str(file.local)
                groups.setdefault(key, []).append(cut)
    for cuts in groups.values():
        yield _finding(session, cuts)
    if doubtful and not groups:
        yield Skip(
            rule=RULE.slug,
            reason=f"{plural(doubtful, 'read')} filled the buffer to the last byte; whether the datagram was longer "
            "only its packet, or its sender, could tell",
        )


def _events(cut: _Cut) -> list[int]:
    return [*cut.told, *(read for read, _ in cut.shown)]


def _judge(session: Session, file: OpenFile) -> _Cut:
    records = session.events.records
    calls = session.events_of_open_file(file.id)
    calls = calls[np.isin(records["call"][calls], _READS)]
    calls = calls[(records["ret"][calls] >= 0) & ((records["flags"][calls] & EventFlag.ENTERED_ONLY) == 0)]
    cut = _Cut(file=file, read_count=len(calls))
    if not len(calls):
        return cut
    call, args, ret = records["call"][calls], records["args"][calls], records["ret"][calls]
    by_message = (call == Call.recvmsg) | (call == Call.recvmmsg)
    flags = np.where(call == Call.recvfrom, args[:, 3], 0)
    flags = np.where(call == Call.recvmsg, args[:, 2], np.where(call == Call.recvmmsg, args[:, 3], flags))
    looks = (flags & (_PEEK | _ERRQUEUE)) != 0
    cut.read_count = int((~looks).sum())
    # A short read right after a look is how a datagram is thrown away.
    takes = ~looks & ~np.concatenate([[False], (flags[:-1] & _PEEK) != 0])
    wholes = _words(session, calls, Section.IOV_TOTAL)
    sizes = np.where(by_message | (call == Call.readv), wholes, args[:, 2].astype(np.int64))
    takes &= sizes > 0
    told = by_message & takes & ((_words(session, calls, Section.MSG_FLAGS) & (_TRUNC | _ERRQUEUE)) == _TRUNC)
    told |= (call == Call.recvfrom) & takes & ((flags & _TRUNC) != 0) & (ret > sizes)
    cut.told = calls[told].tolist()
    real = np.where(ret > sizes, ret, 0)[told]
    cut.sizes = list(zip(sizes[told].tolist(), real.tolist(), strict=True))
    full = calls[~by_message & takes & ~told & (ret == sizes)]
    if len(full):
        _hold_against(session, cut, full)
    return cut


def _words(session: Session, calls: Ids, kind: Section) -> Ids:
    """The low word of a section of each call; -1 (so: no bytes; every flag) where there is none."""
    place, size = find_sections(session.events, calls, kind)
    found = np.full(len(calls), -1, np.int64)
    there = (place >= 0) & (size >= 4)
    found[there] = words_at(session.events.blob, place[there])
    return found


def _hold_against(session: Session, cut: _Cut, full: Ids) -> None:
    """Find what the reads took that filled their buffer: of equal ones those that fit exactly are taken to be read."""
    came = arrivals(session, cut.file, int(session.events.records["ret"][full].min()))
    if came is None or (came.count and came.count < cut.read_count):
        cut.doubtful = len(full)
        return
    looked_at = full[:_LOOKED_AT].tolist()
    sources = {event: source_of(session, event) for event in looked_at}
    # Where one call does not say from whom, none can be told apart by it.
    named = cut.file.local is not None and cut.file.local.family != Family.UNIX and all(sources.values())
    classes: dict[tuple[object, bytes, int], list[int]] = {}
    for event in looked_at:
        size = int(session.events.records["ret"][event])
        prefix = prefix_of(session, event, size)
        if prefix is None:
            cut.doubtful += 1
        else:
            classes.setdefault((sources[event] if named else None, prefix, size), []).append(event)
    for (source, prefix, size), reads in classes.items():
        mine = [one for one in came.rows if one.size >= size and one.prefix(size) == prefix]
        mine = [one for one in mine if source is None or one.source == source]
        for read, taken in beyond(session, reads, mine, size):
            cut.shown.append((read, taken))
            cut.sizes.append((size, taken.size))


def _finding(session: Session, cuts: Sequence[_Cut]) -> Finding:
    worst = max(cuts, key=lambda cut: cut.count)
    events = sorted((event for cut in cuts for event in _events(cut)), key=lambda e: int(session.effective_ns[e]))
    first = events[0]
    tgid = int(session.events.records["tgid"][first])
    call = session.events.call(first).name
    fd = int(session.events.records["args"][_events(worst)[0], 0])
    count, read_count = len(events), sum(cut.read_count for cut in cuts)
    sizes = [size for cut in cuts for size in cut.sizes]
    buffer, longest = max(size for size, _ in sizes), max(real for _, real in sizes)
    told = any(cut.told for cut in cuts)
    odd = read_count >= _MANY and count * _MANY <= read_count
    where = _where(worst.file)
    at_most = f"{call} of fd {fd} takes at most {plural(buffer, 'byte')}"
    cut_off = (
        f"the longest had {longest} bytes, of which {longest - buffer} are gone" if longest else "the rest is gone"
    )
    how = (
        "The kernel said so each time (MSG_TRUNC): the program could have known"
        if told
        else f"{call} returned {buffer}, as for a message that fits: only the wire shows the difference"
        if worst.file.family != Family.UNIX
        else f"{call} returned {buffer}, as for a message that fits: only what was sent shows the difference"
    )
    return Finding(
        rule=RULE.slug,
        severity=Severity.INFO if odd else Severity.WARNING,
        confidence=Confidence.CERTAIN if told or worst.file.family == Family.UNIX else Confidence.LIKELY,
        title=f"{count} of {plural(read_count, 'datagram')} {where} cut off at {plural(buffer, 'byte')}",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        connections=tuple(sorted({cut.file.connection for cut in cuts if cut.file.connection >= 0})),
        count=count,
        worst=worst.file.connection if worst.file.connection >= 0 else None,
        explanation=(
            f"{at_most}; {count} of the {plural(read_count, 'datagram')} that {who(session, tgid)} read {where} were "
            f"longer (first at {since_start(session, int(session.effective_ns[first]))}): {cut_off}. {how}. "
            "What does not fit is thrown away, not kept for the next read."
        ),
        remedy=(
            f"Give {call} a buffer for the longest message of the protocol"
            + (f" (at least {longest} bytes came here; 65535 take any UDP datagram)" if longest else "")
            + ", and refuse what recvmsg marks with MSG_TRUNC."
        ),
        evidence=kept(_evidence(session, worst)),
    )


def _where(file: OpenFile) -> str:
    if file.family == Family.UNIX:
        return f"at {file.local}" if file.local is not None and file.local.packed else "of a unix socket pair"
    return f"at UDP port {file.local.port}" if file.local is not None and file.local.port else "of a UDP socket"


def _evidence(session: Session, cut: _Cut) -> Iterator[Evidence]:
    for event in cut.told[:3]:
        yield from_event(session, event, "MSG_TRUNC: a part of it")
    for read, taken in cut.shown[:3]:
        yield from_event(session, read, f"the datagram had {taken.size} bytes")
        if taken.packet >= 0:
            yield from_packet(session, taken.packet, "longer than the buffer it was read into")
        else:
            yield from_event(session, taken.event, "what was sent")
