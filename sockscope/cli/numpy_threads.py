"""numpy without threads of its own."""

from __future__ import annotations

import os

from sockscope.sources.child import NO_THREADS


def load_numpy() -> None:
    """Import numpy such that it starts no threads: they would spin just when the target is to be watched.

    What is launched later gets the environment as it was.
    """
    former = {name: os.environ.get(name) for name in NO_THREADS}
    os.environ.update(NO_THREADS)
    try:
        # Read when it is loaded, not later.
        import numpy  # noqa: F401
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
