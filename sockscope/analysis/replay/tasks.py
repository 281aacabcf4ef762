"""Replay of tasks: the seed, fork and clone, exec, exit, unshare."""

from __future__ import annotations

from collections.abc import Callable

from sockscope.analysis.replay.decode import text_of
from sockscope.analysis.replay.state import ReplayState, Step
from sockscope.model.calls import Call
from sockscope.model.constants import CLONE_FILES, CLONE_THREAD
from sockscope.model.descriptors import Ended, EpollInterest, FilesTable, How, OpenFile, Process
from sockscope.model.events import Section
from sockscope.model.ids import NO_ID
from sockscope.model.seed import FileKind, Seed

CLONE_PARENT = 0x8000


def load_seed(state: ReplayState, seed: Seed) -> None:
    """Begin with the target as it was found.

    What was found later, of processes that came under watch later, is loaded with the rest: every descriptor
    counts from the time it was seen.
    """
    fds = sorted(seed.fds.tolist(), key=lambda row: (row[1], row[2]))
    seen_ns: dict[int, int] = {}
    for row in fds:
        seen_ns[row[1]] = min(row[0], seen_ns.get(row[1], row[0]))
    first_ns = min(seen_ns.values(), default=0)
    for found in seed.processes:
        state.processes[found.tgid] = Process(
            tgid=found.tgid,
            parent=found.ppid,
            comm=found.comm,
            exe=found.exe,
            cmdline=found.cmdline,
            started_ns=_began_later(found.started_ns, first_ns),
            tids=set(found.tids),
            netns=found.netns,
        )
        state.seeded_tgids.add(found.tgid)
    waiting = list(seed.processes)
    table_of: dict[int, FilesTable] = {}
    for found in waiting:
        shared = table_of.get(found.shares_files_with) if found.shares_files_with is not None else None
        table = shared or state.new_table(found.tgid, seen_ns.get(found.tgid, first_ns))
        table_of[found.tgid] = table
        if found.shares_files_with is not None and shared is None:
            # Named before it was seen: whoever comes second joins.
            table_of.setdefault(found.shares_files_with, table)
        for tid in found.tids or (found.tgid,):
            state.use_table(tid, found.tgid, table, 0)
    numbered: dict[int, OpenFile] = {}
    for time_ns, tgid, fd, kind, cloexec, nonblock, inode, number in fds:
        if tgid not in table_of:
            adopt(state, tgid, tgid, time_ns)
            table_of[tgid] = state.tables[state.task_table[tgid]]
        table = table_of[tgid]
        if fd in table.live:
            continue
        file = numbered.get(number)
        if file is None and kind == FileKind.SOCKET and inode in state.inode_file:
            # A socket cannot be opened again: one inode is one open file, kcmp or not.
            file = state.open_files[state.inode_file[inode]]
        if file is None:
            file = state.new_file(_kind(kind), time_ns)
            file.inode = inode
            file.nonblock = bool(nonblock)
            if kind == FileKind.SOCKET and inode:
                state.inode_file[inode] = file.id
        numbered[number] = file
        state.put(table, fd, file.id, How.SNAPSHOT, time_ns, NO_ID, NO_ID, bool(cloexec))
    _load_epolls(state, seed, table_of, seen_ns)


def _began_later(started_ns: int | None, first_ns: int) -> int | None:
    """When a process began, where that was after the first look at the target; None: it was there."""
    return started_ns if started_ns is not None and first_ns and started_ns > first_ns else None


def _kind(number: int) -> FileKind:
    return FileKind(number) if number in FileKind._value2member_map_ else FileKind.OTHER


def _load_epolls(state: ReplayState, seed: Seed, table_of: dict[int, FilesTable], seen_ns: dict[int, int]) -> None:
    for tgid, epoll_fd, fd, events, data, inode in seed.epolls.tolist():
        table = table_of.get(tgid)
        if table is None or epoll_fd not in table.live:
            continue
        epoll = state.open_files[state.descriptors[table.live[epoll_fd]].open_file]
        ns = seen_ns.get(tgid, 0)
        live = table.live.get(fd)
        file = state.open_files[state.descriptors[live].open_file] if live is not None else None
        if inode and (file is None or (file.inode and file.inode != inode)):
            # The number is another file by now; the registered one lives on in a duplicate.
            known = state.inode_file.get(inode)
            file = state.open_files[known] if known is not None else None
        if file is None:
            file = state.new_file(FileKind.OTHER, ns)
            file.inode = inode
        watch(state, epoll.id, fd, file.id, events, data, ns, NO_ID)


def watch(state: ReplayState, epoll: int, fd: int, file: int, events: int, data: int, ns: int, event: int) -> None:
    """Register (fd, open file) in an epoll instance; a known registration is left alone."""
    interests = state.by_epoll.setdefault(epoll, {})
    if (fd, file) in interests:
        return
    interest = EpollInterest(
        epoll=epoll, fd=fd, open_file=file, events=events, data=data, added_ns=ns, added_event=event
    )
    interests[(fd, file)] = interest
    state.watched_by.setdefault(file, []).append((epoll, fd))
    state.interests.append(interest)


def adopt(state: ReplayState, tid: int, tgid: int, ns: int) -> int:
    """A task nobody told of: a thread of its process, or a process whose beginning was missed. Its table id."""
    table = state.table_of_process(tgid)
    process = state.processes.get(tgid)
    if process is None or process.exited_ns is not None:
        process = Process(tgid=tgid)
        state.processes[tgid] = process
    process.tids.add(tid)
    if table is None:
        table = state.new_table(tgid, ns)
    state.use_table(tid, tgid, table, ns)
    return table.id


def copy_table(state: ReplayState, step: Step, source: FilesTable, tgid: int, how: How) -> FilesTable:
    """What fork and unshare make: the same numbers for the same open files, apart from now on."""
    table = state.new_table(tgid, step.ns, source.id, step.event)
    for fd, descriptor in source.live.items():
        named = state.descriptors[descriptor]
        if named.how == How.SNAPSHOT and named.opened_ns > step.ns:
            continue
        state.put(table, fd, named.open_file, how, step.ns, step.event, descriptor, named.cloexec)
    return table


def leave_table(state: ReplayState, tid: int, ns: int, event: int) -> None:
    """The task no longer uses its table; the last one to leave ends it and all its descriptors."""
    table = state.tables[state.task_table.pop(tid)]
    state.task_process.pop(tid, None)
    state.task_count[table.id] -= 1
    if state.task_count[table.id]:
        return
    table.ended_ns = ns
    for descriptor in list(table.live.values()):
        state.release(state.descriptors[descriptor], ns, event, Ended.EXIT)


def task_new(state: ReplayState, step: Step) -> None:
    child, tgid, flags = _int(step.a0), _int(step.a1), step.a2
    thread = bool(flags & CLONE_THREAD) or tgid == step.tgid
    if thread and not flags:
        flags = CLONE_THREAD | CLONE_FILES
    if child in state.task_table:
        if state.task_process.get(child) == tgid:
            _already_known(state, step, child, tgid, thread, flags)
            return
        _vanish(state, child, step)
    source = step.table
    process = state.processes.get(tgid)
    if not thread or process is None:
        parent = state.processes.get(step.tgid)
        process = Process(
            tgid=tgid,
            parent=parent.parent if parent and flags & CLONE_PARENT else step.tgid,
            comm=parent.comm if parent else "?",
            exe=parent.exe if parent else "",
            cmdline=parent.cmdline if parent else (),
            started_ns=step.ns,
            start_event=step.event,
            netns=parent.netns if parent else 0,
        )
        state.processes[tgid] = process
        state.seeded_tgids.discard(tgid)
    process.tids.add(child)
    table = source if flags & CLONE_FILES else copy_table(state, step, source, tgid, How.FORK)
    state.use_table(child, tgid, table, step.ns)


def _already_known(state: ReplayState, step: Step, child: int, tgid: int, thread: bool, flags: int) -> None:
    """The snapshot caught the child between its birth and this event: only its history is new."""
    if thread:
        return
    process = state.processes[tgid]
    if process.start_event != NO_ID:
        _vanish(state, child, step)
        task_new(state, step)
        return
    process.start_event = step.event
    process.started_ns = step.ns
    process.parent = step.tgid
    if not flags & CLONE_FILES:
        table = state.tables[state.task_table[child]]
        table.forked_from = step.table.id
        table.created_event = step.event
        table.created_ns = min(table.created_ns, step.ns)


def _vanish(state: ReplayState, tid: int, step: Step) -> None:
    """A tid that comes again must have ended; its task_exit was missed."""
    tgid = state.task_process.get(tid, NO_ID)
    leave_table(state, tid, step.ns, step.event)
    process = state.processes.get(tgid)
    if process is not None:
        process.tids.discard(tid)
        if not process.tids and process.exited_ns is None:
            process.exited_ns = step.ns


def task_exec(state: ReplayState, step: Step) -> None:
    """All other threads are gone, a shared table is parted, close-on-exec descriptors are closed."""
    process = state.processes.get(step.tgid)
    if process is None:
        return
    former = _int(step.a0)
    table = state.tables[state.task_table[former]] if former in state.task_table else step.table
    leaving = [t for t in process.tids | {step.tid, former} if state.task_process.get(t) == step.tgid]
    shared = state.task_count[table.id] > sum(state.task_table[t] == table.id for t in leaving)
    if shared:
        table = copy_table(state, step, table, step.tgid, How.UNSHARE)
    state.task_count[table.id] += 1  # so that the table outlives the change of hands
    for tid in sorted(leaving):
        leave_table(state, tid, step.ns, step.event)
        if tid != step.tid:
            state.spans.append((tid, step.ns, NO_ID))
    process.tids = {step.tid}
    state.use_table(step.tid, step.tgid, table, step.ns)
    state.task_count[table.id] -= 1
    for descriptor in [state.descriptors[d] for d in table.live.values()]:
        if descriptor.cloexec and not (descriptor.how == How.SNAPSHOT and descriptor.opened_ns > step.ns):
            state.release(descriptor, step.ns, step.event, Ended.EXEC)
    process.execs.append(step.event)
    process.comm = text_of(step.blob, Section.COMM) or process.comm
    exe = text_of(step.blob, Section.PATH)
    if exe:
        process.exe = exe
        process.cmdline = ()


def task_exit(state: ReplayState, step: Step) -> None:
    tgid = state.task_process.get(step.tid, step.tgid)
    leave_table(state, step.tid, step.ns, step.event)
    state.spans.append((step.tid, step.ns, NO_ID))
    process = state.processes.get(tgid)
    if process is None:
        return
    process.tids.discard(step.tid)
    if not process.tids:
        process.exited_ns = step.ns
        process.exit_status = _int(step.a0)


def task_attach(state: ReplayState, step: Step) -> None:
    """The loop has adopted the task already."""


def unshare(state: ReplayState, step: Step) -> None:
    if step.ret == 0 and step.a0 & CLONE_FILES:
        part_table(state, step)


def part_table(state: ReplayState, step: Step) -> FilesTable:
    """The task gets a table of its own, if it shared one; the table it has now."""
    table = step.table
    if state.task_count[table.id] == 1:
        return table
    own = copy_table(state, step, table, step.tgid, How.UNSHARE)
    state.task_count[table.id] -= 1
    state.use_table(step.tid, step.tgid, own, step.ns)
    return own


def _int(argument: int) -> int:
    """A u64 argument as the int it was."""
    low = argument & 0xFFFF_FFFF
    return low - (1 << 32) if low & 0x8000_0000 else low


HANDLERS: dict[int, Callable[[ReplayState, Step], None]] = {
    Call.task_new: task_new,
    Call.task_exec: task_exec,
    Call.task_exit: task_exit,
    Call.task_attach: task_attach,
    Call.unshare: unshare,
}
