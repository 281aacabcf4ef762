"""Names stand for one number each, whatever table they come from."""

from __future__ import annotations

import errno
import signal
from collections.abc import Mapping

import pytest

from sockscope.model import constants
from sockscope.sources.syscalls.strace_log.values import NUMBERS, result_number, word_number

TABLES = [
    (table, number, name)
    for table, held in vars(constants).items()
    if table.isupper() and isinstance(held, Mapping)
    for number, name in held.items()
    if isinstance(number, int) and isinstance(name, str) and " " not in name
]


def test_no_two_tables_give_a_name_two_numbers() -> None:
    assert [(table, name) for table, number, name in TABLES if NUMBERS[name.encode()] != number] == []


@pytest.mark.parametrize(
    ("word", "number"),
    [
        (b"0", 0),
        (b"0600", 0o600),
        (b"-7", -7),
        (b"0x1f", 31),
        (b"08", 8),
        (b"SIGTERM", signal.SIGTERM),
        (b"SIGRT_5", 37),
        (b"EAGAIN", errno.EAGAIN),
        (b"PF_INET6", 10),
        (b"AF_LOCAL", 1),
        (b"O_RDWR|O_NONBLOCK|0x40000000", 0x40000802),
        (b"O_RDWR|O_NEVER_HEARD_OF", 2),
        (b"NEVER|HEARD|OF", None),
        (b"NEVER_HEARD_OF", None),
        (b"9" * 40, None),
        (b"", None),
    ],
)
def test_words(word: bytes, number: int | None) -> None:
    assert word_number(word) == number


@pytest.mark.parametrize(
    ("result", "number"),
    [
        (b"0", 0),
        (b"0x7f0000001000", 0x7F0000001000),
        (b"5<TCP:[1->2]>", 5),
        (b"0 (Timeout)", 0),
        (b"-1 EINTR (Interrupted system call)", -errno.EINTR),
        (b"-1 ENOENT (No such file or directory) (INJECTED)", -errno.ENOENT),
        (b"-1 ENEVERHEARDOF (x)", -1),
        (b"? ERESTARTNOHAND (To be restarted if no handler)", -514),
        (b"18446744073709551615", -1),
        (b"?", None),
        (b"", None),
        (b"<unavailable>", None),
    ],
)
def test_results(result: bytes, number: int | None) -> None:
    assert result_number(result) == number
