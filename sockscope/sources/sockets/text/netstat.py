"""Lines of `netstat`: net-tools' with -e, -p, -o or without, and BusyBox's.

Source: netstat(8); net-tools netstat.c (tcp_do_one, unix_do_one); BusyBox networking/netstat.c.
"""

from __future__ import annotations

import re
from typing import Final

from sockscope.model.sockaddr import Family
from sockscope.model.tcp import TcpState
from sockscope.sources.sockets.text.ends import NO_ADDRESS, WILDCARD_FAMILY, Ends
from sockscope.sources.sockets.text.table import SocketTable, number
from sockscope.sources.sockets.text.vocabulary import (
    NETSTAT_PROTOCOLS,
    NETSTAT_STATES,
    NETSTAT_UNIX_STATES,
    OTHER_NETSTAT_PROTOCOLS,
    TCP,
    TIMERS,
    UNIX,
    UNIX_TYPES,
)

_TIMER = re.compile(
    r"(?:^|\s)(off|on|keepalive|timewait|probe|unkn-\d{1,4}) \((\d{1,9}(?:\.\d{1,4})?)/(\d{1,9})/\d{1,9}\)$"
)
_PROGRAM = re.compile(r"(\d{1,9})/(.{0,64})$")
_UNIX_PROGRAM = re.compile(r"(?:-|(\d{1,9})/(.{0,32}?))\s{0,64}(?:$|(?=\s[/@]))")
_CUT_WIDTH: Final = 23
"""netstat without -W cuts what is longer."""
_TIMER_WIDTH = 80
_NO_TIMER = "off (0.00/0/0)"
NO_FD = -1
"""netstat names the process, not its descriptor."""


class NetstatLines:
    """Reads rows into a table."""

    def __init__(self, table: SocketTable, ends: Ends) -> None:
        self._table = table
        self._ends = ends
        self._wide = False
        self._has_programs = False
        self.other_count = 0

    def header(self, line: str) -> None:
        """`Proto Recv-Q Send-Q …` or `Proto RefCnt Flags …`: which columns follow."""
        self._has_programs = "PID/Program" in line

    def row(self, line: str, words: list[str]) -> str:
        """A line that begins with a protocol.

        Returns:
            Why it could not be read; empty where it could.
        """
        protocol = NETSTAT_PROTOCOLS.get(words[0])
        if protocol is None:
            self.other_count += words[0] in OTHER_NETSTAT_PROTOCOLS
            return ""
        if protocol == UNIX:
            return self._unix(line)
        if len(words) < 5:
            return "cut off"
        received, sent = number(words[1]), number(words[2])
        if received is None or sent is None:
            return "its queues are no numbers"
        service = "tcp" if protocol == TCP else "udp"
        local, peer = self._ends.read(words[3], service), self._ends.read(words[4], service)
        longest = max(len(words[3]), len(words[4]))
        self._wide |= longest > _CUT_WIDTH
        if longest == _CUT_WIDTH and not self._wide:
            return "an address that netstat may have cut: add -W"
        if local is None or peer is None:
            return "names in the place of numbers: add -n"
        rest = line.split(None, 5)[5].rstrip() if len(words) > 5 else ""
        word = rest.partition(" ")[0]
        state = NETSTAT_STATES.get(word)
        if state is not None:
            rest = rest[len(word) :].lstrip()
        elif protocol == TCP:
            return "no state that is known"
        # A v4-mapped address is shown as IPv4 under tcp6.
        six = words[0].endswith("6") or local[2] == Family.INET6
        family = Family.INET6 if six else Family.INET if local[2] == WILDCARD_FAMILY else local[2]
        self._table.add(
            state=TcpState.CLOSE if state is None else state,
            kind=(family, protocol, 0),
            queues=(received, sent),
            local=local[:2],
            peer=peer[:2],
        )
        self._more(rest)
        return ""

    def _more(self, rest: str) -> None:
        """User, inode, process and timer, those of them that are there."""
        if rest.endswith(_NO_TIMER):
            rest = rest[: -len(_NO_TIMER)].rstrip()
        elif rest.endswith(")"):
            timer = _TIMER.search(rest, max(0, len(rest) - _TIMER_WIDTH))
            if timer is not None:
                rest = rest[: timer.start()].rstrip()
                self._table.put("timer", TIMERS.get(timer[1], 0))
                self._table.put("timer_ms", round(float(timer[2]) * 1000))
                self._table.put("retransmits", int(timer[3]))
        words = rest.split(None, 2)
        if len(words) >= 2 and (inode := number(words[1])) is not None and "/" not in words[0]:
            uid = number(words[0])
            if uid:
                self._table.put("uid", uid)
            self._table.put("inode", inode)
            rest = words[2] if len(words) > 2 else ""
        if rest[:1].isdecimal():
            found = _PROGRAM.match(rest[:80])
            if found is not None:
                self._table.hold(int(found[1]), NO_FD, found[2].strip())

    def _unix(self, line: str) -> str:
        _, bracket, rest = line.partition("]")
        words = rest.split(None, 2)
        kind = UNIX_TYPES.get(words[0]) if bracket and len(words) > 1 else None
        if kind is None:
            return "no unix socket's type"
        state = NETSTAT_UNIX_STATES.get(words[1])
        inode = words[1] if state is None else words[2].partition(" ")[0] if len(words) > 2 else ""
        if number(inode) is None:
            return "no inode"
        if not int(inode):
            return ""  # un-accepted: nothing tells one of them from another
        tail = rest.split(None, 2 if state is None else 3)
        after = tail[-1].strip() if len(tail) > (2 if state is None else 3) else ""
        self._table.add(
            state=TcpState.CLOSE if state is None else state,
            kind=(Family.UNIX, UNIX, kind),
            queues=(0, 0),
            local=(NO_ADDRESS, 0),
            peer=(NO_ADDRESS, 0),
        )
        self._table.put("inode", int(inode))
        if self._has_programs:
            program = _UNIX_PROGRAM.match(after[:1000])
            if program is not None:
                if program[1]:
                    self._table.hold(int(program[1]), NO_FD, program[2].strip())
                after = after[program.end() :].strip()
        if after[:1] in ("/", "@"):
            self._table.put_path(after)
        return ""


def is_header(line: str) -> bool:
    """`Proto Recv-Q Send-Q …`, `Proto RefCnt Flags …`."""
    return line.lstrip().startswith("Proto ") and ("Recv-Q" in line or "RefCnt" in line)


def begins(line: str) -> bool:
    """`Active Internet connections (servers and established)`; other languages say it otherwise."""
    return line.startswith("Active ")
