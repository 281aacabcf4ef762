"""What a server is, in words: who listens, who accepts, who serves, and how work is handed on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from sockscope.analysis.narration.members import Member, Served, members_of, numbered_waits, served_of
from sockscope.analysis.replay.control import IS_READ, IS_WRITE
from sockscope.analysis.session import Session
from sockscope.model.calls import CallGroup
from sockscope.model.connections import Protocol, Role
from sockscope.model.descriptors import How
from sockscope.model.sockaddr import Family

_NAMED: Final = 3
_MOST: Final = 0.8
"""Share of the connections that makes it the way they are served."""
_THREADS_LOOKED_AT: Final = 64
_CONNECTIONS_LOOKED_AT: Final = 256
_OWN, _THREAD, _FORK, _PASSED = range(4)


def architecture(session: Session) -> tuple[str, ...]:
    """One line a fact, each with its counts; empty where no system calls were recorded.

    Works on what was found at attach alone, too, and then says what cannot be known before somebody asks.
    """
    if not session.info.syscalls.engine:
        return ()
    members = members_of(session)
    if not members:
        return ()
    served = served_of(session)
    teams = _teams(session, members)
    if not teams:
        return tuple(_without_listener(session, members))
    lines: list[str] = []
    named: set[int] = set(np.unique(served.server_tgid).tolist())
    for files, team in teams:
        named |= {one.tgid for one in team}
        lines += _team(session, files, team, served.of(np.isin(served.tgid, [one.tgid for one in team])))
    for tgid, text in _supervisors(session, members, [team for _, team in teams]):
        named.add(tgid)
        lines.append(text)
    lines += _rest(session, members, named)
    lines += _helpers(session, members, named)
    if not any(one.accepts for one in members.values()):
        begins = session.info.ended_ns <= session.info.started_ns
        lines.append(
            "How it serves connections will show when somebody connects"
            if begins
            else "Nobody connected while it was watched: how connections are served is not known yet"
        )
    return tuple(lines)


def _teams(session: Session, members: dict[int, Member]) -> list[tuple[list[int], list[Member]]]:
    """(listeners, processes that take connections from them): together where addresses and parent are the same.

    Those that only keep a listener (for workers to inherit) are none; unless nobody does more than that.
    """
    active = [one for one in members.values() if one.watched or one.accepts]
    if not active:
        holders = [one for one in members.values() if one.listeners]
        # Who has children that have it as well is likely the one that only starts them.
        bosses = {
            one.tgid for one in holders if any(set(members[c].listeners) & set(one.listeners) for c in one.children)
        }
        active = [one for one in holders if one.tgid not in bosses] or holders
    groups: defaultdict[tuple[frozenset[str], int], list[Member]] = defaultdict(list)
    for one in sorted(active, key=lambda each: each.tgid):
        files = one.watched or set(one.listeners)
        where = frozenset(_address(session, file) for file in files)
        groups[where, one.parent].append(one)
    teams = [
        (sorted({file for one in team for file in (one.watched or set(one.listeners))}), team)
        for team in groups.values()
    ]
    # A control socket comes after what the server is there for.
    return sorted(teams, key=lambda entry: all(session.open_files[file].family == Family.UNIX for file in entry[0]))


def _address(session: Session, file: int) -> str:
    local = session.open_files[file].local
    if local is None:
        # What was there before tells its address in what it accepts, if anywhere.
        local = next((one.local for one in session.connections if one.listener == file and one.local), None)
    if local is None:
        return "a listener"
    return f"unix {local}" if local.family == Family.UNIX else str(local)


def names(session: Session, tgids: Iterable[int]) -> str:
    """`nginx[13] and nginx[14]`, cut after a few."""
    every = [f"{session.comm(tgid)}[{tgid}]" for tgid in sorted(tgids)]
    if len(every) > _NAMED + 1:
        return f"{', '.join(every[:_NAMED])} and {len(every) - _NAMED} more"
    return f"{', '.join(every[:-1])} and {every[-1]}" if len(every) > 1 else "".join(every)


def _count(number: int, noun: str, many: str | None = None) -> str:
    return f"{number:,}".replace(",", " ") + f" {noun if number == 1 else many or noun + 's'}"


def _team(session: Session, files: list[int], team: list[Member], served: Served) -> Iterator[str]:
    """What one team is: its listener, and how it serves."""
    yield _listening(session, files, team)
    many = len(team) > 1
    subject = "each" if many else f"{names(session, [team[0].tgid])}"
    yield from (f"{subject} {text}" for text in _waiting(session, team, served))
    told = served.how >= 0
    if told.any():
        yield from (f"{subject} {text}" for text in _ways(session, team, served.of(told)))
        yield from _upstream(session, team, served.of(told))


def _listening(session: Session, files: list[int], team: list[Member]) -> str:
    where = ", ".join(dict.fromkeys(_address(session, file) for file in files))
    who = names(session, [one.tgid for one in team])
    fds = sorted({one.listeners[file] for one in team for file in files if file in one.listeners})
    number = f" (fd {', '.join(map(str, fds))})" if 0 < len(fds) <= _NAMED else ""
    if len(team) == 1:
        text = f"{who} listens on {where}{number}"
    elif all(sum(file in one.listeners for one in team) > 1 for file in files):
        text = f"{who} share one listener on {where}{number}, {_origin(session, files[0], team)}"
    elif len(files) >= len(team):
        text = f"{who} have a listener of their own each on {where}{number}: SO_REUSEPORT, the kernel deals out"
    else:
        text = f"{who} listen on {where}{number}"
    counts = sorted((sum(one.accepts.values()) for one in team), reverse=True)
    if not sum(counts):
        return text
    dealt = f" ({' / '.join(map(str, counts[:8]))}{' / …' if len(counts) > 8 else ''})" if len(team) > 1 else ""
    return f"{text}: {_count(sum(counts), 'connection')} accepted{dealt}"


def _origin(session: Session, file: int, team: list[Member]) -> str:
    ways = {
        session.descriptors[number].how
        for number in session.open_files[file].descriptors
        if set(session.tables[session.descriptors[number].table].tgids) & {one.tgid for one in team}
    }
    if How.SCM_RIGHTS in ways:
        return "passed on by SCM_RIGHTS"
    return "inherited by fork" if How.FORK in ways else "one open file, from before they were forked"


def _waiting(session: Session, team: list[Member], served: Served) -> Iterator[str]:
    """How connections are waited for, in the verb's third person."""
    if any(one.rings for one in team):
        yield "uses an io_uring"
    loops = Counter(len(one.epolls) for one in team)
    number, teammates = loops.most_common(1)[0]
    if number and teammates == len(team):
        yield _epoll_loops(session, team, number)
        return
    asks = set.intersection(*(one.asks for one in team))
    if asks:
        yield f"waits in {' or '.join(sorted(asks))} until somebody connects, then accepts"
    elif CallGroup.WAITS not in session.info.syscalls.missing_groups and all(
        one.watched and not one.asks and not one.epolls and not one.rings for one in team
    ):
        yield "waits in accept itself until somebody connects"


def _epoll_loops(session: Session, team: list[Member], number: int) -> str:
    threads = max(len(tids) for one in team for tids in one.epolls.values())
    fds = sorted({fd for one in team for epoll in one.epolls for fd in _numbers(session, epoll, one.tgid)})
    number_words = f"fd {', '.join(map(str, fds))}" if 0 < len(fds) <= _NAMED else ""
    where = f" (epoll {number_words})" if number_words else ""
    if not _watched_connections(session, {epoll for one in team for epoll in one.epolls}):
        several = f", in {number} threads," if number > 1 else f" with {threads} threads" if threads > 1 else ""
        where = f" ({number_words})" if number_words else ""
        return f"waits in epoll{where}{several} until somebody connects, then accepts"
    if number > 1:
        text = f"runs {number} event loops{where}, one epoll a thread"
    elif threads > 1:
        text = f"has one epoll{where} that {threads} threads wait on"
    else:
        text = f"runs one event loop in one thread{where}"
    return f"{text}, which tells of new connections and of those it has"


def _numbers(session: Session, epoll: int, tgid: int) -> set[int]:
    held = (session.descriptors[number] for number in session.open_files[epoll].descriptors)
    return {one.fd for one in held if tgid in session.tables[one.table].tgids}


def _watched_connections(session: Session, epolls: set[int]) -> bool:
    """Whether accepted connections are in the interest lists as well, or only listeners."""
    connections = (
        session.open_files[interest.open_file].connection
        for interest in session.interests
        if interest.epoll in epolls and interest.open_file >= 0
    )
    return any(session.connections[number].role is Role.SERVER for number in connections if number >= 0)


def _ways(session: Session, team: list[Member], served: Served) -> Iterator[str]:
    """How accepted connections are served, the most usual way first."""
    if any(len(one.epolls) > 1 for one in team):
        # Which thread's loop accepted it and which has it then is chance.
        served = replace(served, how=np.where(served.how == _THREAD, _OWN, served.how))
    whole = len(served)
    for how, count in Counter(served.how.tolist()).most_common(2):
        rows = served.of(served.how == how)
        text = _WAYS.get(how, _elsewhere)(session, team, rows)
        yield text if count == whole else f"{text} ({count} of {whole})"


def _at_once(rows: Served) -> str:
    return "one at a time" if rows.at_once <= 1 else f"up to {rows.at_once} at once"


def _own(session: Session, team: list[Member], rows: Served) -> str:
    threads = sorted(set(zip(rows.server_tgid.tolist(), rows.server_tid.tolist(), strict=True)))
    most = max(rows.of(rows.server_tid == tid).at_once for _, tid in threads[:_THREADS_LOOKED_AT])
    epolls = {epoll for one in team for epoll in one.epolls}
    several = len({tgid for tgid, _ in threads}) < len(threads)
    if _watched_connections(session, epolls) or any(one.rings for one in team) or _polled(session, team, rows):
        who = f"{len(threads)} threads, each for its own" if several else "the thread that accepts serves them all"
        return f"serves its connections from the loop ({who}), {'one' if most <= 1 else f'up to {most}'} open at once"
    who = f"{len(threads)} threads that accept each serve theirs" if several else "the thread that accepts serves it"
    if most <= 1:
        return f"serves one connection after another ({who}); who comes meanwhile waits in the accept queue"
    return f"serves connections itself ({who}), up to {most} open at once"


def _polled(session: Session, team: list[Member], rows: Served) -> bool:
    """Whether the threads wait for connections together with the listener, in one poll or select."""
    numbers = {
        session.descriptors[number].fd
        for connection in rows.connection[:_CONNECTIONS_LOOKED_AT].tolist()
        for number in session.open_files[session.connections[connection].open_file].descriptors[:1]
    }
    listeners = {fd for one in team for fd in one.listeners.values()}
    return any(
        named & numbers and named & listeners for _, named in numbered_waits(session, np.unique(rows.tid).tolist())
    )


def _threads(session: Session, team: list[Member], rows: Served) -> str:
    threads = len(np.unique(rows.server_tid))
    if (rows.born & rows.alone).mean() >= _MOST:
        return (
            f"starts a thread for each connection: {_count(threads, 'thread')} for {_count(len(rows), 'connection')}, "
            f"{_at_once(rows)}"
        )
    shares = np.unique(rows.server_tid, return_counts=True)[1]
    spread = f"{shares.min()}" if shares.min() == shares.max() else f"{shares.min()} to {shares.max()}"
    return (
        f"leaves serving to a pool of threads: {_count(len(rows), 'connection')} among "
        f"{_count(threads, 'thread')}, {spread} each"
    )


def _forked(session: Session, team: list[Member], rows: Served) -> str:
    processes = len(np.unique(rows.server_tgid))
    if (rows.born & rows.alone).mean() >= _MOST:
        return (
            f"forks a process for each connection: {_count(processes, 'process', 'processes')} for "
            f"{_count(len(rows), 'connection')}, {_at_once(rows)}"
        )
    return f"leaves serving to {_count(processes, 'process', 'processes')} forked after the accept"


def _passed(session: Session, team: list[Member], rows: Served) -> str:
    got = Counter(rows.server_tgid.tolist())
    shares = ", ".join(f"{session.comm(tgid)}[{tgid}] {count}" for tgid, count in sorted(got.items())[:8])
    return (
        f"accepts and hands each connection to another process (SCM_RIGHTS), which serves it: "
        f"{_count(len(rows), 'connection')}, {shares}"
    )


def _elsewhere(session: Session, team: list[Member], rows: Served) -> str:
    return f"has another process serve: {names(session, set(rows.server_tgid.tolist()))}"


_WAYS: Final = {_OWN: _own, _THREAD: _threads, _FORK: _forked, _PASSED: _passed}


def _upstream(session: Session, team: Sequence[Member], served: Served) -> Iterator[str]:
    """Whether serving means asking somebody else: a proxy, or a program with a service behind it."""
    records = session.events.records
    tgids = sorted({*(one.tgid for one in team), *served.server_tgid.tolist()})
    client = np.array([c.role is Role.CLIENT and c.protocol is not Protocol.UDP for c in session.connections], np.bool_)
    if not client.any():
        return
    mine = np.flatnonzero((session.event_connection >= 0) & np.isin(records["tgid"], tgids))
    mine = mine[client[session.event_connection[mine]]]
    asks = mine[IS_WRITE[session.event_call[mine]] & (records["ret"][mine] > 0)]
    if not len(asks):
        return
    times = np.sort(session.effective_ns[asks])
    # A connection that is kept open ends late; what it had asked for came in its time.
    while_open = np.searchsorted(times, served.ended_ns) > np.searchsorted(times, served.began_ns)
    if while_open.mean() < _MOST:
        return
    got = int(records["ret"][mine[IS_READ[session.event_call[mine]]]].clip(0).sum())
    gave = sum(session.connections[number].written_bytes for number in served.connection.tolist())
    upstream = np.unique(session.event_connection[asks]).tolist()
    peers = Counter(str(session.connections[number].peer or "?") for number in upstream)
    where = ", ".join(f"{peer} ({_count(times_, 'connection')})" for peer, times_ in peers.most_common(3))
    what = "is a proxy: it passes on what it reads from" if gave and got >= _MOST * gave else "asks another service:"
    yield (
        f"{names(session, [one.tgid for one in team])} {what} {where}, "
        f"for {int(while_open.sum())} of {_count(len(served), 'connection')}"
    )


def _supervisors(session: Session, members: dict[int, Member], teams: list[list[Member]]) -> Iterator[tuple[int, str]]:
    """Parents of a team that are not of it."""
    for team in teams:
        inside = {one.tgid for one in team}
        for one in sorted(members.values(), key=lambda each: each.tgid):
            children = [child for child in one.children if child in inside]
            if one.tgid in inside or not children:
                continue
            waits = " and waits for them" if one.reaps else ""
            text = f"{names(session, [one.tgid])} supervises: it started {names(session, children)}{waits}"
            served = {file for member in team for file in member.listeners}
            kept = ", ".join(dict.fromkeys(_address(session, file) for file in one.listeners if file in served))
            if kept:
                text += f"; it keeps the listener on {kept} open for them and never accepts from it"
            yield one.tgid, text


def _rest(session: Session, members: dict[int, Member], named: set[int]) -> Iterator[str]:
    """Processes that have no part in it, or none yet."""
    # A child that lived for one request is counted where it was forked.
    left = [
        one.tgid for one in members.values() if one.tgid not in named and session.processes[one.tgid].started_ns is None
    ]
    if left:
        verb = "has" if len(left) == 1 else "have"
        yield f"{names(session, left)} {verb} taken no connection so far"


def _helpers(session: Session, members: dict[int, Member], named: set[int]) -> Iterator[str]:
    alike: defaultdict[tuple[str, int], list[Member]] = defaultdict(list)
    for one in members.values():
        if one.tgid in named and 0 < one.quiet < len(one.tids):
            alike[session.comm(one.tgid), one.parent].append(one)
    for group in alike.values():
        quiet, threads = sum(one.quiet for one in group), sum(len(one.tids) for one in group)
        yield (
            f"{names(session, (one.tgid for one in group))}: {quiet} of {threads} threads made no call on a socket "
            "(helpers, or waiting for work: futex is not watched)"
        )


def _without_listener(session: Session, members: dict[int, Member]) -> Iterator[str]:
    peers = Counter(
        str(one.peer)
        for one in session.connections
        if one.role is Role.CLIENT and one.protocol is Protocol.TCP and one.peer
    )
    if peers:
        where = ", ".join(f"{peer} ({count})" for peer, count in peers.most_common(3))
        yield f"{names(session, members)}: no listener, a client of {where}"
