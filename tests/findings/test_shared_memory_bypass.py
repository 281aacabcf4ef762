"""shared-memory-bypass: quiet connections beside a segment that both ends have; segments left behind; and neither."""

from __future__ import annotations

import struct

import pytest

from sockscope.model.calls import Call
from sockscope.model.facts import SegmentKind
from sockscope.model.findings import Confidence, Severity
from sockscope.model.sockaddr import Family
from tests.analysis.builders import SOCK_STREAM, Script, unix_address
from tests.findings.conftest import MS, Run, S

SLUG = "shared-memory-bypass"
PATH = "/run/server.sock"
IPC_PRIVATE, IPC_RMID, IPC_CREAT = 0, 0, 0o1000
O_RDWR, O_CREAT, O_EXCL = 2, 0o100, 0o200
AT_FDCWD = -100
ADDRESS = 0x7F00_0000_0000


def server() -> Script:
    script = Script().process(100)
    script.event(100, 100, Call.socket, Family.UNIX, SOCK_STREAM, 0, ret=3)
    script.event(100, 100, Call.bind, fd=3, sockaddr=unix_address(PATH))
    script.event(100, 100, Call.listen, 16, fd=3)
    return script


def comes(script: Script, fd: int, *, tgid: int = 100) -> None:
    script.event(tgid, tgid, Call.accept4, fd=3, ret=fd, sockaddr=struct.pack("<H", Family.UNIX))


def goes(script: Script, fd: int, *, tgid: int = 100) -> None:
    script.event(tgid, tgid, Call.recvfrom, 0, 16, fd=fd, ret=0)
    script.event(tgid, tgid, Call.close, fd=fd)


def attaches(script: Script, shmid: int, *, tgid: int = 100) -> int:
    script.event(tgid, tgid, Call.shmat, shmid, 0, 0, ret=ADDRESS + shmid * 4096)
    return ADDRESS + shmid * 4096


def look(script: Script, shmid: int, *tgids: int, at: int, nattch: int = 0, creator: int = 100) -> None:
    """What /proc shows of a System V segment."""
    for tgid in (-1, *tgids):
        script.fact(
            "segments",
            at=at,
            kind=SegmentKind.SYSTEM_V,
            id=shmid,
            tgid=tgid,
            creator=creator,
            size_bytes=4096,
            attach_count=nattch,
            value=-1,
        )


def other(script: Script, at: int) -> None:
    """A look at /dev/shm that shows nothing of interest."""
    script.fact(
        "segments", at=at, kind=SegmentKind.POSIX, id=1, tgid=-1, creator=-1, attach_count=-1, path=b"/dev/shm/x"
    )


def test_attached_for_each_connection(run: Run) -> None:
    script = server()
    for number in range(3):
        comes(script, 4)
        address = attaches(script, number)
        goes(script, 4)
        script.event(100, 100, Call.shmdt, address)
    (finding,) = run(script.ends(S).session(), SLUG, least=Severity.INFO)
    assert (finding.severity, finding.confidence, finding.count) == (Severity.INFO, Confidence.LIKELY, 3)
    assert finding.title == f"3 connections of {PATH} carried no data: shared memory does"
    assert "all 3 connections carried no byte" in finding.explanation
    assert "3 attachments seen, 3 of them ended" in finding.explanation


def test_the_other_end_has_it(run: Run) -> None:
    """The segment was there before; SO_PEERCRED tells who came."""
    script = server()
    look(script, 5, 100, 777, at=0, nattch=2)
    comes(script, 4)
    cred = struct.pack("<iII", 777, 1000, 1000)
    script.event(100, 100, Call.getsockopt, 1, 17, fd=4, option=cred)
    goes(script, 4)
    (finding,) = run(script.ends(S).session(), SLUG, least=Severity.INFO)
    assert finding.confidence is Confidence.CERTAIN
    assert "process 777 has it too" in finding.explanation


def test_signalling_is_no_data_but_messages_are(run: Run) -> None:
    script = server()
    for fd, size in ((4, 1), (5, 400)):
        comes(script, fd)
        attaches(script, fd)
        script.event(100, 100, Call.recvfrom, 0, 4096, fd=fd, ret=size, payload=b"x" * size)
        goes(script, fd)
    (finding,) = run(script.ends(S).session(), SLUG, least=Severity.INFO)
    assert finding.count == 1
    assert "1 of 2 connections" in finding.explanation
    assert "1 byte in all" in finding.explanation


def test_a_scoreboard_explains_nothing(run: Run) -> None:
    """Shared with the children, attached before anybody came; health checks connect and say nothing."""
    script = server()
    script.event(100, 100, Call.shmget, IPC_PRIVATE, 4096, IPC_CREAT, ret=5)
    attaches(script, 5)
    script.fork(100, 101)
    look(script, 5, 100, 101, at=100 * MS, nattch=2)
    for tgid in (100, 101):
        comes(script, 4, tgid=tgid)
        goes(script, 4, tgid=tgid)
    assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)


def test_what_strangers_share_with_others_explains_nothing(run: Run) -> None:
    script = server()
    look(script, 5, 100, 777, at=0, nattch=2)
    comes(script, 4)
    goes(script, 4)
    assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)


def test_nobody_ever_says_a_word(run: Run) -> None:
    """One segment for all, attached before; whose it is beside ours is a stranger's that nobody named."""
    script = server()
    look(script, 5, 100, 777, at=0, nattch=2)
    for _ in range(3):
        comes(script, 4)
        goes(script, 4)
    (finding,) = run(script.ends(S).session(), SLUG, least=Severity.INFO)
    assert (finding.confidence, finding.count) == (Confidence.LIKELY, 3)
    comes(script, 4)
    script.event(100, 100, Call.recvfrom, 0, 4096, fd=4, ret=400, payload=b"x" * 64)
    goes(script, 4)
    assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)


def test_files_of_dev_shm_and_heirs(run: Run) -> None:
    script = server()
    comes(script, 4)
    script.event(100, 100, Call.openat, AT_FDCWD, 0, O_RDWR, 0o600, ret=6, path="/dev/shm/ring")
    script.event(100, 100, Call.mmap, 0, 8192, 3, 1, 6, 0, ret=ADDRESS)
    script.event(100, 100, Call.close, fd=6)
    script.fork(100, 101)
    goes(script, 4)
    (finding,) = run(script.ends(S).session(), SLUG, least=Severity.INFO)
    assert "/dev/shm/ring (8 KiB)" in finding.explanation
    assert "1 child inherited it by fork" in finding.explanation


def test_left_by_a_process_that_ended(run: Run) -> None:
    script = server()
    other(script, 0)
    script.event(100, 100, Call.shmget, 77, 4096, IPC_CREAT, ret=5)
    attaches(script, 5)
    script.exit(100)
    look(script, 5, at=S)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert (finding.severity, finding.confidence) == (Severity.WARNING, Confidence.CERTAIN)
    assert finding.title == "1 shared memory segment left behind (4096 bytes)"
    assert "ipcrm -m 5" in finding.remedy


def test_a_file_left_behind(run: Run) -> None:
    script = server()
    other(script, 0)
    script.event(100, 100, Call.openat, AT_FDCWD, 0, O_RDWR | O_CREAT, 0o600, ret=6, path="/dev/shm/ring")
    script.event(100, 100, Call.mmap, 0, 8192, 3, 1, 6, 0, ret=ADDRESS)
    script.exit(100)
    script.fact(
        "segments",
        at=S,
        kind=SegmentKind.POSIX,
        id=9,
        tgid=-1,
        creator=-1,
        attach_count=-1,
        size_bytes=8192,
        path=b"/dev/shm/ring",
    )
    (finding,) = run(script.ends(S).session(), SLUG)
    assert "rm /dev/shm/ring" in finding.remedy
    assert "shm_unlink" in finding.remedy


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_first_look_that_took_its_time(run: Run, exclusive: bool) -> None:
    """It began before the file was made, and shows it: only O_EXCL tells that it had not been there."""
    script = server()
    shown = {"kind": SegmentKind.POSIX, "id": 9, "tgid": -1, "creator": -1, "attach_count": -1, "size_bytes": 8192}
    script.fact("segments", at=0, **shown, path=b"/dev/shm/ring")
    flags = O_RDWR | O_CREAT | (O_EXCL if exclusive else 0)
    script.event(100, 100, Call.openat, AT_FDCWD, 0, flags, 0o600, ret=6, path="/dev/shm/ring")
    script.event(100, 100, Call.mmap, 0, 8192, 3, 1, 6, 0, ret=ADDRESS)
    script.exit(100)
    script.fact("segments", at=S, **shown, path=b"/dev/shm/ring")
    assert bool(run(script.ends(S).session(), SLUG)) == exclusive


def test_private_and_let_go_of(run: Run) -> None:
    """The process runs on, but nobody can find the segment any more."""
    script = server()
    other(script, 0)
    script.event(100, 100, Call.shmget, IPC_PRIVATE, 4096, IPC_CREAT, ret=5)
    script.event(100, 100, Call.shmdt, attaches(script, 5))
    look(script, 5, at=3 * S)
    (finding,) = run(script.ends(3 * S).session(), SLUG)
    assert finding.confidence is Confidence.LIKELY
    assert "IPC_PRIVATE" in finding.explanation


def test_not_left(run: Run) -> None:
    """Removed; still attached; found again by its key; somebody else's."""
    script = server()
    other(script, 0)
    for shmid, key in ((5, 77), (6, 78), (7, 79)):
        script.event(100, 100, Call.shmget, key, 4096, IPC_CREAT, ret=shmid)
        script.event(100, 100, Call.shmdt, attaches(script, shmid))
    script.event(100, 100, Call.shmctl, 5, IPC_RMID)
    look(script, 6, 555, at=3 * S, nattch=1)
    look(script, 7, at=3 * S)
    look(script, 8, at=3 * S, creator=1)
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)
