"""Lines of `ss`, with any mix of its options.

A row begins with its state, or with its kind where several were asked for; what follows the two addresses, on the
same line or on indented ones, are `name:value` words in no order to rely upon.

Source: ss(8); iproute2 misc/ss.c (sock_state_print, tcp_show_info, tcp_timer_print, proc_ctx_print), 4.9 to 7.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from sockscope.model.sockaddr import Family
from sockscope.sources.sockets.text.ends import NO_ADDRESS, Ends
from sockscope.sources.sockets.text.table import SocketTable, number
from sockscope.sources.sockets.text.vocabulary import (
    NETIDS,
    OTHER_NETIDS,
    STATES,
    TIMERS,
    UDP,
    UNIX,
    UNTOLD_PROTOCOL,
)

_INFO = re.compile(
    r" (cwnd|unacked|lastsnd|lastrcv|bytes_acked|bytes_received|rtt|retrans):"
    r"(\d{1,18})(?:\.(\d{1,9}))?(?:/(\d{1,9})(?!\d))?"
)
_COUNTS: Mapping[str, str] = MappingProxyType(
    {
        "cwnd": "cwnd",
        "unacked": "unacked",
        "lastsnd": "last_data_sent_ms",
        "lastrcv": "last_data_recv_ms",
        "bytes_acked": "bytes_acked",
        "bytes_received": "bytes_received",
    }
)
# Names of processes and unix sockets may have any character in them; bounded lengths keep noise cheap.
_USER = re.compile(
    r'\("(.{0,64}?)",(?:pid=)?(\d{1,9}),(?:[a-z_]{1,12}=[^,]{0,256},){0,3}(?:fd=)?(\d{1,9})'
    r"(?:,[a-z_]{1,12}=[^,)]{0,256})?\),?"
)
_UNIX_ENDS = re.compile(r"(?<=\s)(\d{1,19})\s{1,400}(?:\*|[/@]\S{1,200})\s{1,20}(\d{1,19})(?=\s|$)")
_SPAN = re.compile(r"(?:(\d{1,6})hr)?(?:(\d{1,6})min)?(?:(\d{1,6})(?:sec|(?=\.)))?\.?(?:(\d{1,9})ms)?")
_UNIX_HEAD = 1000
_CONTINUES: Final = ("users:((", "timer:(", "uid:", "ino:", "sk:", "cgroup:", "skmem:(", "<->", "-->", "<--", "---")


class SsLines:
    """Reads rows into a table; what follows a row goes to the last one."""

    def __init__(self, table: SocketTable, ends: Ends) -> None:
        self._table = table
        self._ends = ends
        self._spans: dict[str, int] = {}
        self._open = False
        self._cut = ""
        self.other_count = 0

    def row(self, line: str, words: list[str]) -> str:
        """A line that begins with a state or a kind.

        Args:
            words: its first seven words and the rest, as `line.split(None, 7)` gives.

        Returns:
            Why it could not be read; empty where it could.
        """
        self._open, self._cut = False, ""
        first = words[0]
        state = STATES.get(first)
        if state is not None:
            protocol, kind, at = UNTOLD_PROTOCOL, 0, 1
        elif first in OTHER_NETIDS:
            self.other_count += 1
            return ""
        else:
            protocol, kind = NETIDS[first]
            state, at = STATES.get(words[1] if len(words) > 1 else ""), 2
            if state is None:
                return "no state that is known"
        if len(words) < at + 4:
            return "cut off"
        received, sent = number(words[at]), number(words[at + 1])
        if received is None or sent is None:
            return "its queues are no numbers"
        if protocol == UNIX:
            return self._unix(line, kind, state, (received, sent))
        service = "udp" if protocol == UDP else "tcp"
        local, peer = self._ends.read(words[at + 2], service), self._ends.read(words[at + 3], service)
        if local is None or peer is None:
            return "names in the place of numbers: add -n" if words[at + 2].count(":") else "no addresses"
        self._table.add(
            state=state,
            kind=(local[2], protocol, 0),
            queues=(received, sent),
            local=(local[0], local[1]),
            peer=(peer[0], peer[1]),
        )
        self._open = True
        if len(words) > at + 4:
            self.more(" ".join(words[at + 4 :]))
        return ""

    def _unix(self, line: str, kind: int, state: int, queues: tuple[int, int]) -> str:
        rest = line.split(None, 4)[4]
        head = " " + rest[:_UNIX_HEAD]
        found = _UNIX_ENDS.search(head)
        if found is None:
            return "no inodes"
        self._table.add(
            state=state, kind=(Family.UNIX, UNIX, kind), queues=queues, local=(NO_ADDRESS, 0), peer=(NO_ADDRESS, 0)
        )
        self._table.put("inode", int(found[1]))
        self._table.put("peer_inode", int(found[2]))
        name = head[: found.start()].strip()
        if name != "*":
            self._table.put_path(name)
        self._open = True
        self.more(rest[found.end() - 1 :])
        return ""

    def continues(self, line: str) -> bool:
        """Whether a line that is no row belongs to the last one."""
        if not self._open:
            return False
        return bool(self._cut) or line[:1] in " \t" or line.startswith(_CONTINUES)

    def more(self, text: str) -> None:
        """What else is said of the last row."""
        text = " " + self._cut + text.strip()
        self._cut = ""
        begin = text.find(" users:((")
        if begin >= 0:
            end = self._users(text, begin + len(" users:("))
            if end < 0:
                # A narrow terminal broke the line here; the next one has the rest.
                self._cut = text[begin + 1 :] if len(text) - begin < 1 << 16 else ""
                text = text[:begin]
            else:
                text = text[:begin] + " " + text[end:].lstrip(")")
        for key, column, base in ((" ino:", "inode", 10), (" sk:", "cookie", 16), (" uid:", "uid", 10)):
            found = _after(text, key)
            if found is not None:
                value = _of_base(found, base)
                if value is not None:
                    self._table.put(column, value)
        if " timer:(" in text:
            self._timer(text)
        if " cwnd:" in text or " rto:" in text or " rtt:" in text:
            self._info(text)

    def _users(self, text: str, at: int) -> int:
        """Take the holders from there on.

        Returns:
            Where they end; -1 where the text ends before they do.
        """
        found = []
        while (match := _USER.match(text, at)) is not None:
            found.append(match)
            at = match.end()
        if not text.startswith(")", at) and len(text) - at < _LONGEST_USER and "))" not in text[at:]:
            return -1
        for match in found:
            self._table.hold(int(match[2]), int(match[3]), match[1])
        return at

    def _timer(self, text: str) -> None:
        begin = text.find(" timer:(") + len(" timer:(")
        parts = text[begin : begin + 64].partition(")")[0].split(",")
        kind = TIMERS.get(parts[0], 0)
        if not kind or len(parts) < 3:
            return
        self._table.put("timer", kind)
        self._table.put("timer_ms", self._span_ms(parts[1]))
        retransmits = number(parts[2])
        if retransmits:
            self._table.put("retransmits", retransmits)

    def _span_ms(self, text: str) -> int:
        """`119min`, `59sec`, `1min4sec`, `4.396ms` (which are 4.396 s), `396ms`."""
        known = self._spans.get(text)
        if known is None:
            match = _SPAN.fullmatch(text)
            hours, minutes, seconds, rest = (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
            known = ((hours * 60 + minutes) * 60 + seconds) * 1000 + rest
            if len(self._spans) < 100_000:
                self._spans[text] = known
        return known

    def _info(self, text: str) -> None:
        put = self._table.put
        put("has_info", 1)
        for name, whole, fraction, total in _INFO.findall(text):
            if name == "rtt":
                # Milliseconds.
                put("rtt_us", int(whole) * 1000 + int(fraction[:3].ljust(3, "0")) if fraction else int(whole) * 1000)
            elif name == "retrans":
                put("total_retrans", int(total or 0))
            else:
                put(_COUNTS[name], int(whole))


_LONGEST_USER = 400


def _after(text: str, key: str) -> str | None:
    """The word that follows a key."""
    at = text.find(key)
    if at < 0:
        return None
    at += len(key)
    end = text.find(" ", at)
    return text[at:end] if end >= 0 else text[at:]


def _of_base(text: str, base: int) -> int | None:
    if base == 10:
        return number(text)
    try:
        return int(text, 16) if text.isalnum() and len(text) <= 16 else None
    except ValueError:
        return None


def is_header(line: str) -> bool:
    """`State Recv-Q Send-Q …`, with Netid or without it, or without State."""
    return "Recv-Q" in line and "Send-Q" in line and "Proto" not in line


def lacks_state(header: str) -> bool:
    """`ss state …` with one state leaves it out of every row."""
    return "State" not in header
