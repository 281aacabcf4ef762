"""scapy, behind types: the only file that touches it, so that what is untyped goes no further.

It is imported when an object here is made, not before: that takes a third of a second.
"""

from __future__ import annotations

import errno
import importlib
import logging
import struct
from dataclasses import dataclass
from typing import Any

_LAYER_MODULES = (
    "scapy.layers.l2",
    "scapy.layers.inet",
    "scapy.layers.inet6",
    "scapy.layers.ppp",
    "scapy.layers.dot11",
    "scapy.layers.ppi",
    "scapy.layers.vxlan",
    "scapy.contrib.mpls",
    "scapy.contrib.nsh",
)
"""Each binds itself to the layers below it, and to its link types, when it is imported."""

_SAME_LINK = {14: 101}
"""Raw IP as OpenBSD numbers it, which scapy does not list."""

_MIN_IP_BYTES = 20
_NUMBERS = ("sport", "dport", "proto", "nh")
"""scapy names their values by /etc/services and /etc/protocols, which differ from machine to machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One protocol layer of a frame.

    Attributes:
        name: scapy's: `Ethernet`, `IP`, `IPv6`, `TCP`, `Raw`, …
        fields: (name, value as text) of those present, in their order on the wire.
        raw: the layer and all that it carries.
        options: of TCP: (name or number, value as text or empty).
    """

    name: str
    fields: tuple[tuple[str, str], ...]
    raw: bytes
    options: tuple[tuple[str, str], ...] = ()


class Dissector:
    """scapy's dissection of single frames. Slow (up to a millisecond a frame): for the few, never for all.

    Source: https://scapy.readthedocs.io, `conf.l2types` for the link types.
    """

    def __init__(self) -> None:
        # It warns of missing routes and the like, which nobody here asked.
        logging.getLogger("scapy").setLevel(logging.ERROR)
        for name in _LAYER_MODULES:
            importlib.import_module(name)
        from scapy.config import conf
        from scapy.error import Scapy_Exception
        from scapy.layers.inet import IP
        from scapy.layers.inet6 import IPv6

        self._types: dict[int, Any] = dict(conf.l2types.num2layer)
        self._ip = (IP, IPv6)
        # Below the first layer scapy itself catches whatever a damaged frame makes its dissectors raise.
        self._errors: tuple[type[Exception], ...] = (
            Scapy_Exception,
            struct.error,
            ArithmeticError,
            AssertionError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        )

    def knows(self, link: int) -> bool:
        """Whether frames of this LINKTYPE_ number can be dissected."""
        return _SAME_LINK.get(link, link) in self._types

    def ip_offset(self, frame: bytes, link: int) -> int:
        """Where the outermost IPv4 or IPv6 header begins in the frame; -1 where there is none to be read."""
        for layer in self._layers(frame, link):
            if isinstance(layer, self._ip):
                raw = bytes(layer.original)
                # Not found: it was compressed or encrypted, and has no place in the frame.
                return frame.find(raw) if len(raw) >= _MIN_IP_BYTES else -1
        return -1

    def layers(self, frame: bytes, link: int) -> list[Layer]:
        """All layers, outermost first; empty where the link type is not known or nothing fits."""
        return [
            Layer(
                name=str(layer.name),
                fields=tuple(
                    (str(field.name), self._text(layer, field))
                    for field in layer.fields_desc
                    if field.name in layer.fields
                ),
                raw=bytes(layer.original),
                options=_options(layer.fields.get("options")) if layer.name == "TCP" else (),
            )
            for layer in self._layers(frame, link)
        ]

    def _layers(self, frame: bytes, link: int) -> list[Any]:
        kind = self._types.get(_SAME_LINK.get(link, link))
        if kind is None or not frame:
            return []
        try:
            return list(kind(frame).iterpayloads())
        except self._errors:
            return []

    def _text(self, layer: Any, field: Any) -> str:
        value = layer.fields[field.name]
        if field.name in _NUMBERS:
            return str(value)
        try:
            return str(field.i2repr(layer, value))
        except self._errors:
            return repr(value)


def _options(listed: Any) -> tuple[tuple[str, str], ...]:
    """(name, value) pairs: the value None or empty, a number, bytes, or a tuple of numbers."""
    found = []
    for name, value in listed or ():
        if value is None or value == b"":
            text = ""
        elif isinstance(value, bytes):
            text = value.hex()
        elif isinstance(value, tuple):
            text = " ".join(map(str, value))
        else:
            text = str(value)
        found.append((name if isinstance(name, str) else f"kind {name}", text))
    return tuple(found)


class ListenSocket:
    """scapy's AF_PACKET socket of one interface, receiving without waiting."""

    def __init__(self, interface: str) -> None:
        """Open it; it receives everything until a filter is attached.

        Raises:
            OSError: PermissionError without CAP_NET_RAW; ENODEV where there is no such interface.
        """
        logging.getLogger("scapy").setLevel(logging.ERROR)
        importlib.import_module("scapy.layers.l2")
        from scapy.arch.linux import L2ListenSocket

        self._socket: Any = L2ListenSocket(iface=interface, promisc=False, nofilter=1)
        self._socket.ins.setblocking(False)

    def fileno(self) -> int:
        return int(self._socket.ins.fileno())

    def receive(self, most_bytes: int) -> tuple[bytes, int] | None:
        """The next frame, its VLAN tag put back, and its CLOCK_REALTIME ns (to about 0.3 µs); None: none waits."""
        try:
            _kind, frame, time_s = self._socket.recv_raw(most_bytes)
        except BlockingIOError:
            return None
        except OSError as error:
            # Said once when the interface goes down; it may come up again.
            if error.errno != errno.ENETDOWN:
                raise
            return None
        return (bytes(frame), int(time_s * 1_000_000_000)) if frame else None

    def close(self) -> None:
        self._socket.close()
