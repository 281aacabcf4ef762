"""Captured frames: where each lies in the bytes of its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Column = npt.NDArray[Any]
"""Integers of any width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Frames to decode: where each lies in the file's bytes, all shape (n,), of any integer dtype.

    Attributes:
        start: first captured byte. captured: how many there are. wire: how many there were.
        time_ns: CLOCK_REALTIME. link: LINKTYPE_ number. interface: index of the interface.
    """

    start: Column
    captured: Column
    wire: Column
    time_ns: Column
    link: Column
    interface: Column

    def __len__(self) -> int:
        return len(self.start)

    def pick(self, which: slice | Mask | Ints) -> Frames:
        """Some of them, as int64."""
        return Frames(
            start=self.start[which].astype(np.int64, copy=False),
            captured=self.captured[which].astype(np.int64, copy=False),
            wire=self.wire[which].astype(np.int64, copy=False),
            time_ns=self.time_ns[which].astype(np.int64, copy=False),
            link=self.link[which].astype(np.int64, copy=False),
            interface=self.interface[which].astype(np.int64, copy=False),
        )

    def moved(self, by: int) -> Frames:
        """The same frames in an array that begins so many bytes earlier."""
        return replace(self, start=self.start + by) if by else self


def mixed(key: npt.NDArray[np.uint64], word: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.uint64]:
    """One more word of each row into its hash: shape (n,)."""
    key = (key ^ word) * np.uint64(0x9E3779B97F4A7C15)
    key ^= key >> np.uint64(29)
    return key


def concatenate(parts: Sequence[Frames]) -> Frames:
    """One after another."""
    if len(parts) == 1:
        return parts[0]
    none = [np.zeros(0, np.int64)]
    return Frames(
        start=np.concatenate([p.start for p in parts] or none),
        captured=np.concatenate([p.captured for p in parts] or none),
        wire=np.concatenate([p.wire for p in parts] or none),
        time_ns=np.concatenate([p.time_ns for p in parts] or none),
        link=np.concatenate([p.link for p in parts] or none),
        interface=np.concatenate([p.interface for p in parts] or none),
    )
