"""sock_diag answers in bulk: any mixture of lengths and attributes, cut and noise."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sockscope.model.sockaddr import V4_MAPPED_PREFIX
from sockscope.model.tcp import TcpState
from sockscope.sources.sockets.decode import Stamp, decode_inet, decode_unix, message_offsets
from tests.sources.sockets.messages import attribute, inet, message, tcp_info, unix, words

STAMP = Stamp(time_ns=11, snapshot=3, netns=44)
INFO = 2


def test_a_v4_socket_has_mapped_keys_and_host_order_ports() -> None:
    (row,) = decode_inet(words(inet(local="10.1.2.3", local_port=8080, peer="10.9.8.7", peer_port=5)), 6, STAMP)
    assert bytes(row["local"]) == V4_MAPPED_PREFIX + bytes([10, 1, 2, 3])
    assert bytes(row["peer"]) == V4_MAPPED_PREFIX + bytes([10, 9, 8, 7])
    assert (row["local_port"], row["peer_port"]) == (8080, 5)
    assert (row["time_ns"], row["snapshot"], row["netns"], row["protocol"]) == (11, 3, 44, 6)


def test_a_v6_socket_keeps_its_family_even_when_mapped() -> None:
    rows = decode_inet(words(inet(family=10, local="::ffff:1.2.3.4") + inet(family=10, local="fe80::1")), 6, STAMP)
    assert rows["family"].tolist() == [10, 10]
    assert bytes(rows["local"][0]) == V4_MAPPED_PREFIX + bytes([1, 2, 3, 4])
    assert bytes(rows["local"][1])[:2] == b"\xfe\x80"


def test_states_queues_and_numbers() -> None:
    (row,) = decode_inet(words(inet(state=TcpState.CLOSE_WAIT, queues=(6, 9), inode=77, cookie=1 << 40)), 6, STAMP)
    assert row["state"] == TcpState.CLOSE_WAIT
    assert (row["recv_q"], row["send_q"], row["inode"], row["cookie"]) == (6, 9, 77, 1 << 40)
    assert row["has_info"] == 0


def test_tcp_info_of_any_length() -> None:
    whole = inet(attributes=attribute(INFO, tcp_info(rtt=250, cwnd=10, received=99)))
    short = inet(attributes=attribute(INFO, tcp_info(rtt=251, cwnd=11, received=99, size=104)))
    rows = decode_inet(words(whole + inet() + short), 6, STAMP)
    assert rows["has_info"].tolist() == [1, 0, 1]
    assert rows["rtt_us"].tolist() == [250, 0, 251]
    assert rows["bytes_received"].tolist() == [99, 0, 0]


def test_other_attributes_before_the_one_wanted() -> None:
    before = attribute(8, b"\x01") + attribute(15, struct.pack("<I", 5))
    rows = decode_inet(words(inet(attributes=before + attribute(INFO, tcp_info(rtt=7)))), 6, STAMP)
    assert rows["rtt_us"].tolist() == [7]


def test_equal_length_with_another_layout_is_another_group() -> None:
    one = inet(attributes=attribute(INFO, tcp_info(rtt=7, size=104)) + attribute(8, b"\x01"))
    other = inet(attributes=attribute(8, b"\x01") + attribute(INFO, tcp_info(rtt=9, size=104)))
    assert len(one) == len(other)
    assert decode_inet(words(one + other + one), 6, STAMP)["rtt_us"].tolist() == [7, 9, 7]


def test_unix_names_peers_and_queues() -> None:
    named = unix(attributes=attribute(0, b"/run/a.sock") + attribute(2, struct.pack("<I", 9)))
    abstract = unix(attributes=attribute(0, b"\0bus"), inode=6)
    listening = unix(state=TcpState.LISTEN, attributes=attribute(4, struct.pack("<II", 1, 128)))
    rows = decode_unix(words(named + abstract + unix() + listening), STAMP)
    assert rows["path"].tolist() == [b"/run/a.sock", b"@bus", b"", b""]
    assert rows["peer_inode"].tolist() == [9, 0, 0, 0]
    assert (rows["recv_q"][3], rows["send_q"][3], rows["state"][3]) == (1, 128, TcpState.LISTEN)


def test_done_and_other_messages_are_no_sockets() -> None:
    raw = inet() + message(struct.pack("<i", 0), kind=3)
    assert len(decode_inet(words(raw), 6, STAMP)) == 1


@given(st.lists(st.integers(0, 300), max_size=600))
def test_offsets_of_any_lengths(bodies: list[int]) -> None:
    raw, expected = b"", []
    for body in bodies:
        expected.append(len(raw) // 4)
        raw += message(b"\0" * body)
    offsets, lengths = message_offsets(words(raw))
    assert offsets.tolist() == expected
    assert lengths.tolist() == [16 + body for body in bodies]


@given(st.integers(30, 400), st.integers(0, 40), st.integers(1, 15))
def test_long_runs_and_a_cut_tail(count: int, others: int, cut_words: int) -> None:
    raw = message(b"\0" * 72) * count + message(b"\0" * 100) * others + message(b"\0" * 72) * count
    offsets, _ = message_offsets(words(raw[: -4 * cut_words]))
    assert len(offsets) == 2 * count + others - 1


@given(
    st.lists(
        st.tuples(st.integers(1, 65535), st.sampled_from([None, 104, 240]), st.booleans(), st.integers(0, 2**32 - 1)),
        max_size=60,
    )
)
def test_any_mixture_decodes_row_by_row(sockets: list[tuple[int, int | None, bool, int]]) -> None:
    raw = b"".join(
        inet(
            local_port=port,
            inode=inode,
            attributes=(attribute(8, b"\x00") if mark else b"")
            + (attribute(INFO, tcp_info(rtt=port, size=size)) if size else b""),
        )
        for port, size, mark, inode in sockets
    )
    rows = decode_inet(words(raw), 6, STAMP)
    assert rows["local_port"].tolist() == [port for port, *_ in sockets]
    assert rows["inode"].tolist() == [inode for *_, inode in sockets]
    assert rows["rtt_us"].tolist() == [port if size else 0 for port, size, *_ in sockets]


@given(st.binary(max_size=2000))
def test_noise_never_raises(raw: bytes) -> None:
    decode_inet(words(raw), 6, STAMP)
    decode_unix(words(raw), STAMP)


@given(st.binary(max_size=64), st.integers(0, 300))
def test_noise_in_a_socket_never_raises(noise: bytes, at: int) -> None:
    raw = bytearray(inet(attributes=attribute(INFO, tcp_info())) * 3 + unix(attributes=attribute(0, b"/a")))
    raw[at : at + len(noise)] = noise
    decode_inet(words(bytes(raw)), 6, STAMP)
    decode_unix(words(bytes(raw)), STAMP)


def test_nothing_gives_an_empty_table() -> None:
    assert len(decode_inet(np.zeros(0, np.uint32), 6, STAMP)) == 0
