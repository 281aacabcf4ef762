"""The words of ss and netstat, under the kernel's numbers.

Source: ss(8) and iproute2 misc/ss.c (sstate_name, proto_name); netstat(8) and net-tools netstat.c (tcp_state).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from sockscope.model.tcp import TcpState

TCP: Final = 6
UDP: Final = 17
UNIX: Final = 0
UNTOLD_PROTOCOL: Final = 255
"""ss leaves the column Netid out where all that was asked for is of one kind."""

STATES: Mapping[str, int] = MappingProxyType(
    {
        "ESTAB": TcpState.ESTABLISHED,
        "SYN-SENT": TcpState.SYN_SENT,
        "SYN-RECV": TcpState.SYN_RECV,
        "FIN-WAIT-1": TcpState.FIN_WAIT1,
        "FIN-WAIT-2": TcpState.FIN_WAIT2,
        "TIME-WAIT": TcpState.TIME_WAIT,
        "UNCONN": TcpState.CLOSE,
        "CLOSE-WAIT": TcpState.CLOSE_WAIT,
        "LAST-ACK": TcpState.LAST_ACK,
        "LISTEN": TcpState.LISTEN,
        "CLOSING": TcpState.CLOSING,
        "NEW-SYN-RECV": TcpState.SYN_RECV,
        "BOUND-INACTIVE": TcpState.CLOSE,
        "UNDEF": TcpState.SYN_RECV,
    }
)
"""The column State of ss."""

NETIDS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"tcp": (TCP, 0), "udp": (UDP, 0), "u_str": (UNIX, 1), "u_dgr": (UNIX, 2), "u_seq": (UNIX, 5)}
)
"""The column Netid of ss → (protocol, socket type of unix)."""

OTHER_NETIDS: Final = frozenset(
    {
        "nl",
        "raw",
        "p_raw",
        "p_dgr",
        "???",
        "icmp6",
        "v_str",
        "v_dgr",
        "v_seq",
        "ti_rd",
        "ti_sq",
        "ti_st",
        "ti_dg",
        "xdp",
        "mptcp",
        "sctp",
        "dccp",
    }
)
"""Kinds of sockets that sockscope has no table for."""

NETSTAT_STATES: Mapping[str, int] = MappingProxyType(
    {
        "ESTABLISHED": TcpState.ESTABLISHED,
        "SYN_SENT": TcpState.SYN_SENT,
        "SYN_RECV": TcpState.SYN_RECV,
        "FIN_WAIT1": TcpState.FIN_WAIT1,
        "FIN_WAIT2": TcpState.FIN_WAIT2,
        "TIME_WAIT": TcpState.TIME_WAIT,
        "CLOSE": TcpState.CLOSE,
        "CLOSE_WAIT": TcpState.CLOSE_WAIT,
        "LAST_ACK": TcpState.LAST_ACK,
        "LISTEN": TcpState.LISTEN,
        "CLOSING": TcpState.CLOSING,
    }
)

NETSTAT_PROTOCOLS: Mapping[str, int] = MappingProxyType(
    {"tcp": TCP, "tcp6": TCP, "udp": UDP, "udp6": UDP, "unix": UNIX}
)
OTHER_NETSTAT_PROTOCOLS: Final = frozenset(
    {
        "raw",
        "raw6",
        "udpl",
        "udplite",
        "udplite6",
        "udpl6",
        "sctp",
        "sctp6",
        "dccp",
        "icmp",
        "icmp6",
    }
)

NETSTAT_UNIX_STATES: Mapping[str, int] = MappingProxyType(
    {
        "CONNECTED": TcpState.ESTABLISHED,
        "LISTENING": TcpState.LISTEN,
        "CONNECTING": TcpState.SYN_SENT,
        "DISCONNECTING": TcpState.FIN_WAIT1,
        "FREE": TcpState.CLOSE,
        "UNKNOWN": TcpState.CLOSE,
    }
)
UNIX_TYPES: Mapping[str, int] = MappingProxyType({"STREAM": 1, "DGRAM": 2, "SEQPACKET": 5})

TIMERS: Mapping[str, int] = MappingProxyType(
    {"off": 0, "on": 1, "keepalive": 2, "timewait": 3, "persist": 4, "probe": 4}
)
"""idiag_timer; `probe` is netstat's name for `persist`."""
