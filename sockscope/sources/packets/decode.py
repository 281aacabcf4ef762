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
from sockscope.sources.packets.plain import plain_rows
from sockscope.sources.packets.tcp_options import window_scales

BATCH_PACKETS = 1 << 16
"""Columns of a batch stay in the CPU's cache."""

_EXTENSIONS = (0, 43, 60, 135)
_FRAGMENT = 44
_MAX_EXTENSIONS = 8
_LEAST_BYTES = 16 + 20
"""Of a packet in a file: its record's header and that of IPv4. What claims to be smaller is no row."""


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
        self._rows = np.empty(0, PACKET_DTYPE)
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
        if len(frames):
            self._make_room(frames)
        for low in range(0, len(frames), BATCH_PACKETS):
            self._keep(*self._batch(frames.pick(slice(low, low + BATCH_PACKETS))))

    def _make_room(self, frames: Frames) -> None:
        """For these, and at first for as many as seem to lie behind them: what is not used is never touched."""
        need = self._count + len(frames)
        if need <= len(self._rows):
            return
        if self._count:
            # Grows by remapping, so that the rows are never there twice; but zeros what is new.
            self._rows.resize(max(need, len(self._rows) * 2), refcheck=False)
            return
        first, last = int(frames.start[0]), int(frames.start[-1])
        rest = len(self._data) - last
        behind = min(rest * len(frames) // max(last - first, 1) * 9 // 8, rest // _LEAST_BYTES)
        self._rows = np.empty(need + behind, PACKET_DTYPE)

    def finish(self) -> npt.NDArray[np.void]:
        """The rows of all frames since the last finish, in order; shape (m,), PACKET_DTYPE."""
        rows = self._rows
        # Moves no bytes: the memory beyond goes back.
        rows.resize(self._count, refcheck=False)
        self._fragments.complete(rows)
        if any(map(len, self._ip_ids)):
            rows = without_copies(rows, np.concatenate(self._ip_ids))
        self._rows, self._count = np.empty(0, PACKET_DTYPE), 0
        self._ip_ids, self._fragments = [], Fragments()
        return rows

    def notes(self) -> list[str]:
        """One line a kind of packets that could not be used."""
        return self._left_out.notes()

    def _keep(self, count: int, ip_id: npt.NDArray[np.int32]) -> None:
        """Rows that lie behind those so far belong to them."""
        if len(ip_id) != count:
            ip_id = np.full(count, -1, np.int32) if self._ip_ids else ip_id
        elif len(ip_id) and not self._ip_ids:
            self._ip_ids.append(np.full(self._count, -1, np.int32))
        if self._ip_ids or len(ip_id):
            self._ip_ids.append(ip_id)
        self._count += count

    def _batch(self, frames: Frames) -> tuple[int, npt.NDArray[np.int32]]:
        """Writes rows behind those so far.

        Returns:
            How many; and the IPv4 identification of each (0 for IPv6; shape (0,) where none is of a cooked capture).
        """
        data, wanted = self._data, self._wanted
        be16 = unaligned(data, ">u2")
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
        if not len(frames):
            return 0, np.zeros(0, np.int32)
        on_wire = frames.wire - (network - frames.start)
        out = self._rows[self._count : self._count + len(frames)]
        rest = _plain(out, data, network, on_wire, end, v4)
        hit = None if wanted is None else wanted[out["sport"]] | wanted[out["dport"]]
        if len(rest):
            ip = _ip(data, be16, network[rest], on_wire[rest], end[rest], v4[rest])
            ported = ip.has_ports(end[rest])
            self._left_out.count(be16, ip.protocol, ip.transport, ported, end[rest])
            if wanted is not None and hit is not None:
                at = np.where(ported, ip.transport, 0)
                hit[rest] = ported & (wanted[be16[at]] | wanted[be16[np.where(ported, at + 2, 0)]])
            fragmented = np.flatnonzero(ip.fragment & (LATER | MORE))
            if len(fragmented):
                kept = np.arange(len(out)) if hit is None else np.where(hit, np.cumsum(hit) - 1, -1 - self._count)
                kept = kept[rest] + self._count
                self._fragments.add(data, frames.time_ns[rest], network[rest], v4[rest], ip, fragmented, kept)
            out[rest] = _rows(data, be16, network[rest], v4[rest], ip, ported, end[rest])
        out["time_ns"] = frames.time_ns
        out["wire_bytes"] = frames.wire
        out["interface"] = frames.interface
        out["outgoing"] = outgoing
        ip_id = np.zeros(0, np.int32)
        if np.isin(frames.link, COOKED).any():
            ip_id = np.where(v4, be16[np.where(v4, network + 4, 0)].astype(np.int32), 0)
        if hit is None:
            return len(out), ip_id
        asked = out[hit]
        out[: len(asked)] = asked
        return len(asked), ip_id[hit] if len(ip_id) else ip_id


def _plain(
    out: npt.NDArray[np.void], data: Bytes, network: Ints, on_wire: Ints, end: Ints, v4: Mask
) -> npt.NDArray[np.intp]:
    """Fill in the rows of plain packets; which are not plain."""
    if v4.all() or not v4.any():
        plain = plain_rows(out, data, network, on_wire, end, bool(v4[0]))
        return np.flatnonzero(~plain)
    left = np.ones(len(network), np.bool_)
    for four in (True, False):
        which = np.flatnonzero(v4 == four)
        rows = np.empty(len(which), PACKET_DTYPE)
        plain = plain_rows(rows, data, network[which], on_wire[which], end[which], four)
        out[which] = rows
        left[which[plain]] = False
    return np.flatnonzero(left)


def _rows(
    data: Bytes, be16: npt.NDArray[np.uint16], network: Ints, v4: Mask, ip: Ip, ported: Mask, end: Ints
) -> npt.NDArray[np.void]:
    """What the headers of any packets say: shape (n,), PACKET_DTYPE."""
    out = np.zeros(len(network), PACKET_DTYPE)
    out["protocol"] = ip.protocol
    out["wscale"] = -1
    _addresses(data, out, network, v4)
    _transport(data, be16, unaligned(data, ">u4"), out, ip, ported, end)
    return out


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
        out["wscale"][opening] = window_scales(data, ip.transport[opening], header[opening], end[opening])
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
