"""The files that exports write: for their owner's eyes, and how far the writing has come."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sockscope.errors import UsageError

Progress = Callable[[str, int, int], None]
"""What is being written, how much of it is, how much there is."""

_BUFFER_BYTES = 1 << 20


def no_progress(what: str, done: int, total: int) -> None:
    """Nobody looks."""


@contextmanager
def private_file(path: Path) -> Iterator[BinaryIO]:
    """The file, made or emptied, readable by its owner alone: what the target read and wrote is in it.

    Raises:
        UsageError: it cannot be made or written; a part of it may then be there.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb", buffering=_BUFFER_BYTES) as file:
            yield file
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}", help_text="name a file that can be written"
        ) from error
