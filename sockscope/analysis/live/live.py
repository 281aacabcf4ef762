"""The live view: batches of events become lines, each with the connection it belongs to."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from sockscope.analysis.live.kernel import KernelLines, in_their_places, kernel_rows
from sockscope.analysis.live.memory import Forgetting
from sockscope.analysis.live.names import Names
from sockscope.analysis.narration.describe import describe_view
from sockscope.analysis.narration.describe_values import passed_fds
from sockscope.analysis.narration.describe_view import View
from sockscope.analysis.narration.describe_words import LISTENER, words_of
from sockscope.analysis.narration.hands import Hands
from sockscope.analysis.narration.http1 import Http1State
from sockscope.analysis.replay.control import by_call
from sockscope.analysis.replay.order import replay_order
from sockscope.analysis.replay.replay import Replay
from sockscope.analysis.session import Ids
from sockscope.model.calls import EPOLL_WAITS, FD_IN_ARG0, READS, WAITS, WRITES, Call
from sockscope.model.descriptors import OpenFile
from sockscope.model.event_rows import subset
from sockscope.model.events import EventFlag, Events, Section
from sockscope.model.live import LineKind, LiveBatch, LiveLine
from sockscope.model.seed import FileKind, Seed
from sockscope.model.sockaddr import Family

_TASKS: Final = {Call.task_new, Call.task_exec, Call.task_exit, Call.task_signal, Call.task_stop, Call.task_detach}
_SOCKET_CALLS: Final = frozenset(call for call in Call if Call.socket <= call <= Call.recvmmsg)
_ON_SOCKETS: Final = READS | WRITES | {Call.close, Call.dup, Call.dup2, Call.dup3}
"""Shown where the descriptor is a socket; files, pipes and terminals are left out."""
_IS_SHOWN: Final = by_call(_TASKS | _SOCKET_CALLS | _ON_SOCKETS | WAITS | {Call.epoll_ctl})
_LOOKED_AT: Final = 4
"""Events looked at for one line of room."""
_PASS: Final = frozenset({Call.sendmsg, Call.recvmsg})
SOCK_STREAM: Final = 1
_TELL_AGAIN_NS: Final = 10_000_000_000
"""How long a repetition goes on before it is told again."""

_REMEMBERED_NS: Final = 2_000_000_000
"""Calls that were under way when their descriptor was closed still name it so long."""


@dataclass(slots=True)
class _Run:
    """One thread's wait that times out again and again."""

    text: str
    line: LiveLine
    first_ns: int
    told_ns: int
    last_ns: int
    count: int = 0
    """Since it was last told."""
    total: int = 0


class LiveNarrator:
    """Turns batches of events into lines.

    Args:
        seed: the target as found at attach.
        labels: socket inode → peer, for the connections that were there at attach (sock_diag knows them); of unix
            listeners what their clients are called.
        listeners: inodes of the sockets that listened then.
    """

    def __init__(
        self, seed: Seed, labels: Mapping[int, str] | None = None, listeners: Collection[int] = frozenset()
    ) -> None:
        self._replay = Replay(seed)
        self._forgetting = Forgetting(self._replay)
        self._names = Names(self._replay)
        self._labels = dict(labels or {})
        self._listeners = frozenset(listeners)
        self._held = Events.empty()
        self._http: dict[int, Http1State] = {}
        self._runs: dict[int, _Run] = {}
        self._kernel = KernelLines()
        self._next_id = 0
        self._first_ns = -1

    def feed(self, events: Events, complete_ns: int, *, max_lines: int = 200) -> LiveBatch:
        """Lines of what has become certain.

        Args:
            events: a batch as an engine delivers it.
            complete_ns: up to when nothing more will come; what is later is held back for the next call.
            max_lines: room there is; what goes beyond is counted, not told.
        """
        if self._first_ns < 0 and len(events):
            times = events.records["exit_ns"]
            self._first_ns = int(times[times >= 0].min(initial=complete_ns))
        pending = Events.concat([self._held, events]) if len(self._held) else events
        order, effective = replay_order(pending)
        ripe = effective[order] <= complete_ns
        told = kernel_rows(pending)
        due = effective[told] <= complete_ns
        self._held = subset(pending, np.concatenate([order[~ripe], told[~due]]))
        return self._tell(pending, order[ripe], told[due], effective, max_lines)

    def finish(self, *, max_lines: int = 200) -> LiveBatch:
        """What was held back, and the repetitions not yet told."""
        pending, self._held = self._held, Events.empty()
        order, effective = replay_order(pending)
        told = self._tell(pending, order, kernel_rows(pending), effective, max_lines)
        rest = [line for run in self._runs.values() if (line := _again(run)) is not None]
        self._runs.clear()
        lines = sorted([*told.lines, *rest], key=lambda line: line.time_ns)
        return LiveBatch(lines=tuple(lines), left_out_count=told.left_out_count)

    def _tell(self, events: Events, order: Ids, told: Ids, effective: Ids, max_lines: int) -> LiveBatch:
        if not len(order):
            return LiveBatch(lines=tuple(self._kernel.lines(events, told)))
        first_id = self._next_id
        self._replay.feed(events, order, effective_ns=effective, first_id=first_id)
        self._next_id += len(events)
        self._names.update()
        # What the offline join reads later; nobody reads it here.
        del self._replay.touched[:], self._replay.targets[:]
        shown = order[_IS_SHOWN[events.records["call"][order]]]
        lines: list[LiveLine] = []
        looked_at = 0
        for row in shown[: max_lines * _LOOKED_AT].tolist():
            if len(lines) >= max_lines:
                break
            looked_at += 1
            lines.extend(self._lines(View.of(events, row), int(effective[row]), first_id + row))
        self._forget(int(effective[order[-1]]))
        lines = in_their_places(lines, self._kernel.lines(events, told))
        return LiveBatch(lines=tuple(lines), left_out_count=len(shown) - looked_at)

    def _lines(self, view: View, effective_ns: int, event: int) -> list[LiveLine]:
        """None, one, or two lines: what ends a repetition also tells how often it was."""
        file = self._file(view, effective_ns)
        if (
            view.call in _ON_SOCKETS
            and view.call not in _SOCKET_CALLS
            and (file is None or file.kind != FileKind.SOCKET)
        ):
            return []
        line = self._line(view, file, effective_ns, event)
        run = self._runs.get(view.tid)
        if view.call in WAITS and view.ret == 0 and view.returned:
            return self._repeat(view, line, run)
        if run is None or view.is_task:
            return [line]
        del self._runs[view.tid]
        ended = _again(run)
        return [ended, line] if ended else [line]

    def _repeat(self, view: View, line: LiveLine, run: _Run | None) -> list[LiveLine]:
        if run is None or run.text != line.text:
            self._runs[view.tid] = _Run(line.text, line, view.exit_ns, view.exit_ns, view.exit_ns)
            ended = _again(run) if run else None
            return [ended, line] if ended else [line]
        run.count += 1
        run.total += 1
        run.last_ns = view.exit_ns
        run.line = line
        if view.exit_ns - run.told_ns < _TELL_AGAIN_NS:
            return []
        again = _again(run)
        run.told_ns = view.exit_ns
        run.count = 0
        return [again] if again else []

    def _file(self, view: View, effective_ns: int) -> OpenFile | None:
        """The open file the event is about: for accept the new connection, else what args[0] names."""
        if view.call in (Call.accept, Call.accept4) and not view.errno and view.returned:
            return self._names.open_file(view.tid, view.ret, effective_ns)
        if view.call == Call.epoll_ctl:
            return self._names.open_file(view.tid, view.int_arg(2), effective_ns)
        if view.call in _PASS and (passed := passed_fds(view.sections.get(Section.CONTROL, b""))):
            # The connection on its way matters, not the socket that carries it.
            handed = self._names.open_file(view.tid, passed[0], effective_ns)
            if handed is not None and handed.peer is not None:
                return handed
        if view.call in FD_IN_ARG0 and view.call not in WAITS:
            return self._names.open_file(view.tid, view.int_arg(0), effective_ns)
        return None

    def _line(self, view: View, file: OpenFile | None, effective_ns: int, event: int) -> LiveLine:
        label = self._label(file)
        if label:
            self._kernel.saw(label)
        state = self._http.setdefault(file.id, Http1State()) if file is not None and label else None
        process = self._replay.processes.get(view.tgid)
        naming = partial(self._name, view, effective_ns)
        return LiveLine(
            # Under way before the attach and never returned: told at the beginning.
            time_ns=view.time_ns if view.time_ns >= 0 else self._first_ns,
            duration_ns=view.duration_ns,
            tgid=view.tgid,
            tid=view.tid,
            comm=process.comm if process else "?",
            connection=label,
            text=describe_view(view),
            words=self._words(view, file, effective_ns, event) or words_of(view, state, naming),
            kind=_kind(view, file),
            failed=bool(view.errno) and not view.flags & EventFlag.TRACER_EINTR,
        )

    def _words(self, view: View, file: OpenFile | None, effective_ns: int, event: int) -> str:
        """What only the descriptors tell: who gets a connection handed, and what a close leaves behind."""
        if file is None or file.listening or view.errno:
            return ""
        hands = Hands(self._replay, file)
        if view.call is Call.close:
            stream = file.socket_type in (0, SOCK_STREAM) and file.peer is not None and file.family != Family.UNIX
            return hands.closing(event, effective_ns, stream=stream)
        if view.call is Call.sendmsg:
            return hands.sending(event, final=False)
        return hands.arriving(event) if view.call is Call.recvmsg else ""

    def _name(self, view: View, effective_ns: int, key: int) -> str:
        """A `Naming` of what a wait reports."""
        if view.call in EPOLL_WAITS:
            epoll = self._names.open_file(view.tid, view.int_arg(0), effective_ns)
            file = self._names.watched(epoll.id, key, effective_ns) if epoll is not None else None
        else:
            file = self._names.open_file(view.tid, key, effective_ns)
        if file is not None and (file.listening or file.inode in self._listeners):
            return LISTENER
        return self._label(file)

    def _label(self, file: OpenFile | None) -> str:
        if file is None or file.listening:
            return ""
        if file.peer is not None and (file.peer.family != Family.UNIX or file.peer.packed):
            return str(file.peer)
        if known := self._labels.get(file.inode, "") if file.inode else "":
            return known
        return self._client_of(file.listener)

    def _client_of(self, listener: int) -> str:
        """Clients of unix sockets have no name of their own: the listener's says most."""
        if listener < 0:
            return ""
        file = self._replay.open_files[listener]
        if file.local is not None and file.local.family == Family.UNIX and any(file.local.packed):
            return f"client of {file.local}"
        return self._labels.get(file.inode, "") if file.inode else ""

    def _forget(self, now_ns: int) -> None:
        """HTTP standing of connections that are over, and now and then all else that has ended."""
        files = self._replay.open_files
        for gone in [number for number in self._http if files[number].released_ns is not None]:
            del self._http[gone]
        if self._forgetting.due:
            self._forgetting.forget(now_ns - _REMEMBERED_NS)
            self._names.forget()
            for tid in self._runs.keys() - self._replay.task_table.keys():
                del self._runs[tid]


def _kind(view: View, file: OpenFile | None) -> LineKind:
    if view.is_task:
        return LineKind.TASK
    if view.call in WAITS:
        return LineKind.WAIT
    accepted = view.call in (Call.accept, Call.accept4) and not view.errno
    if accepted or (file is not None and not file.listening and (file.peer is not None or view.call in READS | WRITES)):
        return LineKind.CONNECTION
    return LineKind.SOCKET


def _again(run: _Run) -> LiveLine | None:
    """The line that tells a repetition; None where it never came again."""
    if not run.count:
        return None
    line = run.line
    return LiveLine(
        time_ns=line.time_ns,
        duration_ns=line.duration_ns,
        tgid=line.tgid,
        tid=line.tid,
        comm=line.comm,
        connection=line.connection,
        text=line.text,
        words=line.words,
        kind=line.kind,
        repeated=run.count,
        period_ns=(run.last_ns - run.first_ns) // run.total,
    )
