"""Lines that are no whole call: halves of calls, ends of tasks, what strace and others say in between.

Read one by one, in order, with a memory of what each thread has begun.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_RESUMED = re.compile(rb"<\.\.\. ([a-z_0-9]+) resumed> ?(.*)$", re.DOTALL)
_RESTART = re.compile(rb"restart_syscall\(<\.\.\. resuming interrupted [^>]*>\)(\s*= .*)$", re.DOTALL)
_INTERRUPTED = re.compile(rb"(?!restart_syscall)([a-z_0-9]{1,40}\(.*\))\s*= \? ERESTART_RESTARTBLOCK\b", re.DOTALL)
_SUPERSEDED = re.compile(rb"\+\+\+ superseded by execve in pid (\d{1,10}) \+\+\+")
SPEAKER = rb"(?:\.{0,2}/[^\s:\"]{0,255})?strace: "
"""strace calls itself as it was called: `strace`, `/usr/bin/strace`, `./strace`."""
_SPEAKS = re.compile(SPEAKER)
_ATTACHED = re.compile(rb"(?:" + SPEAKER + rb")?Process (\d{1,10}) attached(?: with (\d{1,9}) threads)?")
_SPOKEN_WITHIN = re.compile(
    rb"(?:\^C)?(?:"
    + SPEAKER
    + rb")?Process \d{1,10} (?:attached|detached|suspended|resumed)(?: with \d{1,9} threads)?$"
)
_BEGINS = re.compile(rb"[a-z_][a-z0-9_]{0,40}\(|<\.\.\. |\+\+\+ |--- ")
_SPOKEN_ENDS = (b"attached", b"detached", b"suspended", b"resumed", b"threads")
_SAID = re.compile(
    rb"(?:\^C)?"
    + SPEAKER
    + rb"|Process \d+ |\[ Process PID=\d+ runs in |> /|> \S+\(|<detached \.\.\.>|% time  |-{5,} -|"
    rb"[\d.]+ +[\d.]+ +[\d-]+ +\d+|System call usage|syscall +"
)
_UNFINISHED = b"<unfinished ...>"
_DETACHED = b"<detached ...>"
NO_RESTART = b"restart_syscall(<... resuming"


@dataclass(slots=True)
class Found:
    """Calls that the odd lines of a chunk make, in order: parallel lists.

    Attributes:
        line: which line of the chunk ended the call.
        joined: it came in two lines: the time of the second is that of the return.
        unread: line, text, and why it was not understood.
    """

    line: list[int] = field(default_factory=list)
    text: list[bytes] = field(default_factory=list)
    tid: list[int] = field(default_factory=list)
    enter_ns: list[int] = field(default_factory=list)
    joined: list[bool] = field(default_factory=list)
    unread: list[tuple[int, bytes, str]] = field(default_factory=list)

    def add(self, line: int, text: bytes, tid: int, enter_ns: int, joined: bool = False) -> None:
        self.line.append(line)
        self.text.append(text)
        self.tid.append(tid)
        self.enter_ns.append(enter_ns)
        self.joined.append(joined)


@dataclass(slots=True)
class Threads:
    """What the threads of one file are about.

    Attributes:
        begun: tid → what it has called and not returned from, and since when.
        interrupted: tid → the call that a restart_syscall will go on with.
        no_entry_count: returns of calls whose beginning is not in the log.
        attached: tid → how many threads strace found at it. announced: tids that strace said it follows.
        superseded: tid of a process → the thread whose exec took it over, until that exec returns.
        execs: (tid, former tid, time) of those.
        split: a line within which strace said something; the next goes on with it. Text, tid and time.
    """

    begun: dict[int, tuple[bytes, int]] = field(default_factory=dict)
    interrupted: dict[int, bytes] = field(default_factory=dict)
    no_entry_count: int = 0
    attached: dict[int, int] = field(default_factory=dict)
    announced: dict[int, None] = field(default_factory=dict)
    superseded: dict[int, int] = field(default_factory=dict)
    execs: list[tuple[int, int, int]] = field(default_factory=list)
    split: tuple[bytes, int, int] | None = None

    def take(self, found: Found, line: int, text: bytes, tid: int, time_ns: int) -> None:
        """One odd line; what it completes is added to `found`."""
        if self.split is not None and not _SPEAKS.match(text):
            begun, whose, since = self.split
            self.split = None
            if not _BEGINS.match(text):
                self.take(found, line, begun + text, whose, since)
                return
            found.add(line, begun + b" " + _UNFINISHED, whose, since)
        spoken = _SPOKEN_WITHIN.search(text) if text.endswith(_SPOKEN_ENDS) else None
        if spoken and spoken.start() and text[:1].isalpha():
            self._said(spoken.group())
            self.split = (text[: spoken.start()], tid, time_ns)
            return
        if text.startswith(b"<... "):
            self._resumed(found, line, text, tid, time_ns)
        elif text.startswith(b"+++ "):
            self._ended(found, line, text, tid, time_ns)
        elif text.endswith(_UNFINISHED) and text[:1].isalpha():
            self._leave(found, line, tid)
            self.begun[tid] = (text[: -len(_UNFINISHED)].removesuffix(b" "), time_ns)
        elif text.startswith(NO_RESTART):
            self._restarted(found, line, text, tid, time_ns)
        elif _SAID.match(text.lstrip(b" ")):
            self._said(text)
        else:
            interrupted = _INTERRUPTED.match(text)
            if interrupted:
                self.interrupted[tid] = interrupted[1]
            found.add(line, text, tid, time_ns)

    def leave_all(self, found: Found, line: int) -> None:
        """The log ends: what has not returned never will."""
        if self.split is not None:
            begun, tid, time_ns = self.split
            self.split = None
            found.add(line, begun + b" " + _UNFINISHED, tid, time_ns)
        for tid in list(self.begun):
            self._leave(found, line, tid)

    def _leave(self, found: Found, line: int, tid: int) -> None:
        begun = self.begun.pop(tid, None)
        if begun is not None:
            found.add(line, begun[0] + b" " + _UNFINISHED, tid, begun[1])

    def _resumed(self, found: Found, line: int, text: bytes, tid: int, time_ns: int) -> None:
        match = _RESUMED.match(text)
        if match is None:
            found.unread.append((line, text, "neither the beginning nor the end of a call"))
            return
        name, rest = match[1], match[2].lstrip(b" ")
        begun = self.begun.pop(tid, None)
        if begun is None:
            # It began while the process was alone, and strace named nobody.
            unnamed = next((who for who in self.begun if who < 0), 0)
            if unnamed and self.begun[unnamed][0].startswith(name + b"("):
                begun = self.begun.pop(unnamed)
        if tid in self.superseded and name.startswith(b"exec"):
            former = self.superseded.pop(tid)
            # The thread that called exec has the number of its process from here on.
            begun = self.begun.pop(former, None)
            self.execs.append((tid, former, time_ns))
        if begun is None or not begun[0].startswith(name + b"("):
            if begun is not None:
                self.begun[tid] = begun
                self._leave(found, line, tid)
            self.no_entry_count += 1
            return
        if rest.startswith(_UNFINISHED):
            rest = rest[len(_UNFINISHED) :]
            if not rest:
                self.begun[tid] = begun
                return
        if rest == _DETACHED:
            self.begun[tid] = begun
            self._leave(found, line, tid)
            return
        whole = begun[0] + rest
        interrupted = _INTERRUPTED.match(whole)
        if interrupted:
            self.interrupted[tid] = interrupted[1]
        if whole.startswith(NO_RESTART):
            self._restarted(found, line, whole, tid, begun[1], joined=True)
            return
        found.add(line, whole, tid, begun[1], joined=True)

    def _restarted(
        self, found: Found, line: int, text: bytes, tid: int, enter_ns: int, *, joined: bool = False
    ) -> None:
        match = _RESTART.match(text)
        before = self.interrupted.get(tid)
        if match is None or before is None:
            self.no_entry_count += 1
            return
        found.add(line, before + match[1], tid, enter_ns, joined)

    def _ended(self, found: Found, line: int, text: bytes, tid: int, time_ns: int) -> None:
        match = _SUPERSEDED.match(text)
        if match:
            self.superseded[tid] = int(match[1])
            self.begun.pop(tid, None)
            return
        self._leave(found, line, tid)
        self.interrupted.pop(tid, None)
        found.add(line, text, tid, time_ns)

    def _said(self, text: bytes) -> None:
        match = _ATTACHED.match(text)
        if match:
            self.announced[int(match[1])] = None
            if match[2]:
                self.attached[int(match[1])] = int(match[2])
