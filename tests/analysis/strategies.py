"""A small kernel that does what it is told and keeps the truth, and hypothesis strategies to tell it.

Each operation is four small integers, read modulo whatever there is to choose from, so that every list
of operations is a valid history: numbers are the lowest free ones, as POSIX promises.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from sockscope.model.calls import Call
from sockscope.model.seed import FileKind
from tests.analysis.builders import SOCK_CLOEXEC, SOCK_STREAM, Script

ROOT = 100

Operation = tuple[int, int, int, int]

operations: st.SearchStrategy[list[Operation]] = st.lists(
    st.tuples(st.integers(0, 15), st.integers(0, 7), st.integers(0, 7), st.integers(0, 3)), max_size=60
)


@dataclass(eq=False)
class File:
    """An open file description."""

    name: int
    kind: str
    holders: int = 0
    in_flight: int = 0
    pair: File | None = None
    queue: list[list[File]] = field(default_factory=list)

    @property
    def released(self) -> bool:
        return not self.holders and not self.in_flight


@dataclass(eq=False)
class Table:
    """A files_struct: fd → (file, close-on-exec)."""

    fds: dict[int, tuple[File, bool]] = field(default_factory=dict)
    users: int = 1


class Kernel:
    """Runs operations, writes the events a tracer would see, and knows what is true."""

    def __init__(self) -> None:
        self.script = Script().process(ROOT)
        self.files: list[File] = []
        self.tables: dict[int, Table] = {ROOT: Table()}
        self.tgid: dict[int, int] = {ROOT: ROOT}
        self.interests: set[tuple[int, int, int]] = set()
        self.next_tid = ROOT + 1
        for fd in (0, 1, 2):
            self._give(self.tables[ROOT], fd, self._file("other"), False)
            self.script.seed_fd(ROOT, fd, kind=FileKind.OTHER)

    def run(self, operations: list[Operation]) -> None:
        kinds = (
            self.socket, self.pair, self.dup, self.dup2, self.close, self.fork, self.thread, self.exec, self.exit,
            self.unshare, self.close_range, self.send, self.receive, self.epoll, self.watch, self.close,
        )  # fmt: skip
        for number, a, b, c in operations:
            tids = sorted(self.tgid)
            if not tids:
                return
            kinds[number % len(kinds)](tids[a % len(tids)], a, b, c)

    # --- truth ----------------------------------------------------------------------------------------------

    def _file(self, kind: str) -> File:
        self.files.append(File(len(self.files), kind))
        return self.files[-1]

    def _give(self, table: Table, fd: int, file: File, cloexec: bool) -> None:
        if fd in table.fds:
            self._take(table, fd)
        table.fds[fd] = (file, cloexec)
        file.holders += 1

    def _take(self, table: Table, fd: int) -> None:
        file, _ = table.fds.pop(fd)
        file.holders -= 1
        self._settle(file)

    def _settle(self, file: File) -> None:
        if not file.released:
            return
        self.interests = {i for i in self.interests if file.name not in (i[0], i[2])}
        queue, file.queue = file.queue, []
        for message in queue:
            for sent in message:
                sent.in_flight -= 1
                self._settle(sent)

    def _free(self, table: Table, at_least: int = 0) -> int:
        fd = at_least
        while fd in table.fds:
            fd += 1
        return fd

    def _pick(self, tid: int, index: int, kind: str | None = None) -> int | None:
        fds = sorted(fd for fd, (file, _) in self.tables[tid].fds.items() if kind in (None, file.kind))
        return fds[index % len(fds)] if fds else None

    def _part(self, tid: int) -> None:
        table = self.tables[tid]
        if table.users == 1:
            return
        table.users -= 1
        self.tables[tid] = self._copy(table)

    def _copy(self, table: Table) -> Table:
        made = Table()
        for fd, (file, cloexec) in table.fds.items():
            self._give(made, fd, file, cloexec)
        return made

    def _leave(self, tid: int) -> None:
        table = self.tables.pop(tid)
        table.users -= 1
        if not table.users:
            for fd in list(table.fds):
                self._take(table, fd)

    # --- operations -----------------------------------------------------------------------------------------

    def _call(self, tid: int, call: Call, *args: int, ret: int = 0, **more: object) -> None:
        self.script.event(self.tgid[tid], tid, call, *args, ret=ret, **more)  # type: ignore[arg-type]

    def socket(self, tid: int, a: int, b: int, c: int) -> None:
        table = self.tables[tid]
        fd = self._free(table)
        self._give(table, fd, self._file("socket"), bool(c & 1))
        self._call(tid, Call.socket, 2, SOCK_STREAM | (SOCK_CLOEXEC if c & 1 else 0), ret=fd)

    def pair(self, tid: int, a: int, b: int, c: int) -> None:
        table = self.tables[tid]
        ends = self._file("unix"), self._file("unix")
        ends[0].pair, ends[1].pair = ends[1], ends[0]
        first = self._free(table)
        self._give(table, first, ends[0], bool(c & 1))
        second = self._free(table)
        self._give(table, second, ends[1], bool(c & 1))
        flags = SOCK_STREAM | (SOCK_CLOEXEC if c & 1 else 0)
        self._call(tid, Call.socketpair, 1, flags, pair=(first, second))

    def dup(self, tid: int, a: int, b: int, c: int) -> None:
        table, old = self.tables[tid], self._pick(tid, b)
        if old is None:
            return
        fd = self._free(table)
        self._give(table, fd, table.fds[old][0], c == 3)
        if c == 3:
            self._call(tid, Call.fcntl, old, 1030, 0, ret=fd)
        else:
            self._call(tid, Call.dup, old, ret=fd)

    def dup2(self, tid: int, a: int, b: int, c: int) -> None:
        table, old = self.tables[tid], self._pick(tid, b)
        if old is None:
            return
        new = c * 3
        if new != old:
            self._give(table, new, table.fds[old][0], False)
        self._call(tid, Call.dup2, old, new, ret=new)

    def close(self, tid: int, a: int, b: int, c: int) -> None:
        table, fd = self.tables[tid], self._pick(tid, b)
        if fd is None or c == 3:
            self._call(tid, Call.close, 77, ret=-9)
            return
        self._take(table, fd)
        self._call(tid, Call.close, fd)

    def close_range(self, tid: int, a: int, b: int, c: int) -> None:
        first, last, flags = b, b + a, (0, 0, 4, 2)[c]
        if flags == 2:
            self._part(tid)
        table = self.tables[tid]
        for fd in [fd for fd in table.fds if first <= fd <= last]:
            if flags == 4:
                table.fds[fd] = (table.fds[fd][0], True)
            else:
                self._take(table, fd)
        self._call(tid, Call.close_range, first, last, flags)

    def fork(self, tid: int, a: int, b: int, c: int) -> None:
        child = self.next_tid
        self.next_tid += 1
        self.script.fork(self.tgid[tid], child, tid=tid)
        self.tables[child] = self._copy(self.tables[tid])
        self.tgid[child] = child

    def thread(self, tid: int, a: int, b: int, c: int) -> None:
        child = self.next_tid
        self.next_tid += 1
        self.script.thread(self.tgid[tid], child, by=tid)
        self.tables[child] = self.tables[tid]
        self.tables[tid].users += 1
        self.tgid[child] = self.tgid[tid]

    def exec(self, tid: int, a: int, b: int, c: int) -> None:
        tgid = self.tgid[tid]
        table = self.tables[tid]
        self.script.exec(tgid, tid=tid)
        others = [t for t, g in self.tgid.items() if g == tgid and t != tid]
        for other in others:
            del self.tgid[other]
            self._leave(other)
        self._part(tid)
        table = self.tables.pop(tid)
        del self.tgid[tid]
        self.tables[tgid], self.tgid[tgid] = table, tgid
        for fd in [fd for fd, (_, cloexec) in table.fds.items() if cloexec]:
            self._take(table, fd)

    def exit(self, tid: int, a: int, b: int, c: int) -> None:
        if c != 0:
            return  # else few histories live long
        self.script.exit(self.tgid[tid], tid)
        del self.tgid[tid]
        self._leave(tid)

    def unshare(self, tid: int, a: int, b: int, c: int) -> None:
        self._part(tid)
        self._call(tid, Call.unshare, 0x400)

    def send(self, tid: int, a: int, b: int, c: int) -> None:
        table, via = self.tables[tid], self._pick(tid, b, "unix")
        fds = [fd for fd in (self._pick(tid, a), self._pick(tid, a + c)) if fd is not None][: 1 + c % 2]
        if via is None or not fds:
            return
        peer = table.fds[via][0].pair
        # An end in flight inside itself is the kernel's garbage collector's business, not ours.
        sent = [table.fds[fd][0] for fd in fds]
        if peer is None or peer.released or any(file.kind == "unix" for file in sent):
            return
        for file in sent:
            file.in_flight += 1
        peer.queue.append(sent)
        self._call(tid, Call.sendmsg, via, ret=1, control=fds)

    def receive(self, tid: int, a: int, b: int, c: int) -> None:
        table, via = self.tables[tid], self._pick(tid, b, "unix")
        if via is None or not table.fds[via][0].queue:
            return
        message = table.fds[via][0].queue.pop(0)
        numbers = []
        for file in message:
            numbers.append(self._free(table))
            self._give(table, numbers[-1], file, bool(c & 1))
            file.in_flight -= 1
        self._call(tid, Call.recvmsg, via, 0, 0x40000000 if c & 1 else 0, ret=1, control=numbers)

    def epoll(self, tid: int, a: int, b: int, c: int) -> None:
        table = self.tables[tid]
        fd = self._free(table)
        self._give(table, fd, self._file("epoll"), bool(c & 1))
        self._call(tid, Call.epoll_create1, SOCK_CLOEXEC if c & 1 else 0, ret=fd)

    def watch(self, tid: int, a: int, b: int, c: int) -> None:
        table, epoll, fd = self.tables[tid], self._pick(tid, a, "epoll"), self._pick(tid, b, "socket")
        if epoll is None or fd is None:
            return
        key = (table.fds[epoll][0].name, fd, table.fds[fd][0].name)
        if key in self.interests and c < 2:
            self.interests.discard(key)
            self._call(tid, Call.epoll_ctl, epoll, 2, fd)
        elif key in self.interests:
            self._call(tid, Call.epoll_ctl, epoll, 3, fd, epoll=[(1, fd)])
        else:
            self.interests.add(key)
            self._call(tid, Call.epoll_ctl, epoll, 1, fd, epoll=[(1, fd)])
