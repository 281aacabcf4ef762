"""Listings of ss and netstat: every version's, cut, spliced and noisy ones."""

from __future__ import annotations

import gzip
import os
import socket
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.errors import DamagedInputError, UsageError
from sockscope.model.sockaddr import Family
from sockscope.model.sockets import OWNER_DTYPE, SOCKET_DTYPE, STAND_IN_INODE
from sockscope.model.tcp import TcpState
from sockscope.sources.sockets.text.reader import SocketText, read_socket_texts

SAMPLES = Path(__file__).parent / "samples"
"""One process's sockets, listed by real tools in a network namespace of their own."""
NAMES = sorted(path.name for path in SAMPLES.iterdir())
V4_LISTENER, V6_LISTENER, DATAGRAMS = 18991, 18992, 18993


def sample(name: str) -> SocketText:
    return read_socket_texts([SAMPLES / name])


def of_text(folder: Path, text: str, name: str = "listing.txt") -> SocketText:
    path = folder / name
    path.write_text(text)
    return read_socket_texts([path])


def at_port(text: SocketText, port: int, state: TcpState) -> npt.NDArray[np.void]:
    rows = text.sockets.records
    found: npt.NDArray[np.void] = rows[(rows["local_port"] == port) & (rows["state"] == state)]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_line_of_every_version_is_read(name: str) -> None:
    text = sample(name)
    assert text.unread_count == 0
    assert text.snapshot_count == 1
    (listener,) = at_port(text, V4_LISTENER, TcpState.LISTEN)
    assert (listener["family"], listener["protocol"], listener["recv_q"]) == (Family.INET, 6, 2)
    (both,) = at_port(text, V6_LISTENER, TcpState.LISTEN)
    assert both["family"] == Family.INET6
    assert not both["local"].any()
    queued = at_port(text, V4_LISTENER, TcpState.ESTABLISHED)
    assert len(queued) == 2
    (mapped,) = at_port(text, V6_LISTENER, TcpState.TIME_WAIT)
    assert (mapped["family"], mapped["local"].tobytes()[-6:], mapped["inode"]) == (10, b"\xff\xff\x7f\0\0\x01", 0)
    rows = text.sockets.records
    assert (np.count_nonzero(rows["protocol"] == 17) == 1) == text.covers.udp
    assert text.covers.unix == bool((rows["family"] == Family.UNIX).any())
    told = "pe" in name or "tuanpe" in name
    assert text.covers.has_inodes == told
    assert (not queued["inode"].any()) == ("p" in name.split("-")[-1].removesuffix(".txt"))


def test_what_ss_tells_in_detail() -> None:
    text = sample("ss-7.3-tuanpeio.txt")
    (left,) = text.sockets.records[text.sockets.records["state"] == TcpState.CLOSE_WAIT]
    assert (left["inode"], left["cookie"], left["recv_q"], left["has_info"]) == (18677843, 0x498CEC, 1, 1)
    assert (left["rtt_us"], left["cwnd"], left["bytes_acked"], left["bytes_received"]) == (13, 10, 1, 1)
    (over,) = at_port(text, V6_LISTENER, TcpState.FIN_WAIT2)
    assert (over["timer"], over["timer_ms"], over["inode"]) == (3, 59_000, 0)
    tgid = next(iter(text.comms))
    assert text.comms == {tgid: "python3"}
    assert (18677843, tgid, 11) in text.sockets.owners.tolist()
    assert text.facts.processes["comm"].tolist() == [b"python3"]


def test_netstat_names_processes_and_no_descriptors() -> None:
    text = sample("netstat-2.10-anpeo.txt")
    assert not text.covers.has_limits
    assert text.covers.has_timers
    assert set(text.sockets.owners["fd"].tolist()) == {-1}
    unix = text.sockets.records[text.sockets.records["family"] == Family.UNIX]
    assert b"@h5" in unix["path"].tolist()


def test_unix_names_with_spaces() -> None:
    rows = sample("ss-6.15-tuxanpeO.txt").sockets.records
    (named,) = rows[rows["path"] != b""]
    assert (named["path"], named["state"], named["type"], named["send_q"]) == (b"@h5 abs", 10, 1, 128)


OLD = """State      Recv-Q Send-Q Local Address:Port               Peer Address:Port
LISTEN     0      128          *:22                       *:*                   users:(("sshd",1200,3))
LISTEN     0      128         :::22                      :::*                   users:(("sshd",1200,4))
ESTAB      0      52     10.0.0.1:22                 10.0.0.9:50000              \
timer:(on,228ms,0) users:(("sshd: a b",pid=2,fd=3),("sh",pid=3,proc_ctx=x:y,fd=3,sock_ctx=z)) uid:7 \
ino:77 sk:ffff880 -->
"""


def test_old_versions(tmp_path: Path) -> None:
    text = of_text(tmp_path, OLD)
    rows = text.sockets.records
    assert rows["family"].tolist() == [Family.INET, Family.INET6, Family.INET]
    assert socket.inet_ntop(socket.AF_INET6, rows["local"][0].tobytes()) == "::ffff:0.0.0.0"
    assert rows[["uid", "inode", "cookie", "timer", "timer_ms", "send_q"]][2].tolist() == (7, 77, 0xFFFF880, 1, 228, 52)
    assert text.sockets.owners.tolist()[0] == (77, 2, 3)
    assert text.comms == {1200: "sshd", 2: "sshd: a b", 3: "sh"}


@pytest.mark.parametrize(
    ("span", "milliseconds"),
    [
        ("119min", 7_140_000),
        ("1min4sec", 64_000),
        ("59sec", 59_000),
        ("4.396ms", 4396),
        ("396ms", 396),
        ("2hr", 7_200_000),
        ("?", 0),
    ],
)
def test_timers(tmp_path: Path, span: str, milliseconds: int) -> None:
    line = f"ESTAB 0 0 127.0.0.1:1 127.0.0.1:2 timer:(keepalive,{span},3)\n"
    (row,) = of_text(tmp_path, line).sockets.records
    assert (row["timer"], row["timer_ms"], row["retransmits"]) == (2, milliseconds, 3)


def test_ends_of_all_kinds(tmp_path: Path) -> None:
    text = of_text(
        tmp_path,
        "udp UNCONN 0 0 127.0.0.53%lo:53 0.0.0.0:*\n"
        "tcp LISTEN 0 1 [fe80::1]%eth0:80 [::]:*\n"
        "tcp LISTEN 0 1 0.0.0.0:http 0.0.0.0:*\n"
        "tcp LISTEN 0 1 0.0.0.0:nosuchservice 0.0.0.0:*\n"
        "tcp LISTEN 0 1 localhost:80 0.0.0.0:*\n"
        "tcp LISTEN 0 1 1.2.3.4:99999 0.0.0.0:*\n",
    )
    assert text.sockets.records["local_port"].tolist() == [53, 80, 80]
    assert [line.line_number for line in text.unread] == [4, 5, 6]
    assert "-n" in text.unread[0].why


def test_a_row_broken_by_a_narrow_terminal(tmp_path: Path) -> None:
    text = of_text(
        tmp_path,
        'ESTAB 0 0 127.0.0.1:1 127.0.0.1:2 users:(("nginx",pid=5,fd=6),("ngi\n'
        'nx",pid=7,fd=8))\nino:9 sk:a\nLISTEN 0 1 127.0.0.1:1 0.0.0.0:*\n',
    )
    assert text.unread_count == 0
    assert text.sockets.owners.tolist() == [(9, 5, 6), (9, 7, 8)]
    assert text.sockets.records["cookie"].tolist() == [10, 0]


def test_a_table_without_kinds(tmp_path: Path) -> None:
    text = of_text(tmp_path, "State Recv-Q Send-Q\nUNCONN 0 0 127.0.0.1:53 0.0.0.0:*\nESTAB 0 0 1.1.1.1:5 1.1.1.2:6\n")
    assert text.sockets.records["protocol"].tolist() == [17, 17]
    text = of_text(tmp_path, "State Recv-Q Send-Q\nLISTEN 0 5 127.0.0.1:53 0.0.0.0:*\nESTAB 0 0 1.1.1.1:5 1.1.1.2:6\n")
    assert text.sockets.records["protocol"].tolist() == [6, 6]


ROW = "ESTAB 0 0 127.0.0.1:1 127.0.0.1:2\n"
HEADER = "State Recv-Q Send-Q Local Address:Port Peer Address:Port Process\n"


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        (("2026-11-21T10:00:00+00:00", "2026-11-21T10:00:05+00:00"), [0, 5]),
        (("Sat Nov 21 10:00:00 UTC 2026", "Sat 21 Nov 2026 10:00:05 AM UTC"), [0, 5]),
        (("1795255200", "=== 1795255205.500 ==="), [0, 5]),
        (("=== 2026-11-21T12:00:00.250+02:00 ===", "2026-11-21 10:00:05,75Z run"), [0, 5]),
    ],
)
def test_moments_between_snapshots(tmp_path: Path, lines: tuple[str, str], seconds: list[int]) -> None:
    text = of_text(tmp_path, f"{lines[0]}\n{HEADER}{ROW}{lines[1]}\n{HEADER}{ROW}{ROW.replace(':1', ':3')}")
    assert text.times_known == (True, True)
    assert text.sockets.records["snapshot"].tolist() == [0, 1, 1]
    assert ((text.sockets.records["time_ns"] // 10**9) - 1795255200).tolist() == [seconds[0], *seconds[1:] * 2]
    after = of_text(tmp_path, f"{HEADER}{ROW}{lines[0]}\n{HEADER}{ROW}{lines[1]}\n")
    assert after.times_known == (True, True)


def test_watch_without_a_zone_is_said(tmp_path: Path) -> None:
    text = of_text(tmp_path, f"Every 2.0s: ss -tan   march-7: Thu Jan  1 10:00:01 2026\n\n{HEADER}{ROW}")
    assert text.times_known == (True,)
    assert any("time zone" in note for note in text.notes)


def test_without_times_the_file_s_stands_in(tmp_path: Path) -> None:
    path = tmp_path / "old.txt"
    path.write_text(f"{HEADER}{ROW}{HEADER}{ROW}")
    os.utime(path, ns=(5 * 10**18, 1_700_000_000_000_000_000))
    text = read_socket_texts([path])
    assert text.times_known == (False, False)
    first, second = text.sockets.records["time_ns"].tolist()
    assert second == 1_700_000_000_000_000_000
    assert 0 < second - first <= 1_000_000
    assert any("no time" in note for note in text.notes)
    assert not text.coverage.times_known


def test_tables_of_one_moment_are_one_snapshot(tmp_path: Path) -> None:
    tables = (
        f"{HEADER}LISTEN 0 5 127.0.0.1:1 0.0.0.0:*\n{HEADER}{ROW}"
        f"Netid {HEADER}u_str ESTAB 0 0 * 5 * 6\n{HEADER}UNCONN 0 0 127.0.0.1:53 0.0.0.0:*\n"
    )
    text = of_text(tmp_path, f"@1795255200\n{tables}@1795255201\n{tables}")
    assert text.snapshot_count == 2
    assert text.sockets.records["snapshot"].tolist() == [0] * 4 + [1] * 4


def test_files_are_put_in_order_of_time(tmp_path: Path) -> None:
    (tmp_path / "late").write_text(f"1795255209\n{HEADER}{ROW}")
    (tmp_path / "soon").write_text(f"1795255200\n{HEADER}{ROW}{ROW.replace(':1', ':3')}")
    text = read_socket_texts([tmp_path / "late", tmp_path / "soon"])
    assert text.sockets.records["snapshot"].tolist() == [0, 0, 1]
    assert (np.diff(text.sockets.records["time_ns"]) >= 0).all()


def test_a_listing_that_lacks_things_says_so(tmp_path: Path) -> None:
    text = of_text(tmp_path, HEADER + ROW)
    assert not text.coverage.has_inodes
    assert not text.coverage.has_owners
    assert not text.coverage.whole
    assert (text.sockets.records["inode"] >= STAND_IN_INODE).all()
    assert any("no inodes" in note and "no listeners" in note for note in text.notes)


def test_gzip_and_cut_gzip(tmp_path: Path) -> None:
    data = gzip.compress((HEADER + ROW * 5000).encode() + os.urandom(20000))
    path = tmp_path / "listing.gz"
    path.write_bytes(data)
    assert len(read_socket_texts([path]).sockets) == 5000
    path.write_bytes(data[: len(data) // 2])
    text = read_socket_texts([path])
    assert len(text.sockets) > 0
    assert any("gzip" in note for note in text.notes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\x0a\x0d\x0d\x0a\x1c\x00\x00\x00\x4d\x3c\x2b\x1a", "pcapng"),
        (b"\x34\xcd\xb2\xa1" + bytes(40), "--pcap"),
        (b"\xfd7zXZ\x00" + bytes(40), "unxz"),
        (b"ARROW1\0\0", "Arrow"),
        (b'1 read(3, "x", 1) = 1\n', "strace"),
        (b"COMMAND PID USER FD\n", "lsof"),
        (b"Total: 39\nTCP: 34 (estab 7)\n", "ss -s"),
        (HEADER.encode(), "headers only"),
        (b"Recv-Q Send-Q Local Address:Port Peer Address:Port\n0 0 127.0.0.1:1 127.0.0.1:2\n", "State"),
    ],
)
def test_what_is_no_listing(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "odd"
    path.write_bytes(content)
    with pytest.raises(DamagedInputError, match=words) as raised:
        read_socket_texts([path])
    assert "ss -tanpeimo" in (raised.value.help_text or "")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_socket_texts([tmp_path / "none"])
    with pytest.raises(DamagedInputError):
        read_socket_texts([])


# --- no input may harm ---------------------------------------------------------------------------------------------

LINES = [line for name in NAMES for line in (SAMPLES / name).read_text().splitlines()]
ODD = st.text(alphabet=st.characters(codec="utf-8"), max_size=60) | st.sampled_from(
    ["2026-11-21T10:00:01+99:99", "9999999999", "Thu Feb 31 25:61:61 XYZ 2026", "u_str LISTEN 1 2 /a b 5", "nl UNCONN"]
)


@st.composite
def spliced(draw: st.DrawFn) -> str:
    """Real lines, cut, glued together, with digits and noise put in."""
    line = draw(st.sampled_from(LINES))
    other = draw(st.sampled_from(LINES) | ODD)
    at, to = draw(st.integers(0, len(line))), draw(st.integers(0, len(other)))
    middle = draw(
        ODD | st.sampled_from(["", "9" * 30, '("', "users:((", "timer:(", " ino:", " rtt:-1e999", "\t", "\r"])
    )
    return line[:at] + middle + other[to:]


@given(st.lists(spliced() | st.sampled_from(LINES), max_size=25))
@settings(max_examples=150, deadline=None)
def test_spliced_lines_do_no_harm(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "spliced.txt"
    path.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    try:
        text = read_socket_texts([path])
    except DamagedInputError:
        return
    assert text.sockets.records.dtype == SOCKET_DTYPE
    assert text.sockets.owners.dtype == OWNER_DTYPE
    assert text.snapshot_count == len(text.times_known) == len(np.unique(text.sockets.records["snapshot"]))
    assert not np.isin(text.sockets.records["protocol"], [255]).any()
    assert not np.isin(text.sockets.records["family"], [254]).any()
    assert len(text.unread) == min(20, text.unread_count)


@given(st.binary(max_size=400))
@settings(max_examples=100, deadline=None)
def test_noise_does_no_harm(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.txt"
    whole = (SAMPLES / "ss-7.3-tuanpeio.txt").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + noise + whole[len(whole) // 2 :])
    assert len(read_socket_texts([path]).sockets) > 5


@pytest.mark.parametrize(
    "line",
    [
        "u_str ESTAB 0 0 " + "1 " * 200_000,
        "u_str ESTAB 0 0 " + "1" * 400_000,
        "ESTAB 0 0 1.1.1.1:1 1.1.1.1:2 users:(" + '("a",pid=1,' * 40_000,
        "ESTAB 0 0 1.1.1.1:1 1.1.1.1:2 " + "users:((" * 50_000,
        "tcp 0 0 1.1.1.1:1 1.1.1.1:2 ESTABLISHED " + "off (0.00/" * 40_000,
        "unix 2 [ ACC ] STREAM LISTENING 5 " + "1/ " * 100_000,
        "x" * 3_000_000,
    ],
    ids=range(7),
)
def test_long_lines_cost_little(tmp_path: Path, line: str) -> None:
    text = of_text(tmp_path, (line + "\n") * 3 + ROW)
    assert len(text.sockets) >= 1


def test_numbers_that_no_process_has(tmp_path: Path) -> None:
    line = 'ESTAB 0 0 127.0.0.1:80 127.0.0.1:999 users:(("a",pid=99999999999999999999999,fd=99999999999999999999999))'
    text = of_text(tmp_path, f"State Recv-Q Send-Q Local Address:Port Peer Address:Port Process\n{line}\n")
    assert len(text.sockets.records) == 1
