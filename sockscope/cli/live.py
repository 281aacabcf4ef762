"""The live view of `attach`: events told as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sockscope.pipeline.record import Watcher

LINES_A_BATCH = 200
"""More than a person reads; what is left out is counted on screen."""


def live_watcher() -> Watcher:
    """A watcher that prints what happens."""
    raise NotImplementedError
