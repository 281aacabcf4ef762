"""The packets shown as evidence, layer by layer, as scapy reads them.

Checksums: RFC 1071; of TCP and UDP over the pseudo header: RFC 9293 section 3.1, RFC 768, RFC 8200 section 8.1.
"""

from __future__ import annotations

import struct

from sockscope.sources.packets.scapy_layers import Dissector, Layer

_TELLING = {
    "Ethernet": ("src", "dst", "type"),
    "IP": ("src", "dst", "ttl", "id", "flags", "len", "proto"),
    "IPv6": ("src", "dst", "hlim", "plen", "nh"),
    "TCP": ("sport", "dport", "flags", "seq", "ack", "window"),
    "UDP": ("sport", "dport", "len"),
}
"""Of the layers that everyone has; all fields of any other."""

_WHERE_SET = {"IP": ("frag", "tos", "options"), "IPv6": ("tc",), "TCP": ("reserved", "urgptr")}
"""Shown where they are not what they always are."""
_NOTHING = ("0", "0x0", "[]", "")

_TCP_CHECKSUM, _UDP_CHECKSUM = 16, 6
_PROTOCOLS = {"TCP": (6, _TCP_CHECKSUM, 20), "UDP": (17, _UDP_CHECKSUM, 8)}
_LOOPBACK_LINKS = (0, 108)
_MAX_TEXT = 200
_SHOWN_BYTES = 48


class Dissection:
    """Dissects frames; the first one made imports scapy."""

    def __init__(self) -> None:
        self._dissector = Dissector()

    def dissect(self, frame: bytes, link: int) -> list[str]:
        """One line a layer, outermost first, with the fields that tell something.

        What stands in a line came from the wire: escape it before it is shown.

        Args:
            frame: the captured bytes, which may be cut short.
            link: LINKTYPE_ number.
        """
        layers = self._dissector.layers(frame, link)
        if not layers:
            why = "cannot be read" if self._dissector.knows(link) else "is not known"
            return [f"{len(frame)} bytes; link type {link} {why}"]
        local = link in _LOOPBACK_LINKS or _on_loopback(layers)
        lines = []
        for number, layer in enumerate(layers):
            below = layers[number - 1] if number else None
            fault = "" if local else _checksum_fault(layer, below)
            lines.append(_line(layer) + (f"  {fault}" if fault else ""))
        return lines


def dissect(frame: bytes, link: int) -> list[str]:
    """`Dissection.dissect` of a single frame."""
    return Dissection().dissect(frame, link)


def _line(layer: Layer) -> str:
    if layer.name in ("Raw", "Padding"):
        more = "..." if len(layer.raw) > _SHOWN_BYTES else ""
        name = "Payload" if layer.name == "Raw" else "Padding"
        text = layer.raw[:_SHOWN_BYTES].decode("ascii", "backslashreplace")
        return f'{name}  {_bytes(len(layer.raw))}  "{text}"{more}'
    fields = dict(layer.fields)
    telling = _TELLING.get(layer.name)
    if telling is None:
        shown = list(layer.fields)
    else:
        shown = [(name, fields[name]) for name in telling if name in fields]
        rare = _WHERE_SET.get(layer.name, ())
        shown += [(name, fields[name]) for name in rare if fields.get(name, "") not in _NOTHING]
    parts = [layer.name, *(f"{name} {_short(value)}" for name, value in shown)]
    if layer.options:
        parts.append("options " + ", ".join(_option(name, value) for name, value in layer.options))
    return "  ".join(parts)


def _option(name: str, value: str) -> str:
    if name == "WScale" and value.isdigit():
        # RFC 7323: a shift of more than 14 counts as 14.
        return f"WScale {value} (x{1 << min(int(value), 14)})"
    return f"{name} {value}" if value else name


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "..."


def _bytes(count: int) -> str:
    return "1 byte" if count == 1 else f"{count} bytes"


def _on_loopback(layers: list[Layer]) -> bool:
    """Nobody fills in or checks checksums there: addresses of the host itself, or link addresses of zeros."""
    for layer in layers:
        if layer.name == "Ethernet" and not any(layer.raw[:12]):
            return True
        if layer.name == "IP" and len(layer.raw) >= 20 and (layer.raw[12] == 127 or layer.raw[16] == 127):
            return True
        if layer.name == "IPv6" and layer.raw[24:40] == bytes(15) + b"\x01":
            return True
    return False


def _checksum_fault(layer: Layer, below: Layer | None) -> str:
    """What is wrong with the layer's checksum; empty where it is right or cannot be told."""
    if layer.name == "IP" and len(layer.raw) >= 20:
        length = max((layer.raw[0] & 15) * 4, 20)
        if len(layer.raw) < length or _sum(layer.raw[:length]) == 0xFFFF:
            return ""
        return f"checksum 0x{layer.raw[10:12].hex()} is wrong"
    if layer.name not in _PROTOCOLS or below is None:
        return ""
    protocol, at, least = _PROTOCOLS[layer.name]
    found = _segment(below)
    if found is None or len(found[1]) < least:
        return ""
    addresses, segment = found
    (said,) = struct.unpack_from(">H", segment, at)
    if said == 0 and layer.name == "UDP":
        return ""
    pseudo = _sum(addresses + struct.pack(">II", len(segment), protocol))
    if _sum(segment + bytes(len(segment) % 2), pseudo) == 0xFFFF:
        return ""
    if said in (pseudo, _sum(addresses + struct.pack(">II", 0, protocol))):
        return "checksum left to the network card"
    if b"*" in segment[least:]:
        # The capture may have masked a credential.
        return ""
    return f"checksum 0x{said:04x} is wrong"


def _segment(below: Layer) -> tuple[bytes, bytes] | None:
    """Both addresses and the whole transport segment; None where it is cut, a fragment, or not right on IP."""
    raw = below.raw
    if below.name == "IP" and len(raw) >= 20:
        header, (total, _id, fragment) = max((raw[0] & 15) * 4, 20), struct.unpack_from(">HHH", raw, 2)
        if fragment & 0x3FFF or not header <= total <= len(raw):
            return None
        return raw[12:20], raw[header:total]
    if below.name == "IPv6" and len(raw) >= 40:
        (length,) = struct.unpack_from(">H", raw, 4)
        return (raw[8:40], raw[40 : 40 + length]) if 0 < length <= len(raw) - 40 else None
    return None


def _sum(data: bytes, start: int = 0) -> int:
    """Ones' complement sum of an even number of bytes."""
    total: int = start + sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) // 2 * 2]))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
