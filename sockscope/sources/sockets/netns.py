"""Work done in another process's network namespace, without moving ourselves there."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from sockscope.errors import CannotObserveError

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000


def netns_of(pid: int | None = None) -> int:
    """Inode of a process's network namespace (None: the calling thread's); 0 where it may not be read.

    Source: namespaces(7).
    """
    path = "/proc/thread-self/ns/net" if pid is None else f"/proc/{pid}/ns/net"
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def enter_netns(pid: int) -> None:
    """Move the calling thread (only it) into the network namespace of `pid`.

    Raises:
        CannotObserveError: the process is gone, or CAP_SYS_ADMIN is missing.
    """
    try:
        handle = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CannotObserveError(
            f"cannot open the network namespace of process {pid}: {error.strerror}", help_text="run it as root (sudo)"
        ) from error
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(handle, _CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise CannotObserveError(
                f"cannot enter the network namespace of process {pid}: {reason}",
                help_text=f"CAP_SYS_ADMIN is needed: run as root, or inside: nsenter -t {pid} -n sockscope ...",
            )
    finally:
        os.close(handle)


def in_netns(pid: int | None, work: Callable[[], T]) -> T:
    """Run `work` in the network namespace of `pid`: directly where it is ours, else in a helper thread.

    Args:
        pid: None stands for our own.

    Raises:
        CannotObserveError: the namespace cannot be entered. What `work` raises is raised here.
    """
    if pid is None or netns_of(pid) in (0, netns_of()):
        return work()
    results: list[T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            enter_netns(pid)
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - carried over to the calling thread
            failures.append(error)

    helper = threading.Thread(target=body, name="netns")
    helper.start()
    helper.join()
    if failures:
        raise failures[0]
    return results[0]
