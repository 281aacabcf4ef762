"""What every JSON document is made of, and the times in ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from sockscope.model.info import SessionInfo

Json: TypeAlias = Mapping[str, "Json"] | Sequence["Json"] | str | int | float | bool | None


def relative(time_ns: int | None, info: SessionInfo) -> int | None:
    """Since the session's start; None where it is not known."""
    return None if time_ns is None else time_ns - info.started_ns
