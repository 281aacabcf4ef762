"""Standard output that is closed, full, or no longer read."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sockscope.errors import UsageError

_CANNOT_BE_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def open_standard_three() -> None:
    """Where one came closed (`>&-`), the next file opened would take its place, and be written to."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # Takes the lowest free number: this one.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(os.dup(1), "w")
    sys.stderr = sys.stderr or os.fdopen(os.dup(2), "w")


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """A reader (head, less) that has enough changes no exit code.

    Raises:
        UsageError: standard output cannot be written.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _silence()
    except SystemExit as ended:
        # What rich makes of it, with exit code 1: that would say "findings".
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        _silence()
    except OSError as error:
        if error.errno not in _CANNOT_BE_WRITTEN:
            raise
        _silence()
        raise UsageError(f"cannot write standard output: {error.strerror}", help_text="send it elsewhere") from error


def _silence() -> None:
    """The flush at exit must not fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
