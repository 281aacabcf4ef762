"""The three levels Linux really has: files table → open file description → socket.

Source: open(2) "open file description", fork(2), clone(2) CLONE_FILES, unix(7) SCM_RIGHTS.
Times are CLOCK_MONOTONIC ns; ids index the session's lists; `NO_ID` (-1) means none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from sockscope.model.ids import NO_ID
from sockscope.model.seed import FileKind
from sockscope.model.sockaddr import Address


class How(StrEnum):
    """How a descriptor came to be."""

    SNAPSHOT = "snapshot"  # was there at attach; history unknown
    SOCKET = "socket"
    SOCKETPAIR = "socketpair"
    ACCEPT = "accept"
    DUP = "dup"  # dup, dup2, dup3, F_DUPFD
    FORK = "fork"  # a copy of the parent's files table
    UNSHARE = "unshare"
    SCM_RIGHTS = "SCM_RIGHTS"
    PIDFD_GETFD = "pidfd_getfd"
    OPEN = "open"  # any other call that makes a file
    INFERRED = "inferred"  # used before seen; the creating event was missed


class Ended(StrEnum):
    """How a descriptor went."""

    CLOSE = "close"
    CLOSE_RANGE = "close_range"
    REPLACED = "dup2"  # the number was taken over
    EXEC = "exec"  # close-on-exec
    EXIT = "exit"  # the files table's last task ended
    REUSED = "reused"  # the number came back from another call: its close was missed


@dataclass(slots=True, kw_only=True)
class Descriptor:
    """One number in one files table, from its birth to its close: (files table, fd, generation)."""

    id: int
    table: int
    fd: int
    open_file: int
    how: How
    opened_ns: int
    opened_event: int = NO_ID
    source: int = NO_ID
    """The descriptor this was copied from (dup, fork, SCM_RIGHTS), where known."""
    sent_event: int = NO_ID
    """Of SCM_RIGHTS the sendmsg that brought it, where seen."""
    cloexec: bool = False
    closed_ns: int | None = None
    closed_event: int = NO_ID
    ended: Ended | None = None


@dataclass(slots=True, kw_only=True)
class FilesTable:
    """A files_struct. `tgids`: every process that used it, in order (threads share it)."""

    id: int
    tgids: list[int]
    created_ns: int
    forked_from: int = NO_ID
    """The table it was copied from."""
    created_event: int = NO_ID
    live: dict[int, int] = field(default_factory=dict)
    """fd → descriptor id, as of the end of what was replayed."""
    ended_ns: int | None = None


@dataclass(slots=True, kw_only=True)
class OpenFile:
    """An open file description: what dup, fork and SCM_RIGHTS share. The last close ends it."""

    id: int
    kind: FileKind
    created_ns: int
    created_event: int = NO_ID
    witnessed: bool = False
    """Its creation was seen; False: known from a snapshot or inferred."""
    inode: int = 0
    descriptors: list[int] = field(default_factory=list)
    """Every descriptor that ever named it, in order of birth (the live view forgets those that are long closed)."""
    copied: bool = False
    """More than one descriptor named it, whatever is still known of them."""
    in_flight: int = 0
    """References inside unix sockets (SCM_RIGHTS sent and not yet received), where seen."""
    sent_events: list[int] = field(default_factory=list)
    """Every sendmsg that passed it on (SCM_RIGHTS)."""
    released_ns: int | None = None
    """When the last reference went (so FIN could go); None while held, or by someone unseen."""
    # sockets only
    family: int = 0
    socket_type: int = 0
    local: Address | None = None
    peer: Address | None = None
    listening: bool = False
    listener: int = NO_ID
    """Open file of the listener that accepted it."""
    connection: int = NO_ID
    nonblock: bool | None = None
    pair: int = NO_ID
    """The other end of a socketpair (open file id)."""
    far: int = NO_ID
    """The other end of a connected unix socket (open file id), where the target has both."""


@dataclass(slots=True, kw_only=True)
class EpollInterest:
    """One registration in an epoll instance: keyed by number *and* open file (epoll(7), Q6)."""

    epoll: int
    """Open file id of the epoll instance."""
    fd: int
    open_file: int
    events: int
    """EPOLL* bits as last set."""
    data: int
    added_ns: int
    added_event: int = NO_ID
    """NO_ID: known from fdinfo."""
    removed_ns: int | None = None


@dataclass(slots=True, kw_only=True)
class Process:
    """One process of the target."""

    tgid: int
    parent: int = NO_ID
    comm: str = "?"
    exe: str = ""
    cmdline: tuple[str, ...] = ()
    started_ns: int | None = None
    """None: it was there before the watching began."""
    start_event: int = NO_ID
    """task_new event, or NO_ID."""
    exited_ns: int | None = None
    exit_status: int | None = None
    """As wait(2) gives it."""
    execs: list[int] = field(default_factory=list)
    """task_exec events."""
    tids: set[int] = field(default_factory=set)
    netns: int = 0
