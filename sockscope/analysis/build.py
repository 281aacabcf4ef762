"""From tables to a joined session: order, replay, assign, join, sum up."""

from __future__ import annotations

from dataclasses import replace

from sockscope.analysis.alignment.clocks import COMMON, Clocks
from sockscope.analysis.collection import no_collection
from sockscope.analysis.exchanges.exchanges import build_exchanges
from sockscope.analysis.joining.capture_end import unseen_end
from sockscope.analysis.joining.clocks import measure_skew
from sockscope.analysis.joining.join import join
from sockscope.analysis.joining.kernel_events import decode_kernel_events, join_kernel_events
from sockscope.analysis.joining.names import name_processes
from sockscope.analysis.joining.socket_rows import group_sockets
from sockscope.analysis.joining.totals import sum_up
from sockscope.analysis.replay.assign import assign_connections, assign_descriptors, moved_on
from sockscope.analysis.replay.known import complete_open_files, unix_peers
from sockscope.analysis.replay.order import replay_order
from sockscope.analysis.replay.replay import Replay
from sockscope.analysis.session import Session
from sockscope.analysis.wire import flows as wire
from sockscope.model.columns import Columns, in_memory, rows_of
from sockscope.model.events import Events
from sockscope.model.facts import Facts
from sockscope.model.info import SessionInfo
from sockscope.model.packets import Packets
from sockscope.model.seed import Seed
from sockscope.model.sockets import Sockets


def build_session(
    *,
    info: SessionInfo,
    seed: Seed,
    events: Events,
    packets: Packets,
    sockets: Sockets,
    facts: Facts | None = None,
    clocks: Clocks = COMMON,
    columns: Columns = in_memory,
) -> Session:
    """Join what was recorded. Pure: the same tables give the same session.

    Args:
        info: facts of the session; an empty `info.syscalls.engine` means that there were no syscalls.
        seed: the target as found at attach.
        events: rows in any order, those of one tracer in its own.
        packets: in capture order, CLOCK_REALTIME. How far they seem to be off is in the session's
            `info.clock_skew_ns`; times are not corrected by it.
        sockets: rows of all snapshots.
        facts: what /proc said beside; None: nothing.
        clocks: rows that another clock stamped. They are moved to where what they tell of the same connections fits;
            by how much is in the session's `info.alignments`. `info.started_ns` and `ended_ns` are those of the
            session's own clock; the beginning is widened by what was moved.
    """
    with no_collection():
        return _build(info, seed, events, packets, sockets, facts or Facts(), clocks, columns)


def _begin_launched(replay: Replay, info: SessionInfo, events: Events) -> None:
    """The launched command was not there before; no fork that could say so is among the events."""
    root = replay.processes.get(info.target.pids[0]) if info.target.command and info.target.pids else None
    if root is None or root.started_ns is not None:
        return
    records = events.records
    times = records["exit_ns"][rows_of(records, lambda part: (part["tgid"] == root.tgid) & (part["exit_ns"] >= 0))]
    root.started_ns = int(times.min(initial=info.ended_ns))


def _build(
    info: SessionInfo,
    seed: Seed,
    events: Events,
    packets: Packets,
    sockets: Sockets,
    facts: Facts,
    clocks: Clocks,
    columns: Columns,
) -> Session:
    order, effective_ns = replay_order(events, columns)
    replay = Replay(seed, unix_peers(sockets))
    replay.feed(events, order, effective_ns=effective_ns)
    _begin_launched(replay, info, events)
    assignment = assign_descriptors(replay, events, columns)
    packet_ns = wire.monotonic_ns(packets, info.clock_samples)
    if not clocks.common:
        # What was recorded together has no use for all this.
        from sockscope.analysis.alignment.lay import lay

        laid = lay(info, replay, events, assignment, packets, packet_ns, sockets, clocks)
        info, packets, packet_ns, sockets = laid.info, laid.packets, laid.packet_ns, laid.sockets
    complete_open_files(replay, events, sockets, assignment)
    told = wire.build_wire(packets, packet_ns)
    groups = group_sockets(sockets)
    joined = join(state=replay, info=info, groups=groups, flows=told.flows, moved=moved_on(replay, events, assignment))
    event_connection, event_reason = assign_connections(replay, events, assignment, joined.connections, columns)
    sum_up(joined, events, order, event_connection, effective_ns)
    name_processes(replay.processes, joined.connections, facts.processes, followed=bool(info.syscalls.engine))
    kernel = decode_kernel_events(events)
    session = Session(
        info=info,
        seed=seed,
        events=events,
        packets=packets,
        sockets=sockets,
        order=order,
        effective_ns=effective_ns,
        event_connection=event_connection,
        event_open_file=assignment.open_file,
        event_descriptor=assignment.descriptor,
        event_table=assignment.table,
        event_reason=event_reason,
        packet_flow=told.packet_flow,
        packet_ns=packet_ns,
        socket_connection=joined.socket_connection(),
        processes=replay.processes,
        tables=replay.tables,
        descriptors=replay.descriptors,
        open_files=replay.open_files,
        interests=replay.interests,
        connections=joined.connections,
        flows=told.flows,
        kernel=kernel,
        kernel_connection=join_kernel_events(kernel, joined.connections),
        facts=facts,
        packet_marks=told.packet_marks,
        flow_facts=told.flow_facts,
        columns=columns,
    )
    session.exchanges = build_exchanges(session)
    session.info = replace(info, clock_skew_ns=measure_skew(session))
    if clocks.packets and (gap := unseen_end(session)):
        # Our own captures count what they lose; of others' only the calls tell.
        notes = (*session.info.notes, f"{gap}: what is not among the packets may only be unseen")
        session.info = replace(session.info, packets=replace(info.packets, gap=gap), notes=notes)
    return session
