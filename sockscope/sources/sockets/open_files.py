"""Which descriptors of which processes share one open file description: kcmp(2)."""

from __future__ import annotations

import ctypes
import errno
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cmp_to_key
from itertools import pairwise

_SYSCALL = {"x86_64": 312, "aarch64": 272}
_KCMP_FILE = 0
_KCMP_FILES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One descriptor that may share its open file with another of the same group.

    Attributes:
        likeness: what stands in for kcmp where it is refused: the same likeness is taken for the same file.
    """

    row: int
    tgid: int
    fd: int
    likeness: tuple[object, ...]


class KcmpRefusedError(Exception):
    """kcmp is not there, not allowed, or one of the two is gone."""


@cache
def _syscall() -> Callable[..., int] | None:
    if platform.machine() not in _SYSCALL:
        return None
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    function.argtypes = [ctypes.c_long] * 6
    return function


def kcmp_files(tgid: int, fd: int, other_tgid: int, other_fd: int) -> int:
    """-1, 0 or 1: an order of open file descriptions; 0 is the same one.

    Raises:
        KcmpRefusedError: not built in (CONFIG_KCMP), not permitted, or no such process or descriptor.
    """
    return _compare(tgid, other_tgid, _KCMP_FILE, fd, other_fd)


def share_files_table(tgid: int, other: int) -> bool:
    """Whether two processes share one files table (CLONE_FILES); False where it cannot be told."""
    try:
        return _compare(tgid, other, _KCMP_FILES, 0, 0) == 0
    except KcmpRefusedError:
        return False


def _compare(tgid: int, other: int, kind: int, first: int, second: int) -> int:
    function = _syscall()
    if function is None:
        raise KcmpRefusedError(errno.ENOSYS)
    result = function(_SYSCALL[platform.machine()], tgid, other, kind, first, second)
    if result < 0:
        raise KcmpRefusedError(ctypes.get_errno())
    if result > 2:
        raise KcmpRefusedError(errno.EOPNOTSUPP)
    return (0, -1, 1)[result]


def group_open_files(slots: Sequence[Slot]) -> list[list[int]]:
    """Rows grouped by open file description.

    kcmp orders open files, so a group of n costs n log n calls instead of n².

    Args:
        slots: descriptors that may be the same (same kind and name); others need no comparison.
    """
    if len(slots) == 1:
        return [[slots[0].row]]
    try:
        return _group_sorted(slots)
    except KcmpRefusedError:
        # One that went away would spoil all: take it by likeness, and the rest, too.
        by_likeness: dict[tuple[object, ...], list[int]] = {}
        for slot in slots:
            by_likeness.setdefault(slot.likeness, []).append(slot.row)
        return list(by_likeness.values())


def _group_sorted(slots: Sequence[Slot]) -> list[list[int]]:
    def compare(one: Slot, other: Slot) -> int:
        return kcmp_files(one.tgid, one.fd, other.tgid, other.fd)

    ordered = sorted(slots, key=cmp_to_key(compare))
    groups = [[ordered[0].row]]
    for before, slot in pairwise(ordered):
        if compare(before, slot) == 0:
            groups[-1].append(slot.row)
        else:
            groups.append([slot.row])
    return groups
