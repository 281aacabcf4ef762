"""numpy without threads of its own."""

from __future__ import annotations

import os

_THREADS = "OPENBLAS_NUM_THREADS"


def load_numpy() -> None:
    """Import numpy such that its linear algebra, which nobody here needs, starts no threads.

    There would be one a CPU, spinning for a while just when the target is to be watched. What is launched later gets
    the environment as it was.
    """
    former = os.environ.get(_THREADS)
    os.environ[_THREADS] = "1"
    try:
        # Read when it is loaded, not later.
        import numpy  # noqa: F401
    finally:
        if former is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = former
