"""No text breaks the encoder: cut anywhere, noise put in, anything at all."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockscope.model.events import unpack_sections
from sockscope.sources.syscalls.strace_log.arguments import MAX_BYTES
from sockscope.sources.syscalls.strace_log.encode import NotUnderstood, encode
from sockscope.sources.syscalls.strace_log.signatures import CALLS
from sockscope.sources.syscalls.strace_log.texts import Text
from sockscope.sources.syscalls.strace_log.values import word_number

NAMES = st.sampled_from(sorted(CALLS))
PIECES = st.sampled_from(
    [
        *(b"3", b"-1", b"0x7f", b"0600", b"NULL", b"AF_INET", b"A|B", b"[", b"]", b"{", b"}", b"(", b")", b", ", b"="),
        *(b'"', b'"a\\1"', b'"..."...', b"...", b" => ", b"->", b"3<TCP:[1->2]>", b"<", b">", b" ", b"/* x */", b"/*"),
        *(b"sa_family=", b"iov_base=", b"iov_len=", b"msg_name=", b"msg_iov=", b"fd=", b"events=", b"data=", b"u64="),
        *(b"msg_control=", b"cmsg_len=", b"cmsg_data=", b"SCM_RIGHTS", b"SOL_SOCKET", b"SO_LINGER", b"htons(80)"),
        *(b"9" * 30, b"0x" + b"f" * 30, b"0" * 30, b"|" * 5, b"\\", b"\xff", b"\0", b"@", b"~", b"tv_sec="),
    ]
)
ARGUMENTS = st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=40).map(b"".join))
RESULTS = st.one_of(st.binary(max_size=40), st.lists(PIECES, max_size=10).map(b"".join), st.just(b"1"), st.just(b"0"))

REAL = (
    (
        "accept4",
        b'3<a->, {sa_family=AF_INET, sin_port=htons(1), sin_addr=inet_addr("1.2.3.4")}, [128 => 16]',
        b"5<x>",
    ),
    (
        "recvmsg",
        (
            b'4, {msg_name(0)=NULL, msg_iov(1)=[{iov_base="ab\\1", iov_len=64}], msg_control=[{cmsg_len=20, '
            b"cmsg_level=SOL_SOCKET, cmsg_type=SCM_RIGHTS, cmsg_data=[6]}], msg_controllen=24, msg_flags=0}, 0"
        ),
        b"3",
    ),
    ("poll", b"[{fd=3<pipe:[1]>, events=POLLIN}, {fd=-1}], 2, 10", b"1 ([{fd=3, revents=POLLOUT}])"),
    ("select", b"6, [3<pipe:[1]> 5], [9], NULL, {tv_sec=1, tv_usec=7}", b"2 (in [3], out [9], left {1, 5})"),
    ("epoll_wait", b"4, [{events=EPOLLIN, data={u32=1, u64=1}}, ...], 8, -1", b"2"),
    ("clone", b"child_stack=NULL, flags=CLONE_VM|SIGCHLD, child_tidptr=0x7f", b"9"),
    ("wait4", b"-1, [{WIFEXITED(s) && WEXITSTATUS(s) == 3}], 0, NULL", b"9"),
)


def is_an_answer(name: str, arguments: bytes, result: bytes) -> None:
    with contextlib.suppress(NotUnderstood):
        encoded = encode(name, arguments, result)
        if encoded is not None:
            assert all(0 <= each < 1 << 64 for each in encoded.args)
            assert -(1 << 63) <= encoded.ret < 1 << 63
            assert sum(8 + len(data) for _, _, data in unpack_sections(encoded.blob)) == len(encoded.blob)
            assert len(encoded.blob) < 1 << 20
            assert all(0 <= each.fd < 1 << 31 for each in encoded.named)


@given(NAMES, ARGUMENTS, RESULTS)
def test_any_bytes(name: str, arguments: bytes, result: bytes) -> None:
    is_an_answer(name, arguments, result)


@given(st.sampled_from(REAL), st.integers(0, 300), st.integers(0, 300), st.binary(max_size=6))
def test_cut_and_spliced_calls(call: tuple[str, bytes, bytes], start: int, end: int, noise: bytes) -> None:
    name, arguments, result = call
    is_an_answer(name, arguments[:end], result)
    is_an_answer(name, arguments[:start] + noise + arguments[start + len(noise) :], result)
    is_an_answer(name, arguments, result[:start] + noise)


@given(st.binary(max_size=100))
def test_words_and_strings(raw: bytes) -> None:
    word_number(raw)
    assert len(Text(raw, False).data) <= len(raw)


@given(st.binary(max_size=60))
def test_strings_as_strace_escapes_them(data: bytes) -> None:
    octal = "".join(f"\\{each:03o}" for each in data).encode()
    sixteen = "".join(f"\\x{each:02x}" for each in data).encode()
    assert Text(octal, False).data == Text(sixteen, False).data == data


@pytest.mark.parametrize(
    "piece",
    [b"1<", b"(", b'"', b'"\\', b"a|", b"a ", b"/*", b"->", b"{a=", b"a=>", b"<->", b"[3 ", b"\\", b"1<2>-", b"*/ /*"],
)
def test_long_texts_take_no_more_than_their_length(piece: bytes) -> None:
    # A quadratic step would take minutes here, not a moment.
    is_an_answer("sendmsg", b"3, " + piece * (200_000 // len(piece)), piece * (20_000 // len(piece)))


def test_a_text_past_all_measure_is_refused() -> None:
    with pytest.raises(NotUnderstood):
        encode("write", b'3, "' + b"a" * MAX_BYTES + b'", 9', b"9")
