"""Which interfaces a target's packets pass."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path

from sockscope.model.sockaddr import Address, Family

LOOPBACK = "lo"


def interfaces_for(addresses: Sequence[Address], *, other_namespace: bool = False) -> tuple[str, ...]:
    """The interfaces to capture on for sockets bound to these addresses, loopback first.

    A loopback address needs only `lo`; another local address its own interface and `lo` (the host reaches
    its own addresses through loopback); a wildcard address every interface that is up. Ports of a bridge or
    bond are left out there, since the bridge or bond shows their packets.

    Args:
        addresses: local addresses of listeners and connections; those that are not IP do not matter.
        other_namespace: this thread has moved to another network namespace, of which /sys knows nothing.
    """
    # Only the capture's own process asks.
    import psutil

    known = psutil.net_if_addrs()
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    every = {name for name in up if other_namespace or not Path(f"/sys/class/net/{name}/master").exists()}
    owners: dict[bytes, set[str]] = {}
    for name, entries in known.items():
        for entry in entries:
            packed = _packed(entry.family, entry.address)
            if packed is not None:
                owners.setdefault(packed, set()).add(name)
    found: set[str] = set()
    for address in addresses:
        if address.family not in (Family.INET, Family.INET6):
            continue
        ip = ipaddress.ip_address(address.packed)
        if ip.is_unspecified:
            found |= every
        elif ip.is_loopback:
            found.add(LOOPBACK)
        else:
            # An address of no interface may be a forwarded or transparent one: anywhere.
            found |= (owners.get(address.packed, every) & up) | {LOOPBACK}
    return tuple(sorted(found & up, key=lambda name: (name != LOOPBACK, name)))


def _packed(family: int, address: str) -> bytes | None:
    if family == socket.AF_INET:
        return socket.inet_pton(socket.AF_INET, address)
    if family == socket.AF_INET6:
        return socket.inet_pton(socket.AF_INET6, address.split("%", 1)[0])
    return None
