"""Distinct texts and what they mean: each is encoded once, and stands for all events that read the same.

The number of texts kept is bounded: when the book is full it is begun anew, and what is still in use
is encoded once more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.model.calls import Call
from sockscope.model.events import EVENT_DTYPE
from sockscope.sources.syscalls.strace_log.encode import Encoded, NotUnderstood, encode
from sockscope.sources.syscalls.strace_log.missing import is_unfiltered_call
from sockscope.sources.syscalls.strace_log.names import NameFacts, read_name
from sockscope.sources.syscalls.strace_log.odd_lines import SPEAKER
from sockscope.sources.syscalls.strace_log.task_lines import encode_task_line

Ids = npt.NDArray[np.int64]

UNTRACED = -1
"""A call that is of no interest."""
FIRST_UNREAD = -2
"""From here downwards: not understood, for the reason of this number."""

TEXT_LIMIT = 200_000
TEXT_BYTES_LIMIT = 48 << 20
LONG_TEXT_BYTES = 8192
"""Longer texts are not kept: hardly any comes twice."""

NAME_DTYPE = np.dtype(
    [
        ("fd", "<i4"),
        ("key", "<i8"),  # the same number: the same name
        ("inode", "<u8"),
        ("local", "<u8"),  # blob offset of the section
        ("peer", "<u8"),
        ("local_bytes", "<u1"),
        ("peer_bytes", "<u1"),
        ("kind", "<u1"),
        ("made", "<u1"),  # 1: the call made this descriptor
    ]
)

_CALL = re.compile(rb"([a-z_][a-z0-9_]{0,40})\((.*)\)\s*= ([-?0-9].*)$", re.DOTALL)
_BEGUN = re.compile(rb"([a-z_][a-z0-9_]{0,40})\((.*)$", re.DOTALL)
_UNFINISHED = b" <unfinished ...>"
_TAMPERED = re.compile(rb"(?: \((?:INJECTED|DELAYED)[^()]{0,40}\)){1,4}$")
_STRACE_SPEAKS = re.compile(
    rb"(?:\^C)?" + SPEAKER + rb"Process \d+ (?:detached|attached|suspended|resumed).*$", re.DOTALL
)

_MAKES = frozenset(
    {
        Call.socket, Call.accept, Call.accept4, Call.dup, Call.dup2, Call.dup3, Call.fcntl, Call.pidfd_getfd,
        Call.pidfd_open, Call.epoll_create, Call.epoll_create1, Call.openat, Call.open, Call.openat2, Call.creat,
        Call.eventfd, Call.eventfd2, Call.timerfd_create, Call.signalfd, Call.signalfd4, Call.memfd_create,
        Call.io_uring_setup,
    }
)  # fmt: skip
_MAKES_PAIRS = frozenset({Call.socketpair, Call.pipe, Call.pipe2})
_MAY_RECEIVE = frozenset({Call.recvmsg, Call.recvmmsg})


@dataclass(frozen=True, slots=True)
class _Name:
    key: int
    facts: NameFacts
    local: int
    peer: int


class Templates:
    """The book of texts.

    Args:
        blob: sections are appended to it.

    Attributes:
        rows: EVENT_DTYPE by template id; times and thread are zero.
        name_start, name_count: where in `names` those of a template begin, and how many they are.
        names: NAME_DTYPE.
        reasons: why a text was not understood; `reasons[FIRST_UNREAD - id]`.
        unfiltered: a call was among them that no filter of socket calls keeps.
    """

    def __init__(self, blob: bytearray, *, text_limit: int = TEXT_LIMIT) -> None:
        self._blob = blob
        self._limit = text_limit
        self._next_key = 0
        self.unfiltered = False
        self._begin()

    def _begin(self) -> None:
        self._ids: dict[bytes, int] = {}
        self._named: dict[bytes, _Name] = {}
        self._blobs: dict[bytes, int] = {}
        self._bytes = 0
        self.count = 0
        self.rows = np.zeros(1024, EVENT_DTYPE)
        self.name_start = np.zeros(1024, np.int64)
        self.name_count = np.zeros(1024, np.int64)
        self.names = np.zeros(1024, NAME_DTYPE)
        self._name_total = 0
        self.reasons: list[str] = []

    def make_room(self, wanted: int) -> None:
        """Forget all texts if so many more would be too many; ids given before are void then."""
        if len(self._ids) + wanted > self._limit or self._bytes > TEXT_BYTES_LIMIT:
            self._begin()

    def look_up(self, texts: list[bytes]) -> Ids:
        """The id of each text: ≥ 0 a template, UNTRACED, or FIRST_UNREAD and below."""
        get = self._ids.get
        found = [get(text) for text in texts]
        if None in found:
            for at, known in enumerate(found):
                if known is None:
                    found[at] = self._learn(texts[at])
        return np.array(found, np.int64)

    def _learn(self, text: bytes) -> int:
        known = self._ids.get(text)
        if known is not None:
            return known
        try:
            encoded = self._encode(text)
        except NotUnderstood as reason:
            why = str(reason)
            number = FIRST_UNREAD - len(self.reasons)
            self.reasons.append(why)
        else:
            number = UNTRACED if encoded is None else self._add(encoded)
        if len(text) <= LONG_TEXT_BYTES:
            self._ids[text] = number
            self._bytes += len(text) + 100
        return number

    def _encode(self, text: bytes) -> Encoded | None:
        if text[:4] in (b"+++ ", b"--- "):
            return encode_task_line(text)
        match = _CALL.match(text)
        if match is None:
            return _begun(text)
        name = match[1].decode("ascii")
        arguments, result = match[2], match[3]
        if arguments.endswith(_UNFINISHED):
            arguments = arguments[: -len(_UNFINISHED)]
        encoded = encode(name, arguments, _TAMPERED.sub(b"", result))
        if encoded is None:
            self.unfiltered = self.unfiltered or is_unfiltered_call(name)
        return encoded

    def _add(self, encoded: Encoded) -> int:
        at = self.count
        if at == len(self.rows):
            self.rows = np.concatenate([self.rows, np.zeros(at, EVENT_DTYPE)])
            self.name_start = np.concatenate([self.name_start, np.zeros(at, np.int64)])
            self.name_count = np.concatenate([self.name_count, np.zeros(at, np.int64)])
        self.count += 1
        row = self.rows[at]
        row["call"] = encoded.call
        row["ret"] = encoded.ret
        row["args"] = encoded.args
        row["flags"] = encoded.flags
        row["blob_offset"] = self._store(encoded.blob)
        row["blob_bytes"] = len(encoded.blob)
        self.name_start[at] = self._name_total
        self.name_count[at] = len(encoded.named)
        for named in encoded.named:
            self._add_name(named.fd, named.text, _made(encoded, named.fd))
        return at

    def _store(self, blob: bytes) -> int:
        """Where these bytes lie; the same bytes lie once."""
        if not blob:
            return 0
        at = self._blobs.get(blob)
        if at is None:
            at = len(self._blob)
            self._blob += blob
            if len(blob) <= LONG_TEXT_BYTES:
                self._blobs[blob] = at
                self._bytes += len(blob) + 60
        return at

    def _add_name(self, fd: int, text: bytes, made: bool) -> None:
        name = self._named.get(text)
        if name is None:
            facts = read_name(text)
            name = _Name(self._next_key, facts, self._store(facts.local), self._store(facts.peer))
            self._next_key += 1
            self._named[text] = name
            self._bytes += len(text) + 200
        if self._name_total == len(self.names):
            self.names = np.concatenate([self.names, np.zeros(len(self.names), NAME_DTYPE)])
        facts = name.facts
        self.names[self._name_total] = (
            fd, name.key, facts.inode, name.local, name.peer, len(facts.local), len(facts.peer), facts.kind, made,
        )  # fmt: skip
        self._name_total += 1


def _begun(text: bytes) -> Encoded | None:
    """A call whose end is not in the text: strace spoke in between, or the program ended within it."""
    match = _BEGUN.match(text)
    if match is None:
        raise NotUnderstood("no line of strace")
    arguments = match[2]
    for ending in (_UNFINISHED, b" <detached ...>", b"<detached ...>", b"<unavailable>"):
        if arguments.endswith(ending):
            return _entered(match[1], arguments[: -len(ending)])
    spoken = _STRACE_SPEAKS.search(arguments)
    if spoken:
        return _entered(match[1], arguments[: spoken.start()])
    raise NotUnderstood("the call has no result: the line is cut")


def _entered(name: bytes, arguments: bytes) -> Encoded | None:
    return encode(name.decode("ascii"), arguments.rstrip(b" ,"), b"")


def _made(encoded: Encoded, fd: int) -> bool:
    """Whether the call made this descriptor."""
    if encoded.call in _MAKES:
        return fd == encoded.ret and not (encoded.call is Call.dup2 and fd == encoded.args[0])
    if encoded.call in _MAKES_PAIRS:
        return encoded.ret == 0
    return encoded.call in _MAY_RECEIVE and encoded.ret >= 0 and fd != encoded.args[0]
