"""Logs for tests: texts as strace 4, 5 and 6 print them, and the way to read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from sockscope.model.calls import Call
from sockscope.model.events import EventFlag, Events
from sockscope.sources.syscalls.strace_log.log import StraceLog
from sockscope.sources.syscalls.strace_log.reader import read_strace

SERVER = rb"""21332 1795264687.471696 execve("/usr/bin/python3", ["python3", "t.py"], 0x7fff7aad8678 /* 35 vars */) = 0 <0.000451>
21332 1795264687.472386 brk(NULL)       = 0x55aabaffd000 <0.000080>
21332 1795264689.600000 socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_IP) = 3<TCP:[18595000]> <0.000031>
21332 1795264689.601000 bind(3<TCP:[18595000]>, {sa_family=AF_INET, sin_port=htons(46453), sin_addr=inet_addr("0.0.0.0")}, 16) = 0 <0.000020>
21332 1795264689.602000 listen(3<TCP:[0.0.0.0:46453]>, 128) = 0 <0.000011>
21332 1795264689.645500 clone3({flags=CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_SIGHAND|CLONE_THREAD|CLONE_SYSVSEM|CLONE_SETTLS|CLONE_PARENT_SETTID|CLONE_CHILD_CLEARTID, child_tid=0x7f82f039d990, parent_tid=0x7f82f039d990, exit_signal=0, stack=0x7f82efb9d000, stack_size=0x7fff80, tls=0x7f82f039d6c0} => {parent_tid=[21373]}, 88) = 21373 <0.000206>
21332 1795264689.648761 accept4(3<TCP:[0.0.0.0:46453]>,  <unfinished ...>
21373 1795264689.649000 futex(0x7f82efb9d910, FUTEX_WAIT_PRIVATE, 0, NULL <unfinished ...>
21332 1795264689.663306 <... accept4 resumed>{sa_family=AF_INET, sin_port=htons(35370), sin_addr=inet_addr("127.0.0.1")}, [16], SOCK_CLOEXEC) = 4<TCP:[127.0.0.1:46453->127.0.0.1:35370]> <0.014511>
21373 1795264689.664000 <... futex resumed>) = 0 <0.014900>
21373 1795264689.665000 recvfrom(4<TCP:[127.0.0.1:46453->127.0.0.1:35370]>, "hi", 10, 0, NULL, NULL) = 2 <0.000012>
21332 1795264689.666024 sendto(4<TCP:[127.0.0.1:46453->127.0.0.1:35370]>, "yo", 2, 0, NULL, 0 <unfinished ...>
21332 1795264689.666283 <... sendto resumed>) = 2 <0.000217>
21373 1795264689.667000 exit(0)           = ?
21373 1795264689.667500 +++ exited with 0 +++
21332 1795264689.668488 --- SIGURG {si_signo=SIGURG, si_code=SI_USER, si_pid=21332, si_uid=0} ---
21332 1795264689.682713 vfork( <unfinished ...>
21375 1795264689.695014 execve("/bin/true", ["/bin/true"], 0x7ffcbe1afc70 /* 38 vars */ <unfinished ...>
21332 1795264689.695337 <... vfork resumed>) = 21375 <0.012607>
21375 1795264689.695486 <... execve resumed>) = 0 <0.000438>
21375 1795264689.696000 exit_group(0)     = ?
21375 1795264689.696100 +++ exited with 0 +++
21332 1795264689.701782 --- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=21375, si_uid=0, si_status=0, si_utime=0, si_stime=0} ---
21332 1795264689.702000 close(4<TCP:[127.0.0.1:46453->127.0.0.1:35370]>) = 0 <0.000040>
21332 1795264689.703000 exit_group(3)     = ?
21332 1795264689.704000 +++ exited with 3 +++
"""  # noqa: E501
"""strace 6.1 -f -ttt -T -yy -o, of a program that serves, has a thread, and starts another program."""


def read(folder: Path, *texts: bytes, names: tuple[str, ...] = (), chunk_bytes: int = 1 << 20) -> StraceLog:
    """These texts, each as a log file of its own."""
    paths = []
    for number, text in enumerate(texts):
        path = folder / (names[number] if names else f"log{number}.txt")
        path.write_bytes(text)
        paths.append(path)
    return read_strace(paths, chunk_bytes=chunk_bytes)


def rows(log: StraceLog, call: Call) -> npt.NDArray[np.void]:
    """The events of one call that the program made, in order of time."""
    records = log.events.records
    picked = records[(records["call"] == call) & ((records["flags"] & EventFlag.SEEDED) == 0)]
    in_time: npt.NDArray[np.void] = picked[np.argsort(picked["enter_ns"], kind="stable")]
    return in_time


def called(log: StraceLog) -> list[tuple[str, int, int]]:
    """(call, tid, result) of everything in the table but what is seeded, in order of time."""
    records = log.events.records
    picked = records[(records["flags"] & EventFlag.SEEDED) == 0]
    picked = picked[np.argsort(picked["enter_ns"], kind="stable")]
    return [
        (Call(call).name, tid, ret)
        for call, tid, ret in zip(picked["call"].tolist(), picked["tid"].tolist(), picked["ret"].tolist(), strict=True)
    ]


def same(one: Events, other: Events) -> bool:
    """Whether two tables say the same, wherever their blobs lie."""
    columns = [name for name in one.records.dtype.names or () if name != "blob_offset"]
    if len(one) != len(other) or not all((one.records[c] == other.records[c]).all() for c in columns):
        return False
    return all(bytes(one.blob_of(row)) == bytes(other.blob_of(row)) for row in range(len(one)))
