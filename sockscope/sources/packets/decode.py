"""Captured frames decoded into the packet table, a batch at a time, column by column.

Link layers: https://www.tcpdump.org/linktypes.html. IPv4: RFC 791; IPv6 and its extension headers: RFC 8200;
TCP: RFC 9293. A frame that is cut short, or is not IP, or not what it says, is left out; none raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sockscope.model.packets import PACKET_DTYPE
from sockscope.sources.packets.offsets import Bytes, unaligned

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Column = npt.NDArray[Any]
"""Integers of any width."""

BATCH_PACKETS = 1 << 16
"""Columns of a batch stay in the CPU's cache."""

IPV4, IPV6 = 0x0800, 0x86DD
_VLANS = (0x8100, 0x88A8, 0x9100)
_EXTENSIONS = (0, 43, 60, 135)
_FRAGMENT = 44
_MAX_EXTENSIONS = 8
_MAX_VLANS = 3
_OUTGOING = 4


class LinkType(IntEnum):
    """LINKTYPE_ numbers (and the DLT_ numbers that some writers leave for raw IP)."""

    NULL = 0
    ETHERNET = 1
    RAW_BSD = 12
    RAW_OPENBSD = 14
    RAW = 101
    LOOP = 108
    LINUX_SLL = 113
    IPV4 = 228
    IPV6 = 229
    LINUX_SLL2 = 276


_COOKED = (LinkType.LINUX_SLL, LinkType.LINUX_SLL2)
_KNOWN_LINKS = tuple(int(link) for link in LinkType)
_CARRIERS = (0x6558, 0x8847, 0x8848, 0x8864, 0x88E7, 0x894F)
"""EtherTypes that may carry IP further in: bridged Ethernet, MPLS, PPPoE sessions, 802.1ah, NSH."""
_MAX_LENGTH = 1500
_SNAP = 0xAAAA
"""Below the EtherTypes: a length, and LLC after it; 802.2 SNAP alone carries IP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Frames to decode: where each lies in the file's bytes, all shape (n,), of any integer dtype.

    Attributes:
        start: first captured byte. captured: how many there are. wire: how many there were.
        time_ns: CLOCK_REALTIME. link: LINKTYPE_ number. interface: index of the interface.
    """

    start: Column
    captured: Column
    wire: Column
    time_ns: Column
    link: Column
    interface: Column

    def __len__(self) -> int:
        return len(self.start)

    def pick(self, which: slice | Mask | Ints) -> Frames:
        """Some of them, as int64."""
        return Frames(
            start=self.start[which].astype(np.int64, copy=False),
            captured=self.captured[which].astype(np.int64, copy=False),
            wire=self.wire[which].astype(np.int64, copy=False),
            time_ns=self.time_ns[which].astype(np.int64, copy=False),
            link=self.link[which].astype(np.int64, copy=False),
            interface=self.interface[which].astype(np.int64, copy=False),
        )

    def moved(self, by: int) -> Frames:
        """The same frames in an array that begins so many bytes earlier."""
        return replace(self, start=self.start + by) if by else self


def concatenate(parts: Sequence[Frames]) -> Frames:
    """One after another."""
    if len(parts) == 1:
        return parts[0]
    none = [np.zeros(0, np.int64)]
    return Frames(
        start=np.concatenate([p.start for p in parts] or none),
        captured=np.concatenate([p.captured for p in parts] or none),
        wire=np.concatenate([p.wire for p in parts] or none),
        time_ns=np.concatenate([p.time_ns for p in parts] or none),
        link=np.concatenate([p.link for p in parts] or none),
        interface=np.concatenate([p.interface for p in parts] or none),
    )


class Locator(Protocol):
    """Finds IP in frames whose link layer is none of `LinkType`, or carries one of `_CARRIERS`."""

    def locate(self, data: Bytes, frames: Frames) -> Ints:
        """Offset in `data` of each frame's IP header, shape (n,); -1 where there is none."""
        ...


def decode(data: Bytes, frames: Frames, ports: frozenset[int] | None, odd: Locator) -> npt.NDArray[np.void]:
    """All IP packets among the frames, in order; shape (m,), PACKET_DTYPE.

    Args:
        data: shape (k,), uint8, what `frames` points into.
        frames: the frames.
        ports: keep only TCP and UDP with one of these ports; None keeps all IP.
        odd: asked for frames that are not understood here.
    """
    wanted = None
    if ports is not None:
        wanted = np.zeros(65536, bool)
        wanted[[p for p in ports if 0 <= p < 65536]] = True
    out = np.empty(len(frames), PACKET_DTYPE)
    count = 0
    for low in range(0, len(frames), BATCH_PACKETS):
        records, ip_id = _decode_batch(data, frames.pick(slice(low, low + BATCH_PACKETS)), wanted, odd)
        records = _without_copies(records, ip_id)
        out[count : count + len(records)] = records
        count += len(records)
    # A view would keep the memory of all that was left out.
    return out[:count].copy() if count < len(out) // 2 else out[:count]


def _decode_batch(
    data: Bytes, frames: Frames, wanted: Mask | None, odd: Locator
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.int64]]:
    """One batch, and the IPv4 identification of each (only for cooked captures; -1 elsewhere)."""
    be16, be32 = unaligned(data, ">u2"), unaligned(data, ">u4")
    end = frames.start + frames.captured
    network, ethertype, outgoing = _network_layer(data, be16, frames, end)
    _odd_network_layer(data, be16, frames, network, ethertype, odd)

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
        return np.zeros(0, PACKET_DTYPE), np.zeros(0, np.int64)
    ip = _ip(data, be16, network, frames.wire - (network - frames.start), end, v4)
    ported = ip.has_ports(end)
    if wanted is not None:
        at = np.where(ported, ip.transport, 0)
        hit = ported & (wanted[be16[at]] | wanted[be16[np.where(ported, at + 2, 0)]])
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
    if np.isin(frames.link, _COOKED).any():
        return out, np.where(v4, be16[np.where(v4, network + 4, 0)].astype(np.int64), 0)
    return out, np.full(n, -1, np.int64)


def _network_layer(
    data: Bytes, be16: npt.NDArray[np.uint16], frames: Frames, end: Ints
) -> tuple[Ints, Ints, npt.NDArray[np.uint8]]:
    """Where the network header begins, its EtherType (0: unknown), and whether this host sent it."""
    n = len(frames)
    network, ethertype, outgoing = frames.start.copy(), np.zeros(n, np.int64), np.zeros(n, np.uint8)
    for link in np.unique(frames.link).tolist():
        of_link = frames.link == link
        mine: Ints | slice = slice(None) if of_link.all() else np.flatnonzero(of_link)
        start, stop = frames.start[mine], end[mine]
        if link == LinkType.ETHERNET:
            network[mine], ethertype[mine] = _ethertype(be16, start + 12, stop)
        elif link == LinkType.LINUX_SLL:
            network[mine], ethertype[mine] = _ethertype(be16, start + 14, stop)
            fits = start + 16 <= stop
            outgoing[mine] = fits & (be16[np.where(fits, start, 0)] == _OUTGOING)
        elif link == LinkType.LINUX_SLL2:
            fits = start + 20 <= stop
            kind = np.where(fits, be16[np.where(fits, start, 0)], 0).astype(np.int64)
            network[mine], ethertype[mine] = _skip_vlans(be16, start + 20, kind, stop)
            outgoing[mine] = fits & (data[np.where(fits, start + 10, 0)] == _OUTGOING)
        elif link in (LinkType.NULL, LinkType.LOOP):
            # The address family's number differs per system and byte order; the version nibble does not.
            network[mine], ethertype[mine] = start + 4, _by_version(data, start + 4, stop)
        elif link in (LinkType.RAW, LinkType.RAW_BSD, LinkType.RAW_OPENBSD, LinkType.IPV4, LinkType.IPV6):
            ethertype[mine] = _by_version(data, start, stop)
    return network, ethertype, outgoing


def _odd_network_layer(
    data: Bytes, be16: npt.NDArray[np.uint16], frames: Frames, network: Ints, ethertype: Ints, odd: Locator
) -> None:
    """Fill in, in place, what only `odd` can say."""
    strange = np.flatnonzero((ethertype != IPV4) & (ethertype != IPV6))
    if not len(strange):
        return
    kind, at, link = ethertype[strange], network[strange], frames.link[strange]
    end = frames.start[strange] + frames.captured[strange]
    fits = (at + 2 <= end) & (kind <= _MAX_LENGTH) & (kind > 0)
    snap = fits & (be16[np.where(fits, at, 0)] == _SNAP) if len(be16) else fits
    strange = strange[~np.isin(link, _KNOWN_LINKS) | np.isin(kind, _CARRIERS) | snap]
    if not len(strange):
        return
    found = odd.locate(data, frames.pick(strange))
    rows, found = strange[found >= 0], found[found >= 0]
    network[rows] = found
    ethertype[rows] = np.where(data[found] >> 4 == 4, IPV4, IPV6)


def _by_version(data: Bytes, at: Ints, end: Ints) -> Ints:
    fits = at < end
    version = data[np.where(fits, at, 0)] >> 4
    kind: Ints = np.where(version == 4, IPV4, np.where(version == 6, IPV6, 0))
    return np.where(fits, kind, 0)


def _ethertype(be16: npt.NDArray[np.uint16], at: Ints, end: Ints) -> tuple[Ints, Ints]:
    fits = at + 2 <= end
    kind = np.where(fits, be16[np.where(fits, at, 0)], 0).astype(np.int64)
    return _skip_vlans(be16, at + 2, kind, end)


def _skip_vlans(be16: npt.NDArray[np.uint16], network: Ints, kind: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Past 802.1Q and 802.1ad tags: two bytes of tag, two of the next EtherType."""
    for _ in range(_MAX_VLANS):
        tagged = np.flatnonzero(np.isin(kind, _VLANS))
        if not len(tagged):
            break
        at = network[tagged]
        fits = at + 4 <= end[tagged]
        kind[tagged] = np.where(fits, be16[np.where(fits, at + 2, 0)], 0)
        network[tagged] = at + 4
    return network, kind


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ip:
    """The IP layer of a batch: columns of the same length.

    Attributes:
        transport: first byte after the IP headers. length: bytes from there on, by the IP header.
        protocol: what IP says follows. later: a fragment other than the first.
    """

    transport: Ints
    length: Ints
    protocol: Ints
    later: Mask

    def has_ports(self, end: Ints) -> Mask:
        """TCP or UDP, the first or only fragment, the ports captured."""
        ported: Mask = (self.protocol == 6) | (self.protocol == 17)
        ported &= ~self.later & (self.transport + 4 <= end)
        return ported

    def pick(self, which: Mask) -> _Ip:
        return _Ip(
            transport=self.transport[which],
            length=self.length[which],
            protocol=self.protocol[which],
            later=self.later[which],
        )


def _ip(data: Bytes, be16: npt.NDArray[np.uint16], network: Ints, on_wire: Ints, end: Ints, v4: Mask) -> _Ip:
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
    return _Ip(
        transport=np.concatenate([p.transport for p in parts])[back],
        length=np.concatenate([p.length for p in parts])[back],
        protocol=np.concatenate([p.protocol for p in parts])[back],
        later=np.concatenate([p.later for p in parts])[back],
    )


def _ipv4(data: Bytes, be16: npt.NDArray[np.uint16], network: Ints, on_wire: Ints) -> _Ip:
    header = np.maximum((data[network] & 0x0F).astype(np.int64) * 4, 20)
    total = be16[network + 2].astype(np.int64)
    # 0: segmentation offload left it unset, so the frame's length must do.
    total = np.where(total == 0, on_wire, total)
    return _Ip(
        transport=network + header,
        length=np.maximum(total - header, 0),
        protocol=data[network + 9].astype(np.int64),
        later=(be16[network + 6] & 0x1FFF) != 0,
    )


def _ipv6(data: Bytes, be16: npt.NDArray[np.uint16], network: Ints, on_wire: Ints, end: Ints) -> _Ip:
    total = be16[network + 4].astype(np.int64)
    # 0: a jumbogram (RFC 2675); hosts make them of TSO segments ("BIG TCP").
    total = np.where(total == 0, np.maximum(on_wire - 40, 0), total)
    kind = data[network + 6].astype(np.int64)
    at = network + 40
    later = np.zeros(len(network), bool)
    for _ in range(_MAX_EXTENSIONS):
        more = np.flatnonzero(np.isin(kind, (*_EXTENSIONS, _FRAGMENT)) & (at + 8 <= end) & ~later)
        if not len(more):
            break
        here = at[more]
        fragment = kind[more] == _FRAGMENT
        later[more] = fragment & ((be16[here + 2] & 0xFFF8) != 0)
        kind[more] = data[here]
        at[more] = here + np.where(fragment, 8, 8 * (1 + data[here + 1].astype(np.int64)))
    return _Ip(transport=at, length=np.maximum(total - (at - network - 40), 0), protocol=kind, later=later)


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
    ip: _Ip,
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


def _without_copies(records: npt.NDArray[np.void], ip_id: Ints) -> npt.NDArray[np.void]:
    """Drop the outgoing one where `-i any` shows one packet both leaving and arriving within a millisecond."""
    if not len(records) or (ip_id < 0).all():
        return records
    outgoing = records["outgoing"] != 0
    if outgoing.all() or not outgoing.any():
        return records
    dtype = records.dtype
    assert dtype.fields is not None
    low, high = dtype.fields["src"][1], dtype.fields["wire_bytes"][1]
    body = records.view(np.uint8).reshape(len(records), dtype.itemsize)[:, low:high]
    words = np.ascontiguousarray(body).view("<u4").astype(np.uint64)
    key = ip_id.astype(np.uint64)
    for column in range(words.shape[1]):
        key = (key ^ words[:, column]) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    order = np.argsort(key, kind="stable")
    before, after = order[:-1], order[1:]
    near = np.abs(records["time_ns"][after] - records["time_ns"][before]) <= 1_000_000
    same = (key[before] == key[after]) & near & (outgoing[before] != outgoing[after])
    drop = np.zeros(len(records), bool)
    # One copy goes with one original: of four in a row, two pairs.
    run = np.arange(len(same)) - np.maximum.accumulate(np.where(~same, np.arange(len(same)) + 1, 0))
    pair = same & (run % 2 == 0)
    drop[np.where(outgoing[before], before, after)[pair]] = True
    return records[~drop]
