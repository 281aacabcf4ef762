"""No log crashes the reader, whatever happened to it; and how it is read in pieces changes nothing."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.errors import DamagedInputError
from sockscope.sources.syscalls.strace_log.log import StraceLog
from sockscope.sources.syscalls.strace_log.reader import read_strace
from tests.sources.syscalls.strace_log.logs import SERVER, read, same

LINES = SERVER.splitlines(keepends=True)
OTHERS = [
    b"hello, world\n",
    b"strace: Process 21399 attached\n",
    b"[pid 21399] close(3) = 0\n",
    b"\r\n",
    b"10:00:00 close(3) = 0\n",
    b"     0.000012 close(3) = 0\n",
    b"21332 <... accept4 resumed>\n",
    b"21332 read(3,  <unfinished ...>\n",
    b"21332 +++ superseded by execve in pid 21373 +++\n",
    b"21332 <... execve resumed>) = 0\n",
    b"clone(child_stack=NULL, flags=SIGCHLDstrace: Process 21400 attached\n",
    b"21332 poll([{fd=3, events=POLLIN}], 1, 500) = ? ERESTART_RESTARTBLOCK (Interrupted by signal)\n",
    b"21332 restart_syscall(<... resuming interrupted poll ...>) = 0\n",
    b"21332 exit_group(0) = ?\n",
    b"21332 fork() = 21332\n",
    b"9999999 1795264689.000000 vfork() = 21332 <99999.000000>\n",
    b"<" * 300 + b">\n",
]


def attempt(data: bytes, chunk_bytes: int = 1 << 20) -> StraceLog | None:
    with TemporaryDirectory() as folder:
        try:
            return read(Path(folder), data, chunk_bytes=chunk_bytes)
        except DamagedInputError:
            return None


def told(log: StraceLog) -> tuple[object, ...]:
    unread = [(line.line_number, line.text, line.why) for line in log.unread]
    return unread, log.notes, log.line_count, log.call_count


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(SERVER)), st.integers(0, len(SERVER)))
def test_cut_anywhere(start: int, end: int) -> None:
    attempt(SERVER[start:end])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SERVER)), st.binary(min_size=1, max_size=12)), max_size=12))
def test_noise_in_between(noise: list[tuple[int, bytes]]) -> None:
    data = bytearray(SERVER)
    for at, what in noise:
        data[at:at] = what
    attempt(bytes(data))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*LINES, *OTHERS]), max_size=60), st.integers(1, 700))
def test_lines_shuffled_and_spliced(lines: list[bytes], chunk_bytes: int) -> None:
    attempt(b"".join(lines), chunk_bytes)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([*LINES, *OTHERS[:3], *OTHERS[6:10], *OTHERS[11:14]]), min_size=1, max_size=60),
    st.integers(1, 3000),
)
def test_pieces_of_any_size(lines: list[bytes], chunk_bytes: int) -> None:
    data = LINES[0] + b"".join(lines)
    whole, pieces = attempt(data), attempt(data, chunk_bytes)
    assert (whole is None) == (pieces is None)
    if whole is not None and pieces is not None:
        assert same(whole.events, pieces.events)
        assert told(whole) == told(pieces)
        assert whole.seed.fds.tolist() == pieces.seed.fds.tolist()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    attempt(data)


def test_the_book_of_texts_is_bounded(tmp_path: Path) -> None:
    lines = b"".join(b'1 1000000000.%06d read(5, "x%d", 9) = 9\n' % (at, at) for at in range(3000))
    (tmp_path / "log").write_bytes(lines)
    small = read_strace([tmp_path / "log"], chunk_bytes=4000, text_limit=200)
    assert same(small.events, read_strace([tmp_path / "log"]).events)


def test_an_endless_line_ends(tmp_path: Path) -> None:
    log = read(tmp_path, SERVER + b"x" * (40 << 20) + b"\n" + LINES[2])
    assert log.unread_count == 3
