"""Socket states, their owners, and packets. Source: sock_diag(7), packet(7)."""

from __future__ import annotations

import os
import socket
import struct

from sockscope.errors import CannotObserveError
from sockscope.model.capability import Capability, Status
from sockscope.model.tcp import TcpState
from sockscope.sources.capabilities.privileges import Cap, has
from sockscope.sources.sockets.fd_scan import FdScan, all_tgids
from sockscope.sources.sockets.sock_diag import dump, state_mask

_SOL_PACKET = 263
_PACKET_RX_RING = 5
_PACKET_VERSION = 10
_TPACKET_V2 = 1


def check_sock_diag() -> Capability:
    """Whether the kernel lists its sockets."""
    try:
        count = len(dump(tcp_info=False))
    except CannotObserveError as error:
        return Capability(
            name="sock_diag",
            status=Status.MISSING,
            detail=error.message,
            meaning="no socket states, so no CLOSE_WAIT and no accept queue",
            mend=error.help_text or "",
            needed=True,
        )
    detail = f"{count} TCP sockets here"
    return Capability(name="sock_diag", status=Status.OK, detail=detail, meaning="socket states", needed=True)


def check_tcp_info() -> Capability:
    """Whether the kernel tells of round trips and windows, tried on a listener of our own."""
    meaning = "round trips, windows and retransmissions per connection"
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            rows = dump(ports=[port], local_ports_only=True, states=state_mask([TcpState.LISTEN]))
    except (OSError, CannotObserveError) as error:
        return Capability(name="tcp_info", status=Status.MISSING, detail=str(error), meaning=f"no {meaning}")
    if len(rows) and rows["has_info"].all():
        return Capability(name="tcp_info", status=Status.OK, detail="INET_DIAG_INFO", meaning=meaning)
    return Capability(name="tcp_info", status=Status.LIMITED, detail="not told by this kernel", meaning=f"no {meaning}")


def check_owners() -> Capability:
    """Whether every process's descriptors can be read."""
    _, unreadable = FdScan().result()
    if not unreadable:
        detail = f"{len(all_tgids())} processes read"
        return Capability(name="socket owners", status=Status.OK, detail=detail, meaning="who holds each socket")
    return Capability(
        name="socket owners",
        status=Status.LIMITED,
        detail=f"{unreadable} processes cannot be read",
        meaning="their sockets show no owner",
        mend="sudo sockscope ...",
    )


def check_packets() -> Capability:
    """Whether packets can be captured: an AF_PACKET socket is opened."""
    number = _try_packet_socket(with_ring=False)
    if not number:
        meaning = "what crosses the wire is captured"
        return Capability(name="CAP_NET_RAW", status=Status.OK, detail="AF_PACKET opens", meaning=meaning)
    return Capability(
        name="CAP_NET_RAW",
        status=Status.LIMITED,
        detail=f"AF_PACKET: {os.strerror(number)}",
        meaning="sockscope goes on without packets",
        mend="sudo sockscope ...   (in a container: docker run --cap-add NET_RAW)",
    )


def check_ring() -> Capability:
    """Whether a capture ring can be had: without it a busy server's packets are lost."""
    number = _try_packet_socket(with_ring=True)
    if not number:
        meaning = "capture keeps up with 200 000 packets/s"
        return Capability(name="capture ring", status=Status.OK, detail="TPACKET_V2", meaning=meaning)
    return Capability(
        name="capture ring",
        status=Status.LIMITED,
        detail=f"TPACKET_V2: {os.strerror(number)}",
        meaning="capture falls back to a slower way and may lose packets under load",
        mend="" if has(Cap.NET_RAW) else "sudo sockscope ...",
    )


def check_other_namespaces() -> Capability:
    """Whether containers can be looked into from here."""
    if has(Cap.SYS_ADMIN):
        meaning = "targets in other network namespaces (containers) are queried there"
        return Capability(name="setns", status=Status.OK, detail="CAP_SYS_ADMIN", meaning=meaning)
    return Capability(
        name="setns",
        status=Status.LIMITED,
        detail="no CAP_SYS_ADMIN",
        meaning="sockets and packets of our own network namespace only",
        mend="sudo sockscope ...   (or inside the container)",
    )


def _try_packet_socket(*, with_ring: bool) -> int:
    """The errno of opening one (protocol 0: it sees no packet), 0 where it works."""
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as packet:
            if with_ring:
                packet.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
                page = os.sysconf("SC_PAGE_SIZE")
                # struct tpacket_req: block size and count, frame size and count.
                packet.setsockopt(_SOL_PACKET, _PACKET_RX_RING, struct.pack("IIII", page, 1, 2048, page // 2048))
    except OSError as error:
        return error.errno or -1
    return 0
