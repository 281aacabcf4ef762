"""Who serves a port, and which ports a process serves."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt

from sockscope.errors import CannotObserveError
from sockscope.model.tcp import TcpState
from sockscope.sources.sockets import procfs
from sockscope.sources.sockets.fd_scan import all_tgids
from sockscope.sources.sockets.netns import in_netns, netns_of
from sockscope.sources.sockets.owners import owners
from sockscope.sources.sockets.sock_diag import TCP_QUERIES, UDP_QUERIES, Query, dump, state_mask

_LISTEN = state_mask([TcpState.LISTEN])
_INIT_SYSTEMS = ("systemd", "init")
_UDP_UNCONNECTED = state_mask([TcpState.CLOSE])


def descendants(tgids: Iterable[int]) -> list[int]:
    """The processes and all that descend from them, parents first; never sockscope itself or what it started."""
    children = procfs.children_of_all()
    own = os.getpid()
    out: dict[int, None] = {}
    waiting = list(tgids)
    while waiting:
        tgid = waiting.pop(0)
        if tgid in out or tgid == own:
            continue
        out[tgid] = None
        waiting.extend(sorted(children.get(tgid, [])))
    return list(out)


def listening_ports(tgids: Collection[int], *, udp: bool = False) -> list[int]:
    """TCP ports on which these processes listen (`udp`: UDP ports they have bound, too), ascending.

    The sockets are looked up in each process's own network namespace.

    Raises:
        CannotObserveError: sock_diag is refused, or the namespace cannot be entered.
    """
    held, _ = owners(tgids)
    ports: set[int] = set()
    for pid in _one_of_each_netns(tgids):
        rows = in_netns(pid, lambda: _servers(None, udp=udp))
        ports.update(rows["local_port"][np.isin(rows["inode"], held["inode"])].tolist())
    return sorted(ports - {0})


def tgids_of_port(port: int) -> list[int]:
    """Every process that holds a listener of the port (TCP, else a bound UDP socket), and their descendants.

    Where nothing listens in our own network namespace, those of other processes (containers) are searched.
    Where nothing listens at all, the owners of connections with that local port count.

    Returns:
        tgids, those that hold the listener first; empty: nobody serves it.

    Raises:
        CannotObserveError: sock_diag is refused, only an init system holds the port, or who holds
            it may not be known (another user's).
    """
    namespaces = (None, *_one_of_each_netns(all_tgids(), but=netns_of()))

    def servers() -> npt.NDArray[np.void]:
        return _servers(port, udp=True)

    def connections() -> npt.NDArray[np.void]:
        return dump(ports=[port], local_ports_only=True, tcp_info=False)

    for look in (servers, connections):
        for pid in namespaces:
            try:
                inodes = in_netns(pid, look)["inode"]
            except CannotObserveError:
                if pid is None:
                    raise
                # A namespace that we may not enter: the others are still worth a look.
                continue
            held, unreadable = owners(inodes=inodes[inodes != 0])
            if len(held):
                return _servers_and_children(port, np.unique(held["tgid"]).tolist())
            if unreadable and inodes.any():
                raise CannotObserveError(
                    f"port {port} is in use, but by a process that may not be looked into", help_text="run it with sudo"
                )
    return []


def server_inodes(port: int) -> set[int]:
    """The listeners of the port (TCP, and bound UDP sockets) in the calling thread's network namespace.

    Raises:
        CannotObserveError: sock_diag is refused.
    """
    return set(_servers(port, udp=True)["inode"].tolist()) - {0}


def _servers_and_children(port: int, holders: list[int]) -> list[int]:
    """The holders of a listener with their descendants; an init system that holds it for others stays out of it.

    Everything descends from process 1: with socket activation (systemd) it holds listeners of services, and
    following its children would be following the whole machine. In a container process 1 may be the server itself.
    """
    if 1 in holders:
        others = [tgid for tgid in holders if tgid != 1]
        if others:
            return descendants(others)
        stat = procfs.read_stat(1)
        if stat is not None and stat.comm in _INIT_SYSTEMS:
            raise CannotObserveError(
                f"port {port} is held by {stat.comm} (process 1) for a service that does not run yet",
                help_text="start the service (systemctl list-sockets names it) and try again",
            )
    return descendants(holders)


def _servers(port: int | None, *, udp: bool) -> npt.NDArray[np.void]:
    """Listeners (and bound UDP sockets) of the calling thread's network namespace, SOCKET_DTYPE."""
    ports = None if port is None else [port]

    def rows(families: tuple[Query, ...], states: int) -> npt.NDArray[np.void]:
        return dump(families=families, ports=ports, local_ports_only=True, states=states, tcp_info=False)

    tcp = rows(TCP_QUERIES, _LISTEN)
    return np.concatenate([tcp, rows(UDP_QUERIES, _UDP_UNCONNECTED)]) if udp else tcp


def _one_of_each_netns(tgids: Iterable[int], *, but: int = 0) -> list[int]:
    """A process for each network namespace among them."""
    found: dict[int, int] = {}
    for tgid in tgids:
        netns = netns_of(tgid)
        if netns not in (0, but):
            found.setdefault(netns, tgid)
    return list(found.values())
