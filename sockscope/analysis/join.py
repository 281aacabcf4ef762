"""Open files, socket rows and flows joined into connections.

Cookie first, then inode, then addresses and time: a cookie survives accept, an inode does not exist
before it, addresses come again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sockscope.analysis.assign import Assignment
from sockscope.analysis.replay_state import ReplayState
from sockscope.analysis.socket_rows import (
    IPPROTO_TCP,
    IPPROTO_UDP,
    SOCK_DGRAM,
    EndKey,
    SocketGroups,
    end_key,
)
from sockscope.model.connections import Connection, Flow, Protocol, Role
from sockscope.model.descriptors import OpenFile
from sockscope.model.ids import NO_ID
from sockscope.model.info import SessionInfo
from sockscope.model.seed import FileKind
from sockscope.model.sockaddr import Family
from sockscope.model.tcp import TcpState

CLOCK_SLACK_NS = 2_000_000
"""How much later than the accept or connect a flow may seem to begin."""

INET = (Family.INET, Family.INET6)


@dataclass(kw_only=True)
class Join:
    """What the join works on, and the connections it has made so far."""

    state: ReplayState
    info: SessionInfo
    groups: SocketGroups
    flows: Sequence[Flow]
    ports: frozenset[int]
    """Local ports on which the target serves."""
    has_syscalls: bool
    connections: list[Connection] = field(default_factory=list)
    group_connection: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    flow_sides: dict[EndKey, list[tuple[int, int, int]]] = field(default_factory=dict)
    """End key → (first_ns, flow, local side), oldest first."""
    claimed: set[tuple[int, int]] = field(default_factory=set)
    """(flow, local side) that a connection has."""

    def socket_connection(self) -> npt.NDArray[np.int32]:
        """The connection of each socket row: shape (rows,), int32, -1 none."""
        return self.group_connection[self.groups.group]


def join(
    *,
    state: ReplayState,
    info: SessionInfo,
    groups: SocketGroups,
    flows: Sequence[Flow],
    assignment: Assignment,
) -> Join:
    """Make the connections: of open files, then of sockets no process owns, then of flows alone."""
    has_syscalls = bool(info.syscalls.engine)
    work = Join(
        state=state,
        info=info,
        groups=groups,
        flows=flows,
        ports=served_ports(state, info, groups, has_syscalls),
        has_syscalls=has_syscalls,
        group_connection=np.full(len(groups), NO_ID, np.int32),
    )
    _index_flows(work)
    used = np.zeros(len(state.open_files) + 1, np.bool_)
    used[assignment.open_file] = True
    for file in state.open_files:
        if file.kind == FileKind.SOCKET and not file.listening:
            _of_open_file(work, file, bool(used[file.id]))
    _of_sockets(work)
    _of_flows(work)
    return work


def served_ports(state: ReplayState, info: SessionInfo, groups: SocketGroups, has_syscalls: bool) -> frozenset[int]:
    """Ports asked for, and those the target's own listeners are bound to (all listeners, without syscalls)."""
    ports = set(info.target.ports)
    for file in state.open_files:
        number = groups.by_inode.get(file.inode) if file.inode else None
        if number is not None and groups.of.state[number] == TcpState.LISTEN and not groups.is_udp(number):
            file.listening = True
            _learn(groups, file, number)
        if file.listening and file.local is not None and file.local.family in INET:
            ports.add(file.local.port)
    if not has_syscalls and not ports:
        ports |= groups.listen_ports
    ports.discard(0)
    return frozenset(ports)


# --- flows --------------------------------------------------------------------------------------------------


def _index_flows(work: Join) -> None:
    sides: defaultdict[EndKey, list[tuple[int, int, int]]] = defaultdict(list)
    for flow in work.flows:
        one, other = flow.ends
        sides[end_key(other, one.port)].append((flow.first_ns, flow.id, 0))
        sides[end_key(one, other.port)].append((flow.first_ns, flow.id, 1))
    for found in sides.values():
        found.sort()
    work.flow_sides = dict(sides)


def _take_flow(work: Join, connection: Connection, began_ns: int) -> None:
    """The youngest flow between these ends that had begun by then and that nothing else has."""
    if connection.protocol != Protocol.TCP or connection.peer is None or connection.local is None:
        return
    found = work.flow_sides.get(end_key(connection.peer, connection.local.port))
    if not found:
        return
    last = bisect_right(found, (began_ns + CLOCK_SLACK_NS, len(work.flows), 2)) - 1
    for _, number, side in [*reversed(found[: last + 1]), *found[last + 1 :]]:
        flow = work.flows[number]
        local = flow.ends[side]
        if (number, side) in work.claimed or (any(connection.local.packed) and local != connection.local):
            continue
        work.claimed.add((number, side))
        connection.flow = number
        connection.local_side = side
        connection.local = local
        connection.first_ns = min(connection.first_ns, flow.first_ns)
        connection.last_ns = max(connection.last_ns, flow.last_ns)
        return


# --- of open files ------------------------------------------------------------------------------------------


def _of_open_file(work: Join, file: OpenFile, used: bool) -> None:
    group = _group_of(work, file)
    if group >= 0:
        _learn(work.groups, file, group)
    protocol = _protocol(file)
    if protocol is None or not _is_connection(work, file, protocol, used, group):
        return
    listener = work.state.open_files[file.listener] if file.listener >= 0 else None
    local = file.local
    if local is None and listener is not None:
        local = listener.local
    connect = work.state.connects.get(file.id)
    made = Connection(
        id=len(work.connections),
        protocol=protocol,
        role=_role(work, file, protocol, connect is not None),
        local=local,
        peer=file.peer,
        first_ns=file.created_ns,
        last_ns=file.released_ns or file.created_ns,
        open_file=file.id,
        listener=file.listener,
        opened_event=connect[0] if connect else file.created_event if file.listener >= 0 or file.pair >= 0 else NO_ID,
        witnessed=file.witnessed and (file.listener >= 0 or file.pair >= 0 or connect is not None),
        inode=file.inode,
    )
    began = connect[1] if connect else file.created_ns
    _take_flow(work, made, max(began, work.info.started_ns if not file.witnessed else began))
    _add(work, made, group)
    file.connection = made.id
    if file.local is None and made.local is not None and any(made.local.packed):
        file.local = made.local


def _learn(groups: SocketGroups, file: OpenFile, group: int) -> None:
    """What the kernel says of a socket that the syscalls left open."""
    file.family = file.family or groups.of.family[group]
    if not file.socket_type:
        file.socket_type = groups.of.type[group] or (SOCK_DGRAM if groups.of.protocol[group] == IPPROTO_UDP else 1)
    if file.inode == 0:
        file.inode = groups.inode[group]
    if file.local is None or (file.local.family in INET and file.local.port == 0):
        file.local = groups.local(group)
    if file.peer is None:
        file.peer = groups.peer(group)


def _protocol(file: OpenFile) -> Protocol | None:
    if file.family == Family.UNIX or file.pair >= 0:
        return Protocol.UNIX
    if file.family in INET or (file.peer is not None and file.peer.family in INET) or file.listener >= 0:
        return Protocol.UDP if file.socket_type == SOCK_DGRAM else Protocol.TCP
    return None


def _is_connection(work: Join, file: OpenFile, protocol: Protocol, used: bool, group: int) -> bool:
    if protocol == Protocol.UDP:
        return used
    if protocol == Protocol.UNIX and file.socket_type == SOCK_DGRAM:
        return False
    if file.listener >= 0 or file.pair >= 0 or file.id in work.state.connects or file.peer is not None:
        return True
    created = file.created_event
    if created >= 0 and any(work.state.descriptors[d].how.value == "accept" for d in file.descriptors[:1]):
        return True
    return group >= 0 and protocol == Protocol.UNIX and work.groups.of.peer_inode[group] != 0


def _role(work: Join, file: OpenFile, protocol: Protocol, connected: bool) -> Role:
    if file.listener >= 0:
        return Role.SERVER
    if connected:
        return Role.CLIENT
    if file.pair >= 0:
        return Role.UNKNOWN
    if protocol == Protocol.UNIX:
        return Role.UNKNOWN
    if file.local is not None and file.local.port in work.ports:
        return Role.SERVER
    if protocol == Protocol.UDP:
        return Role.SERVER if file.peer is None else Role.CLIENT
    if len(work.groups) and file.local is not None and file.local.port not in work.groups.listen_ports:
        return Role.CLIENT
    return Role.UNKNOWN


def _group_of(work: Join, file: OpenFile) -> int:
    """The socket that snapshots show for this open file, or -1."""
    groups = work.groups
    if file.inode:
        found = groups.by_inode.get(file.inode)
        if found is not None:
            return found
    if file.peer is None or file.peer.family not in INET:
        return NO_ID
    local = file.local
    if local is None and file.listener >= 0:
        local = work.state.open_files[file.listener].local
    if local is None:
        return NO_ID
    of, ends = groups.of, file.released_ns
    for number in groups.by_key.get(end_key(file.peer, local.port), ()):
        if work.group_connection[number] >= 0:
            continue
        # Rows may show it in the accept queue long before, or in TIME_WAIT long after.
        if of.last_ns[number] < file.created_ns and of.state[number] not in _QUEUED:
            continue
        if ends is not None and of.first_ns[number] > ends and of.first_inode[number]:
            continue
        if any(local.packed) and groups.local(number) != local:
            continue
        return number
    return NO_ID


_QUEUED = (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT, TcpState.SYN_RECV, TcpState.NEW_SYN_RECV, TcpState.SYN_SENT)


# --- of sockets and flows alone -----------------------------------------------------------------------------


def _of_sockets(work: Join) -> None:
    """Sockets on the target's ports that no open file of the target is: un-accepted, closing, or others'."""
    groups = work.groups
    if not len(groups):
        return
    rows = groups.sockets.records[groups.last]
    wanted = (
        (work.group_connection < 0)
        & (rows["family"] != Family.UNIX)
        & (rows["protocol"] == IPPROTO_TCP)
        & (rows["state"] != TcpState.LISTEN)
        & (rows["peer_port"] != 0)
    )
    if work.ports:
        wanted &= np.isin(rows["local_port"], np.array(sorted(work.ports)))
    elif work.has_syscalls:
        return
    spaces = {p.netns for p in work.state.processes.values() if p.netns}
    if spaces:
        wanted &= np.isin(rows["netns"], np.array([0, *sorted(spaces)], np.uint64))
    of = groups.of
    for number in np.nonzero(wanted)[0].tolist():
        local = groups.local(number)
        first_ns = of.first_ns[number]
        made = Connection(
            id=len(work.connections),
            protocol=groups.protocol(number),
            role=_row_role(work, local.port if local else 0),
            local=local,
            peer=groups.peer(number),
            first_ns=first_ns,
            last_ns=of.last_ns[number],
            inode=groups.inode[number],
            never_accepted=of.inode[number] == 0
            and of.snapshot[number] == groups.final_snapshot
            and of.state[number] in (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT),
        )
        _take_flow(work, made, first_ns)
        _add(work, made, number)


def _row_role(work: Join, port: int) -> Role:
    if port in work.ports or port in work.groups.listen_ports:
        return Role.SERVER
    return Role.CLIENT if len(work.groups.listen_ports) else Role.UNKNOWN


def _of_flows(work: Join) -> None:
    """Flows to the target's ports that nothing else explains."""
    for flow in work.flows:
        side = 1
        if work.ports:
            if flow.ends[1].port not in work.ports:
                if flow.ends[0].port not in work.ports:
                    continue
                side = 0
        elif work.has_syscalls:
            return
        if (flow.id, side) in work.claimed or (not work.ports and (flow.id, 1 - side) in work.claimed):
            continue
        work.claimed.add((flow.id, side))
        made = Connection(
            id=len(work.connections),
            protocol=Protocol.TCP,
            role=Role.SERVER,
            local=flow.ends[side],
            peer=flow.ends[1 - side],
            first_ns=flow.first_ns,
            last_ns=flow.last_ns,
            flow=flow.id,
            local_side=side,
        )
        work.connections.append(made)


# --- common -------------------------------------------------------------------------------------------------


def _add(work: Join, made: Connection, group: int) -> None:
    """Keep the connection, with what the snapshots say of it."""
    work.connections.append(made)
    if group < 0:
        return
    of = work.groups.of
    work.group_connection[group] = made.id
    made.inode = made.inode or work.groups.inode[group]
    made.cookie = of.cookie[group]
    made.netns = of.netns[group]
    made.state = _STATES.get(of.state[group], TcpState.UNKNOWN)
    made.state_ns = of.last_ns[group]
    made.recv_q = of.recv_q[group]
    made.send_q = of.send_q[group]
    made.first_ns = min(made.first_ns, of.first_ns[group])
    made.last_ns = max(made.last_ns, made.state_ns)
    made.gone_ns = of.gone_ns[group] if of.gone_ns[group] >= 0 else None


_STATES = {int(state): state for state in TcpState}
