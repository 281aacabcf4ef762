"""Which old control events still say something: of all that is over and was not passed on, nothing does.

Old means: wholly before the window. What goes:

- calls that change nothing (wait4, kill, failed calls), and what was overwritten by a later call of its kind
  on the same descriptor (setsockopt, epoll_ctl, fcntl);
- a descriptor's opening and closing, with all between, where nobody was given it meanwhile: no fork, dup, accept
  or SCM_RIGHTS that is itself still kept;
- processes and threads that have ended, with all they did, unless a child of theirs is kept;
- SCM_RIGHTS messages between moments at which none was under way, once what they brought is closed again.

The rule of correctness (tests/recording/test_keep_prune.py): at every moment of the window the replayed tables are
those of the full history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sockscope.model.calls import READS, WRITES, Call
from sockscope.model.event_rows import Rows
from sockscope.model.events import Events
from sockscope.model.seed import Seed
from sockscope.recording.keep_columns import IS_SEND, RANK_BITS, Columns, Flags, last_of_threads, make_columns, of_calls
from sockscope.recording.keep_numbers import (
    EBADF,
    F_SETFD,
    F_SETFL,
    Numbers,
    between,
    carried,
    find_numbers,
    is_copying_fcntl,
)

_FIONBIO, _FIOCLEX, _FIONCLEX = 0x5421, 0x5451, 0x5450
_EINTR, _EALREADY, _EINPROGRESS = 4, 114, 115
_ROUNDS = 4
"""What passed something on goes in one round, what it held back in the next; the rest waits for the next time."""

_OUT_OF_SIGHT = 1000
_TELLING_SENDS = 4

_TASKS = of_calls({Call.task_new, Call.task_exec, Call.task_exit, Call.task_attach, Call.task_detach})
_REPLACES = of_calls({Call.dup2, Call.dup3})
_LASTING = of_calls({Call.unshare, Call.close_range})
_IS_READ = of_calls(READS)
_IS_WRITE = of_calls(WRITES)
_FACTS = of_calls(
    {
        Call.bind, Call.listen, Call.connect, Call.shutdown, Call.setsockopt, Call.getsockopt, Call.getsockname,
        Call.getpeername, Call.epoll_ctl, *READS, *WRITES,
    }
)  # fmt: skip
"""They say something of the descriptor in args[0] for as long as it lives. (Of reads and writes only each
descriptor's last come here.)"""
_BY_SECOND = of_calls({Call.shutdown, Call.fcntl})
_BY_OPTION = of_calls({Call.setsockopt, Call.getsockopt})


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the seed says that pruning must know.

    Attributes:
        tids: tgid → its threads at attach.
        sharing: tgids whose files table is another's too.
        numbers: tgid << 32 | number of each descriptor that was open at attach.
    """

    tids: Mapping[int, frozenset[int]] = field(default_factory=dict)
    sharing: frozenset[int] = frozenset()
    numbers: Rows = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, seed: Seed) -> Known:
        shared = {p.shares_files_with for p in seed.processes if p.shares_files_with is not None}
        sharing = shared | {p.tgid for p in seed.processes if p.shares_files_with is not None}
        numbers = seed.fds["tgid"].astype(np.int64) << 32 | seed.fds["fd"].astype(np.int64)
        tids = {p.tgid: frozenset(p.tids) for p in seed.processes}
        return cls(tids=tids, sharing=frozenset(sharing), numbers=numbers)


def worth_keeping(events: Events, known: Known) -> npt.NDArray[np.bool_]:
    """Which of these events still matter to a window that begins after all of them.

    Args:
        events: control events that ended before the window, and each descriptor's last read and write.
        known: of the seed.

    Returns:
        Shape (n,), bool, by row.
    """
    if not len(events):
        return np.zeros(0, np.bool_)
    pruning = _Pruning(make_columns(events, known.tids, known.sharing), known)
    kept = np.zeros(len(events), np.bool_)
    kept[pruning.columns.row[pruning.run()]] = True
    return kept


class _Pruning:
    """One pass over the events; `keep` is by rank."""

    def __init__(self, columns: Columns, known: Known) -> None:
        self.columns = columns
        self._known = known
        self._numbers = find_numbers(columns)
        opened = np.zeros(len(columns), np.bool_)
        opened[self._numbers.rank[self._numbers.opens]] = True
        self._facts = self._find_facts()
        closes = np.zeros(len(columns), np.bool_)
        closes[self._numbers.rank[~self._numbers.opens]] = True
        lasting = _LASTING[columns.call] & (columns.ret == 0)
        self.keep: Flags = opened | closes | self._facts | _TASKS[columns.call] | lasting
        self.keep |= columns.rights & (columns.ret >= 0) & ~columns.unreturned
        # A copying fcntl that failed is no fact, a message's use of the socket is told by its rights.
        self._drop_redundant_closes()
        self._gone = np.zeros(columns.process_count, np.bool_)
        self._held_sends = self._find_held_sends()

    def run(self) -> Flags:
        for _ in range(_ROUNDS):
            before = int(self.keep.sum())
            self._drop_processes()
            self._drop_numbers()
            if int(self.keep.sum()) == before:
                break
        self._drop_facts()
        self._drop_threads()
        return self.keep

    def _find_facts(self) -> Flags:
        columns = self.columns
        call, ret = columns.call, columns.ret
        facts: Flags = _FACTS[call] & ~columns.rights & (ret >= 0) & ~columns.unreturned
        facts |= (call == Call.connect) & ((ret == -_EINPROGRESS) | (ret == -_EALREADY) | (ret == -_EINTR))
        # A failed read or write comes here only where it was the last that was more than "not now".
        facts |= (_IS_READ[call] | _IS_WRITE[call]) & ~columns.rights & (ret < 0) & (ret != -EBADF)
        flags = (call == Call.fcntl) & ((columns.a1 == F_SETFD) | (columns.a1 == F_SETFL))
        flags |= (call == Call.ioctl) & np.isin(columns.a1, (_FIONBIO, _FIOCLEX, _FIONCLEX))
        facts |= flags & (ret >= 0) & ~columns.unreturned
        return facts

    def _find_held_sends(self) -> Rows:
        """Messages that gave away what their sender still holds: who else had it is a part of its story.

        Only the first few of each: some descriptors are sent again and again.
        """
        columns, numbers = self.columns, self._numbers
        sends = np.flatnonzero(columns.rights & IS_SEND[columns.call] & (columns.ret >= 0))
        if not len(sends) or not len(numbers.keys):
            return sends[:0]
        rank, number = carried(columns, sends)
        mark = numbers.mark_of(columns.process[rank], number, rank)
        still = (mark >= 0) & numbers.opens[mark] & ~numbers.more[mark]
        rank, mark = rank[still], mark[still]
        order = np.argsort(mark, kind="stable")
        rank, mark = rank[order], mark[order]
        place = np.arange(len(mark)) - np.searchsorted(mark, mark)
        return np.unique(rank[place < _TELLING_SENDS])

    def _drop_redundant_closes(self) -> None:
        """A number closed twice was opened by a call that is not traced: both that and this are over."""
        numbers, columns = self._numbers, self.columns
        if len(numbers.keys) < 2:
            return
        again = ~numbers.opens[1:] & ~numbers.opens[:-1] & numbers.more[:-1]
        again &= ~columns.shares[numbers.process[1:]]
        self.keep[numbers.rank[1:][again]] = False

    # --- processes ------------------------------------------------------------------------------------------

    def _drop_processes(self) -> None:
        columns = self.columns
        over = columns.dead & ~columns.shares & ~self._gone
        # Whose messages are not settled yet stays; so does whom a pidfd names.
        over[columns.process[columns.rights & self.keep]] = False
        pidfds = (columns.call == Call.pidfd_open) & self.keep
        named = set(columns.a0[pidfds].tolist())
        over[[self.columns.first_of[tgid] for tgid in named if tgid in columns.first_of]] = False
        births = np.flatnonzero((columns.child >= 0) & self.keep)
        parents, children = columns.process[births], columns.child[births]
        while True:
            holding = parents[~over[children]]
            blocked = over[holding]
            if not blocked.any():
                break
            over[holding] = False
        if not over.any():
            return
        self._gone |= over
        ended = over[columns.process]
        # One that was there at attach stays in the seed: its end must be told.
        seeded = np.zeros(columns.process_count, np.bool_)
        seeded[[columns.first_of[tgid] for tgid in self._known.tids if tgid in columns.first_of]] = True
        told = seeded[columns.process] & np.isin(columns.call, (Call.task_exit, Call.task_exec))
        self.keep &= ~(ended & ~told)
        self.keep[births[over[children]]] = False

    def _drop_threads(self) -> None:
        """Births and exits of threads nothing else is kept of."""
        columns = self.columns
        threads = last_of_threads(columns, self._known.tids)
        if not threads.exited.any():
            return
        names = threads.process << 32 | threads.tid
        mine = columns.process << 32 | columns.tid
        at = np.searchsorted(names, mine)
        marks = (columns.call == Call.task_exit) | (columns.call == Call.task_attach)
        marks |= (columns.call == Call.task_new) & (columns.child < 0) & ~self.keep
        used = np.zeros(len(names), np.bool_)
        used[at[self.keep & ~marks]] = True
        seeded = [
            columns.first_of[tgid] << 32 | tid
            for tgid, tids in self._known.tids.items()
            if tgid in columns.first_of
            for tid in tids
        ]
        # (What an exec ended stays: the exec itself needs it.)
        idle = threads.exited & ~used & ~np.isin(names, np.array(seeded, np.int64))
        # The last thread's end is the process's.
        idle &= ~(columns.dead | columns.shares)[threads.process]
        self.keep &= ~(idle[at] & marks)
        new = np.flatnonzero((columns.call == Call.task_new) & (columns.child < 0))
        born = np.searchsorted(names, columns.born[new] << 32 | columns.a0[new] & 0xFFFF_FFFF)
        self.keep[new[idle[born]]] = False

    # --- descriptors ----------------------------------------------------------------------------------------

    def _drop_numbers(self) -> None:
        numbers, columns = self._numbers, self.columns
        if not len(numbers.keys):
            return
        marks = np.flatnonzero(numbers.opens & numbers.more)
        marks = marks[self.keep[numbers.rank[marks]] & ~columns.shares[numbers.process[marks]]]
        over = np.zeros(len(numbers.keys), np.bool_)
        over[marks] = ~self._passed_on(marks)
        # One call that opened several goes with the last of them, a message with all that were under way with it.
        for _ in range(2):
            lives = np.bincount(numbers.rank[numbers.opens & ~over], minlength=len(columns)) > 0
            over &= ~lives[numbers.rank]
            settled = self._settled_messages(lives)
            unsettled = columns.rights & self.keep & ~settled
            over &= ~(unsettled[numbers.rank] & numbers.opens)
        gone = np.flatnonzero(over)
        self.keep[numbers.rank[gone]] = False
        ends = gone + 1
        closing = ends[~numbers.opens[ends]]
        self.keep[numbers.rank[closing]] = False
        self.keep[numbers.rank[self._first_closes()]] = True
        self.keep[columns.rights & settled] = False

    def _first_closes(self) -> Rows:
        """The marks that tell of a number, open before anything was seen of it, that it is that no longer."""
        numbers, columns = self._numbers, self.columns
        closes = np.flatnonzero(~numbers.opens)
        groups, first = np.unique(numbers.keys[closes] >> RANK_BITS, return_index=True)
        closes = closes[first]
        process = numbers.process[closes]
        name = columns.owner[process] << 32 | numbers.groups[groups] & 0xFFFF_FFFF
        # A child has what its parent had, known or not; a number that is handed out anew was free, though.
        forked = np.zeros(columns.process_count, np.bool_)
        forked[columns.child[columns.child >= 0]] = True
        begins = np.searchsorted(numbers.keys >> RANK_BITS, groups)
        perhaps = forked[process] & (~numbers.opens[begins] | _REPLACES[columns.call[numbers.rank[begins]]])
        there = ~columns.base[process] | perhaps | np.isin(name, self._known.numbers)
        return np.asarray(closes[there & ~self._gone[process]], np.int64)

    def _passed_on(self, marks: Rows) -> Flags:
        """Which of these openings' files somebody else may have got before the number was closed."""
        numbers, columns = self._numbers, self.columns
        process, low, high = numbers.process[marks], numbers.rank[marks], numbers.rank[marks + 1]
        forks = np.flatnonzero((columns.child >= 0) & self.keep)
        sends = np.flatnonzero(columns.rights & IS_SEND[columns.call] & self.keep)
        passed = np.zeros(len(marks), np.bool_)
        for givers in (forks, sends):
            passed |= between(np.sort(columns.process[givers] << RANK_BITS | givers), process, low, high) > 0
        copies = np.flatnonzero(numbers.passes & self.keep)
        group = numbers.group_of(columns.process[copies], columns.a0[copies])
        keys = np.sort((group << RANK_BITS | copies)[group >= 0])
        mine = numbers.keys[marks] >> RANK_BITS
        # dup2 onto the number itself ends it: not between.
        passed |= between(keys, mine, low, high) > 0
        taken = columns.a1[(columns.call == Call.pidfd_getfd) & self.keep]
        if len(taken):
            passed |= np.isin(numbers.groups[mine] & 0xFFFF_FFFF, taken)
        return passed

    def _settled_messages(self, lives: Flags) -> Flags:
        """Which messages with descriptors lie between moments with none under way, with nothing left of what
        they brought. By rank."""
        columns = self.columns
        settled = np.zeros(len(columns), np.bool_)
        messages = np.flatnonzero(columns.rights & self.keep)
        if not len(messages):
            return settled
        sent = IS_SEND[columns.call[messages]]
        if sent.all() and len(messages) >= _OUT_OF_SIGHT:
            # So many sent, and nobody here received one: they went to a process that is not followed.
            settled[messages] = True
            return settled
        walk = np.cumsum(np.where(sent, 1, -1))
        # One received that nobody here sent does not count.
        under_way = walk - np.minimum(np.minimum.accumulate(walk), 0)
        segment = np.cumsum(np.append(0, under_way[:-1] == 0))
        open_ = np.zeros(int(segment[-1]) + 1, np.bool_)
        if under_way[-1]:
            open_[segment[-1]] = True
        open_[segment[~sent & lives[messages]]] = True
        open_[segment[np.isin(messages, self._held_sends)]] = True
        settled[messages[~open_[segment]]] = True
        return settled

    # --- what is known of a descriptor ----------------------------------------------------------------------

    def _drop_facts(self) -> None:
        columns, numbers = self.columns, self._numbers
        facts = np.flatnonzero(self._facts & self.keep & ~is_copying_fcntl(columns))
        if not len(facts):
            return
        own = numbers.mark_of(columns.process[facts], columns.a0[facts], facts)
        over = self._is_over(own, numbers)
        watches = columns.call[facts] == Call.epoll_ctl
        target = numbers.mark_of(columns.process[facts], columns.a2[facts], facts)
        over |= watches & self._is_over(target, numbers)
        self.keep[facts[over]] = False
        facts, own, target, watches = facts[~over], own[~over], target[~over], watches[~over]
        plain = ~columns.shares[columns.process[facts]]
        facts, own, target, watches = facts[plain], own[plain], target[plain], watches[plain]
        if not len(facts):
            return
        call = columns.call[facts].astype(np.int64)
        call = np.where(_IS_READ[call], int(Call.read), np.where(_IS_WRITE[call], int(Call.write), call))
        detail = np.where(_BY_SECOND[call], columns.a1[facts] & 0xFFFF, 0)
        detail = np.where(_BY_OPTION[call], (columns.a1[facts] & 0xFFFF) << 16 | columns.a2[facts] & 0xFFFF, detail)
        flagged = call == Call.ioctl
        detail = np.where(flagged, np.where(columns.a1[facts] == _FIONBIO, 1, 2), detail)
        watched = np.where(target >= 0, target * 2, (columns.a2[facts] & 0xFFFF_FFFF) * 2 + 1)
        detail = np.where(watches, watched << 2 | columns.a1[facts] & 3, detail)
        _, named = np.unique(columns.process[facts] << 32 | columns.a0[facts] & 0xFFFF_FFFF, return_inverse=True)
        own = np.where(own >= 0, own, -1 - named.reshape(-1))
        order = np.lexsort((detail, call, own))
        same = (own[order][1:] == own[order][:-1]) & (call[order][1:] == call[order][:-1])
        same &= detail[order][1:] == detail[order][:-1]
        newer = np.append(same, False)
        # The first connect tells when the connection began, the last where to.
        first = np.append(False, same)
        newer &= ~((call[order] == Call.connect) & ~first)
        self.keep[facts[order[newer]]] = False

    def _is_over(self, mark: Rows, numbers: Numbers) -> Flags:
        """Facts of a life of the number that is no longer told, or was never told and is over."""
        if not len(numbers.keys):
            return np.zeros(len(mark), np.bool_)
        at = np.maximum(mark, 0)
        untold = ~self.keep[numbers.rank[at]] | ~numbers.opens[at]
        return (mark >= 0) & untold & (~numbers.opens[at] & numbers.more[at] | numbers.opens[at])
