"""Captured frames decoded into the packet table, a batch at a time, column by column.

IPv4: RFC 791; IPv6 and its extension headers: RFC 8200; TCP: RFC 9293. Checksums are not verified. A frame that is
cut short, or is not IP, or not what it says, is left out; none raises.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.model.packets import PACKET_DTYPE
from sockscope.sources.packets.copies import without_copies
from sockscope.sources.packets.fragments import Fragments
from sockscope.sources.packets.frames import Frames, Ints, Mask
from sockscope.sources.packets.ip_layer import LATER, MORE, Ip
from sockscope.sources.packets.left_out import LeftOut
from sockscope.sources.packets.link_layers import COOKED, IPV4, IPV6, Locator, network_layer, odd_network_layer
from sockscope.sources.packets.offsets import Bytes, unaligned

BATCH_PACKETS = 1 << 16
"""Columns of a batch stay in the CPU's cache."""

_EXTENSIONS = (0, 43, 60, 135)
_FRAGMENT = 44
_MAX_EXTENSIONS = 8
_FIRST_ROWS = 1 << 16


class Decoder:
    """Fills the packet table from frames, in their order.

    Attributes:
        frame_count: frames it was given.

    Args:
        data: shape (k,), uint8, what the frames point into.
        ports: keep only TCP and UDP with one of these ports; None keeps all IP.
        odd: asked for frames that are not understood here.
    """

    def __init__(self, data: Bytes, ports: frozenset[int] | None, odd: Locator) -> None:
        self._data = data
        self._odd = odd
        self._wanted: Mask | None = None
        if ports is not None:
            self._wanted = np.zeros(65536, bool)
            self._wanted[[p for p in ports if 0 <= p < 65536]] = True
        self._rows = np.empty(_FIRST_ROWS, PACKET_DTYPE)
        self._count = 0
        self._fragments = Fragments()
        self._left_out = LeftOut()
        self._ip_ids: list[npt.NDArray[np.int32]] = []
        """Of cooked captures' packets; elsewhere of no use, and shape (0,)."""
        self.frame_count = 0

    def __len__(self) -> int:
        """Rows so far."""
        return self._count

    def feed(self, frames: Frames) -> None:
        """Decode some more."""
        self.frame_count += len(frames)
        for low in range(0, len(frames), BATCH_PACKETS):
            self._keep(*self._batch(frames.pick(slice(low, low + BATCH_PACKETS))))

    def finish(self) -> npt.NDArray[np.void]:
        """The rows of all frames since the last finish, in order; shape (m,), PACKET_DTYPE."""
        rows = self._rows
        # Moves no bytes: the memory beyond goes back.
        rows.resize(self._count, refcheck=False)
        self._fragments.complete(rows)
        if any(map(len, self._ip_ids)):
            rows = without_copies(rows, np.concatenate(self._ip_ids))
        self._rows, self._count = np.empty(_FIRST_ROWS, PACKET_DTYPE), 0
        self._ip_ids, self._fragments = [], Fragments()
        return rows

    def notes(self) -> list[str]:
        """One line a kind of packets that could not be used."""
        return self._left_out.notes()

    def _keep(self, rows: npt.NDArray[np.void], ip_id: npt.NDArray[np.int32]) -> None:
        end = self._count + len(rows)
        if end > len(self._rows):
            # Grows by remapping, so that the rows are never there twice.
            self._rows.resize(max(end, len(self._rows) * 2), refcheck=False)
        self._rows[self._count : end] = rows
        if len(ip_id) != len(rows):
            ip_id = np.full(len(rows), -1, np.int32) if self._ip_ids else ip_id
        elif len(ip_id) and not self._ip_ids:
            self._ip_ids.append(np.full(self._count, -1, np.int32))
        if self._ip_ids or len(ip_id):
            self._ip_ids.append(ip_id)
        self._count = end

    def _batch(self, frames: Frames) -> tuple[npt.NDArray[np.void], npt.NDArray[np.int32]]:
        """Rows, and the IPv4 identification of each (0 for IPv6; shape (0,) where none is of a cooked capture)."""
        data, wanted = self._data, self._wanted
        be16, be32 = unaligned(data, ">u2"), unaligned(data, ">u4")
        end = frames.start + frames.captured
        network, ethertype, outgoing = network_layer(data, be16, frames, end)
        odd_network_layer(data, be16, frames, network, ethertype, self._odd)

        v4 = (ethertype == IPV4) & (network + 20 <= end)
        v6 = (ethertype == IPV6) & (network + 40 <= end)
        first = np.where(v4 | v6, network, 0)
        version = data[first] >> 4 if len(data) else first
        v4 &= version == 4
        v6 &= version == 6
        keep = v4 | v6
        if not keep.all():
            frames, network, end, v4, outgoing = frames.pick(keep), network[keep], end[keep], v4[keep], outgoing[keep]
        n = len(frames)
        if not n:
            return np.zeros(0, PACKET_DTYPE), np.zeros(0, np.int32)
        ip = _ip(data, be16, network, frames.wire - (network - frames.start), end, v4)
        ported = ip.has_ports(end)
        self._left_out.count(be16, ip.protocol, ip.transport, ported, end)
        fragmented = np.flatnonzero(ip.fragment & (LATER | MORE))
        kept = np.arange(self._count, self._count + n)
        hit = None
        if wanted is not None:
            at = np.where(ported, ip.transport, 0)
            hit = ported & (wanted[be16[at]] | wanted[be16[np.where(ported, at + 2, 0)]])
            kept = np.where(hit, np.cumsum(hit) - 1 + self._count, -1)
        if len(fragmented):
            self._fragments.add(data, frames.time_ns, network, v4, ip, fragmented, kept)
        if hit is not None:
            frames, network, end, v4, outgoing = frames.pick(hit), network[hit], end[hit], v4[hit], outgoing[hit]
            ip, ported, n = ip.pick(hit), ported[hit], len(frames)

        out = np.zeros(n, PACKET_DTYPE)
        out["time_ns"] = frames.time_ns
        out["wire_bytes"] = frames.wire
        out["interface"] = frames.interface
        out["outgoing"] = outgoing
        out["protocol"] = ip.protocol
        out["wscale"] = -1
        _addresses(data, out, network, v4)
        _transport(data, be16, be32, out, ip, ported, end)
        if np.isin(frames.link, COOKED).any():
            return out, np.where(v4, be16[np.where(v4, network + 4, 0)].astype(np.int32), 0)
        return out, np.zeros(0, np.int32)


def _ip(data: Bytes, be16: npt.NDArray[np.uint16], network: Ints, on_wire: Ints, end: Ints, v4: Mask) -> Ip:
    if v4.all():
        return _ipv4(data, be16, network, on_wire)
    if not v4.any():
        return _ipv6(data, be16, network, on_wire, end)
    four, six = np.flatnonzero(v4), np.flatnonzero(~v4)
    parts = (
        _ipv4(data, be16, network[four], on_wire[four]),
        _ipv6(data, be16, network[six], on_wire[six], end[six]),
    )
    # Undo the split: position in (four, six) of each row.
    back = np.argsort(np.concatenate((four, six)), kind="stable")
    return Ip(
        transport=np.concatenate([p.transport for p in parts])[back],
        length=np.concatenate([p.length for p in parts])[back],
        protocol=np.concatenate([p.protocol for p in parts])[back],
        fragment=np.concatenate([p.fragment for p in parts])[back],
        id=np.concatenate([p.id for p in parts])[back],
    )


def _ipv4(data: Bytes, be16: npt.NDArray[np.uint16], network: Ints, on_wire: Ints) -> Ip:
    header = np.maximum((data[network] & 0x0F).astype(np.int64) * 4, 20)
    total = be16[network + 2].astype(np.int64)
    # 0: segmentation offload left it unset, so the frame's length must do.
    total = np.where(total == 0, on_wire, total)
    return Ip(
        transport=network + header,
        length=np.maximum(total - header, 0),
        protocol=data[network + 9].astype(np.int64),
        fragment=be16[network + 6].astype(np.int64),
        id=np.broadcast_to(np.int64(0), len(network)),
    )


def _ipv6(data: Bytes, be16: npt.NDArray[np.uint16], network: Ints, on_wire: Ints, end: Ints) -> Ip:
    total = be16[network + 4].astype(np.int64)
    # 0: a jumbogram (RFC 2675); hosts make them of TSO segments ("BIG TCP").
    total = np.where(total == 0, np.maximum(on_wire - 40, 0), total)
    kind = data[network + 6].astype(np.int64)
    at = network + 40
    fragment, identification = np.zeros(len(network), np.int64), np.zeros(len(network), np.int64)
    be32 = unaligned(data, ">u4")
    for _ in range(_MAX_EXTENSIONS):
        more = np.flatnonzero(np.isin(kind, (*_EXTENSIONS, _FRAGMENT)) & (at + 8 <= end) & ((fragment & LATER) == 0))
        if not len(more):
            break
        here = at[more]
        is_fragment = kind[more] == _FRAGMENT
        word = be16[here + 2].astype(np.int64)
        # As IPv4 has it: the offset in the lower bits, "more" above.
        fragment[more] |= np.where(is_fragment, (word >> 3) | (word & 1) << 13, 0)
        identification[more] |= np.where(is_fragment, be32[here + 4], 0)
        kind[more] = data[here]
        at[more] = here + np.where(is_fragment, 8, 8 * (1 + data[here + 1].astype(np.int64)))
    return Ip(
        transport=at,
        length=np.maximum(total - (at - network - 40), 0),
        protocol=kind,
        fragment=fragment,
        id=identification,
    )


def _addresses(data: Bytes, out: npt.NDArray[np.void], network: Ints, v4: Mask) -> None:
    """IPv4 addresses go in v4-mapped: 10 zero bytes, ff ff, the address."""
    every = bool(v4.all())
    rows: Ints | slice = slice(None) if every else np.flatnonzero(v4)
    quads = unaligned(data, "<u4")
    for name, at in (("src", 12), ("dst", 16)):
        words = out[name].view("<u4")
        if every or v4.any():
            words[rows, 2] = 0xFFFF0000
            words[rows, 3] = quads[network[rows] + at]
    if not every:
        rest = np.flatnonzero(~v4)
        wide = unaligned(data, "V16")
        for name, at in (("src", 8), ("dst", 24)):
            out[name][rest] = wide[network[rest] + at].view(np.uint8).reshape(-1, 16)


def _transport(
    data: Bytes,
    be16: npt.NDArray[np.uint16],
    be32: npt.NDArray[np.uint32],
    out: npt.NDArray[np.void],
    ip: Ip,
    ports: Mask,
    end: Ints,
) -> None:
    """Ports, TCP's fields, and where the payload lies."""
    at = np.where(ports, ip.transport, 0)
    if len(data) >= 4:
        out["sport"] = np.where(ports, be16[at], 0)
        out["dport"] = np.where(ports, be16[at + 2], 0)
    header = np.zeros(len(out), np.int64)
    tcp = np.flatnonzero(ports & (ip.protocol == 6) & (ip.transport + 16 <= end))
    if len(tcp):
        begin = ip.transport[tcp]
        out["seq"][tcp] = be32[begin + 4]
        out["ack"][tcp] = be32[begin + 8]
        header[tcp] = np.maximum((data[begin + 12] >> 4).astype(np.int64) * 4, 20)
        out["flags"][tcp] = data[begin + 13]
        out["window"][tcp] = be16[begin + 14]
        out["wscale"][tcp] = -1
        opening = tcp[(data[begin + 13] & 0x02) != 0]
        out["wscale"][opening] = _window_scale(data, ip.transport[opening], header[opening], end[opening])
    header[ports & (ip.protocol == 17)] = 8
    # A TCP header cut before its flags says nothing: it must not pass for data.
    cut = ports & (ip.protocol == 6)
    cut[tcp] = False
    out["sport"][cut] = 0
    out["dport"][cut] = 0
    payload = np.minimum(ip.transport + header, end)
    out["payload_bytes"] = np.maximum(ip.length - header, 0)
    out["payload_offset"] = payload
    out["captured_payload_bytes"] = np.minimum(end - payload, out["payload_bytes"].astype(np.int64))


def _window_scale(data: Bytes, begin: Ints, header: Ints, end: Ints) -> npt.NDArray[np.int8]:
    """The window scale option (kind 3) of each SYN; -1 where there is none. At most 40 option bytes."""
    scale = np.full(len(begin), -1, np.int8)
    at, stop = begin + 20, np.minimum(begin + header, end)
    rows = np.arange(len(begin))
    for _ in range(40):
        inside = at < stop
        at, stop, rows = at[inside], stop[inside], rows[inside]
        if not len(at):
            break
        kind = data[at]
        long = (at + 1 < stop) & (kind > 1)
        size = np.where(long, data[np.where(long, at + 1, 0)], 1).astype(np.int64)
        found = (kind == 3) & (size == 3) & (at + 2 < stop)
        scale[rows[found]] = np.minimum(data[at[found] + 2], 14).astype(np.int8)
        # End of options, a length that cannot be, or found: this row is done.
        on = (kind != 0) & ~found & ((kind == 1) | (long & (size >= 2)))
        at, stop, rows = (at + size)[on], stop[on], rows[on]
    return scale
