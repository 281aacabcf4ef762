"""Plain packets are read in one piece: what is said of them is what reading them field by field says."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.sources.packets import decode
from sockscope.sources.packets.files import read_packets
from sockscope.sources.packets.frames import Ints, Mask
from sockscope.sources.packets.offsets import Bytes
from sockscope.sources.packets.plain import plain_rows
from tests.sources.packets import captures
from tests.sources.packets.captures import Frame

LINKS = {1: b"\2" * 12, 113: b"\0\4" + b"\0" * 12, 276: b"", 0: b"\2\0\0\0", 101: b""}


@st.composite
def frames(draw: st.DrawFn, link: int) -> Frame:
    """IPv4 or IPv6 with TCP or nearly so: any bits may be other than they should, and any end be cut."""
    v4 = draw(st.booleans())
    options = draw(st.sampled_from([b"", b"\2\4\5\xb4\1\3\3\7", b"\1\1\3\3\x0e\0", b"\3\3", b"\3\2\1\1"]))
    body = draw(st.binary(max_size=30))
    offset = draw(st.sampled_from([5, 5 + (len(options) + 3) // 4, 0, 15]))
    ports = draw(st.sampled_from([(8080, 40000), (0, 1), (443, 443)]))
    tcp = struct.pack(
        ">HHIIBBHHH", *ports, 7, 9, offset << 4, draw(st.sampled_from([2, 18, 16, 17, 4])), 512, 0, 0
    ) + options.ljust(max(offset * 4 - 20, 0) % 44, b"\0")
    transport = tcp + body
    protocol = draw(st.sampled_from([6, 6, 6, 17, 1, 44]))
    total = draw(st.sampled_from([None, None, 0, 21, 65535]))
    if v4:
        length = 20 + len(transport) if total is None else total
        fragment = draw(st.sampled_from([0, 0, 0x4000, 0x2000, 0x0001]))
        version = draw(st.sampled_from([0x45, 0x45, 0x46, 0x55, 0x40]))
        ip = struct.pack(">BBHHHBBH", version, 0, length, 77, fragment, 64, protocol, 0) + b"\x7f\0\0\1" * 2
    else:
        length = len(transport) if total is None else total
        version = draw(st.sampled_from([0x60, 0x60, 0x60, 0x40]))
        ip = struct.pack(">BBHHBB", version, 0, 0, length, protocol, 64) + b"\xfe\x80" + b"\1" * 30
    kind = struct.pack(">H", 0x0800 if v4 else 0x86DD)
    if link == 276:
        head = kind + b"\0" * 8 + b"\4" + b"\0" * 9
    else:
        head = LINKS[link] + (kind if link in (1, 113) else b"")
    data = head + ip + transport
    return Frame(data=data[: draw(st.integers(1, len(data)) | st.just(len(data)))], wire=len(data))


@settings(max_examples=150, deadline=None)
@given(st.data())
@pytest.mark.parametrize("ports", [None, frozenset({8080})])
def test_as_field_by_field(
    tmp_path_factory: pytest.TempPathFactory, ports: frozenset[int] | None, data: st.DataObject
) -> None:
    link = data.draw(st.sampled_from(sorted(LINKS)))
    found = data.draw(st.lists(frames(link), min_size=1, max_size=12))
    path = tmp_path_factory.mktemp("plain") / "c.pcap"
    path.write_bytes(captures.pcap(found, link=link))
    quick = read_packets(path, ports=ports)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "plain_rows", lambda out, data, network, *_: np.zeros(len(network), np.bool_))
        slow = read_packets(path, ports=ports)
    assert list(map(str, quick.packets.records)) == list(map(str, slow.packets.records))
    assert quick.notes == slow.notes


def test_most_of_a_usual_capture_is_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []

    def watched(out: npt.NDArray[np.void], data: Bytes, network: Ints, on_wire: Ints, end: Ints, v4: bool) -> Mask:
        plain = plain_rows(out, data, network, on_wire, end, v4)
        shares.append(float(plain.mean()))
        return plain

    monkeypatch.setattr(decode, "plain_rows", watched)
    tcp = struct.pack(">HHIIBBHHH", 8080, 40000, 7, 9, 5 << 4, 16, 512, 0, 0)
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 40, 77, 0x4000, 64, 6, 0) + b"\x7f\0\0\1" * 2
    path = tmp_path / "c.pcap"
    path.write_bytes(captures.pcap([Frame(data=b"\2" * 12 + b"\x08\0" + ip + tcp)] * 50))
    assert len(read_packets(path).packets) == 50
    assert shares == [1.0]
