"""Open files, socket rows and flows joined into connections.

Cookie first, then inode, then addresses and time: a cookie survives accept, an inode does not exist
before it, addresses come again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sockscope.analysis.joining.flow_match import FlowMatcher
from sockscope.analysis.joining.late_rows import LateRows
from sockscope.analysis.joining.socket_rows import (
    IPPROTO_TCP,
    IPPROTO_UDP,
    SOCK_DGRAM,
    SocketGroups,
    end_key,
)
from sockscope.analysis.replay.state import ReplayState
from sockscope.analysis.wire.flow_table import Flows
from sockscope.model.connections import Connection, Protocol, Role
from sockscope.model.descriptors import Ended, How, OpenFile
from sockscope.model.ids import NO_ID
from sockscope.model.info import SessionInfo
from sockscope.model.seed import FileKind
from sockscope.model.sockaddr import Address, Family
from sockscope.model.tcp import TcpState

INET = (Family.INET, Family.INET6)


@dataclass(kw_only=True)
class Join:
    """What the join works on, and the connections it has made so far."""

    state: ReplayState
    info: SessionInfo
    groups: SocketGroups
    wire: FlowMatcher
    ports: frozenset[int]
    """Local ports on which the target serves."""
    has_syscalls: bool
    unix_names: frozenset[Address] = frozenset()
    """Of the target's unix listeners."""
    connections: list[Connection] = field(default_factory=list)
    group_connection: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    def socket_connection(self) -> npt.NDArray[np.int32]:
        """The connection of each socket row: shape (rows,), int32, -1 none."""
        return self.group_connection[self.groups.group]


def join(
    *,
    state: ReplayState,
    info: SessionInfo,
    groups: SocketGroups,
    flows: Flows,
    moved: npt.NDArray[np.bool_],
) -> Join:
    """Make the connections: of open files, then of sockets no process owns, then of flows alone.

    Args:
        moved: shape (open files,), whether a read or write on it succeeded.
    """
    has_syscalls = bool(info.syscalls.engine)
    work = Join(
        state=state,
        info=info,
        groups=groups,
        # A log without times still tells the order in which addresses came again.
        wire=FlowMatcher(flows, info.apart_ns if info.syscalls.resolution_ns else 0),
        ports=served_ports(state, info, groups, has_syscalls),
        has_syscalls=has_syscalls,
        group_connection=np.full(len(groups), NO_ID, np.int32),
    )
    listening = (file.local for file in state.open_files if file.listening and file.family == Family.UNIX)
    work.unix_names = frozenset(name for name in listening if name is not None)
    for file in state.open_files:
        if file.kind == FileKind.SOCKET and not file.listening:
            _of_open_file(work, file, bool(moved[file.id]))
    _unnamed(work)
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


# --- of open files ------------------------------------------------------------------------------------------


def _of_open_file(work: Join, file: OpenFile, used: bool) -> None:
    if file.family == 0 and file.listener >= 0:
        # Known only since the snapshots were looked into: an accept need not say who came.
        listener = work.state.open_files[file.listener]
        file.family, file.socket_type = listener.family, listener.socket_type or file.socket_type
    group = _group_of(work, file, file.local, file.peer)
    if group >= 0:
        _learn(work.groups, file, group)
    protocol = _protocol(work, file, used)
    if protocol is None or not _is_connection(work, file, protocol, used, group):
        return
    local = file.local
    if local is None and file.listener >= 0:
        local = work.state.open_files[file.listener].local
    connect = work.state.connects.get(file.id)
    opened = file.listener >= 0 or file.pair >= 0 or _accepted(work, file)
    began = connect[1] if connect else file.created_ns
    # A flight recorder knows of older ones, too, but not what was done with them before its window.
    watched = file.witnessed and began >= work.info.started_ns
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
        opened_event=connect[0] if connect else file.created_event if opened else NO_ID,
        witnessed=watched and (opened or connect is not None),
        inode=file.inode,
    )
    if protocol == Protocol.TCP:
        if connect is not None and (local is None or not local.port):
            work.wire.of_connect(made, connect[1], connect[2])
        else:
            work.wire.of_ends(made, _ports(work, local), began if watched else max(began, work.info.started_ns))
    _keep(work, file, made, group)


def _keep(work: Join, file: OpenFile, made: Connection, group: int) -> None:
    """Add the connection of an open file, with all that its flow and its socket tell of the addresses."""
    if group < 0 and made.flow >= 0:
        group = _group_of(work, file, made.local, made.peer)
    if made.local is not None and any(made.local.packed) and (file.local is None or not file.local.port):
        file.local = made.local
    file.peer = file.peer or made.peer
    if file.connection < 0:
        file.connection = made.id
        work.connections.append(made)
    if group >= 0:
        _tell_state(work, made, group)


def _unnamed(work: Join) -> None:
    """Accepted connections whose accept did not ask who came, where one listener alone serves the port."""
    accepted: dict[int, list[tuple[Connection, int]]] = {}
    for made in work.connections:
        if made.listener >= 0 and made.protocol == Protocol.TCP and made.peer is None and made.witnessed:
            created_ns = work.state.open_files[made.open_file].created_ns
            accepted.setdefault(made.listener, []).append((made, created_ns))
    for listener, made_by in accepted.items():
        local = work.state.open_files[listener].local
        if local is None or sum(f.listening and f.local == local for f in work.state.open_files) > 1:
            continue
        work.wire.of_accepts(sorted(made_by, key=lambda pair: pair[1]), local.port)
        for made, _ in made_by:
            if made.flow >= 0:
                _keep(work, work.state.open_files[made.open_file], made, NO_ID)


def _ports(work: Join, local: Address | None) -> Collection[int]:
    """What the local port may be."""
    return (local.port,) if local is not None and local.port else work.ports


def _accepted(work: Join, file: OpenFile) -> bool:
    """Made by an accept, though on a listener nobody knows."""
    return file.created_event >= 0 and any(work.state.descriptors[d].how == How.ACCEPT for d in file.descriptors[:1])


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


def _protocol(work: Join, file: OpenFile, used: bool) -> Protocol | None:
    if file.family == Family.UNIX or file.pair >= 0:
        return Protocol.UNIX
    if file.family in INET or (file.peer is not None and file.peer.family in INET) or file.listener >= 0:
        return Protocol.UDP if file.socket_type == SOCK_DGRAM else Protocol.TCP
    if file.family == 0 and not len(work.groups) and used:
        # Nothing says what it is, but bytes went through it: most likely TCP, and better shown than not.
        return Protocol.TCP
    return None


def _is_connection(work: Join, file: OpenFile, protocol: Protocol, used: bool, group: int) -> bool:
    if protocol == Protocol.UDP:
        return used
    if protocol == Protocol.UNIX and file.socket_type == SOCK_DGRAM:
        return False
    if file.listener >= 0 or file.pair >= 0 or file.id in work.state.connects or file.peer is not None:
        return True
    if _accepted(work, file) or (file.family == 0 and used):
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
        # Accepted before the watching: it carries its listener's name.
        named = file.local is not None and any(file.local.packed)
        return Role.SERVER if named and file.local in work.unix_names else Role.UNKNOWN
    if file.local is not None and file.local.port in work.ports:
        return Role.SERVER
    if protocol == Protocol.UDP:
        return Role.SERVER if file.peer is None else Role.CLIENT
    if len(work.groups) and file.local is not None and file.local.port not in work.groups.listen_ports:
        return Role.CLIENT
    return Role.UNKNOWN


def _group_of(work: Join, file: OpenFile, local: Address | None, peer: Address | None) -> int:
    """The socket that snapshots show for this open file, or -1."""
    groups = work.groups
    if file.inode:
        found = groups.by_inode.get(file.inode)
        if found is not None and work.group_connection[found] < 0:
            return found
    if peer is None or peer.family not in INET:
        return NO_ID
    if local is None and file.listener >= 0:
        local = work.state.open_files[file.listener].local
    for port in _ports(work, local):
        found = _group_between(work, file, peer, port, local)
        if found >= 0:
            return found
    return NO_ID


def _group_between(work: Join, file: OpenFile, peer: Address, port: int, local: Address | None) -> int:
    groups = work.groups
    of, ends = groups.of, _surely_gone_ns(work, file)
    for number in groups.by_key.get(end_key(peer, port), ()):
        if work.group_connection[number] >= 0:
            continue
        # Rows may show it in the accept queue long before, or in TIME_WAIT long after.
        if of.last_ns[number] < file.created_ns and of.state[number] not in _QUEUED:
            continue
        if ends is not None and of.first_ns[number] > ends and groups.begins_held(number):
            continue
        if local is not None and any(local.packed) and groups.local(number) != local:
            continue
        return number
    return NO_ID


def _surely_gone_ns(work: Join, file: OpenFile) -> int | None:
    """From when on no snapshot can show the open file's socket with an inode; None: never."""
    if file.released_ns is None:
        return None
    by_exit = any(work.state.descriptors[each].ended is Ended.EXIT for each in file.descriptors)
    return file.released_ns + (_EXIT_NS if by_exit else 0)


_EXIT_NS = 1_000_000_000
"""An exit is told before the kernel closes what the process had (kernel/exit.c: exit_files comes after exit_mm)."""

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
    late = LateRows(work.connections, work.state.open_files, groups, set(work.group_connection.tolist()))
    for number in np.nonzero(wanted)[0].tolist():
        shown = late.take(number)
        if shown is not None:
            _tell_state(work, shown, number)
            continue
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
        if not work.wire.of_ends(made, _ports(work, local), first_ns) and _is_relic(work, number):
            continue
        work.connections.append(made)
        _tell_state(work, made, number)


def _is_relic(work: Join, group: int) -> bool:
    """In TIME_WAIT from the first: a connection that was over before anybody watched."""
    of = work.groups.of
    if not work.has_syscalls or of.first_state[group] != TcpState.TIME_WAIT:
        return False
    return work.info.packets.available or of.first_snapshot[group] == work.groups.first_snapshot


def _row_role(work: Join, port: int) -> Role:
    if port in work.ports or port in work.groups.listen_ports:
        return Role.SERVER
    return Role.CLIENT if len(work.groups.listen_ports) else Role.UNKNOWN


def _of_flows(work: Join) -> None:
    """Flows to the target's ports that nothing else explains."""
    wire = work.wire
    if work.ports:
        port = wire.flows.columns.port
        served = np.isin(port, np.array(sorted(work.ports), np.int64))
        sides = np.where(served[:, 1], 1, 0)
        wanted = served.any(axis=1)
    elif work.has_syscalls:
        return
    else:
        sides = wire.server_sides()
        wanted = wire.unclaimed(1 - sides)
    flows = np.flatnonzero(wanted & wire.unclaimed(sides))
    work.connections += wire.alone(flows, sides[flows], len(work.connections))


# --- common -------------------------------------------------------------------------------------------------


def _tell_state(work: Join, made: Connection, group: int) -> None:
    """What the snapshots say of the connection."""
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
    # A listing with other options or filters than the next tells nothing by what it leaves out.
    made.gone_ns = of.gone_ns[group] if of.gone_ns[group] >= 0 and work.info.sockets.whole else None


_STATES = {int(state): state for state in TcpState}
