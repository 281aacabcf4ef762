"""Which evidence was stamped by a clock of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.model.packets import Packets
from sockscope.model.sockets import Sockets


@dataclass(frozen=True, slots=True, kw_only=True)
class Strand:
    """Rows of a table that one foreign clock has stamped.

    Attributes:
        source: what the user knows it by: a file's name.
        start, stop: the rows `[start, stop)`.
    """

    source: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Several capture files, each perhaps of another host, with a clock of its own.

    Attributes:
        names: of the files. whole: a file says of no packet that it was dropped, and lost none from its middle.
        number: shape (packets,), which of them each packet is from.
    """

    names: tuple[str, ...]
    whole: tuple[bool, ...]
    number: npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """What has to be aligned before it is joined; empty: all tables share the session's clock.

    The session's clock is that of the events; without events that of the packets that are in no strand, else of
    the first strand of packets. A time of day without a date, or in an unknown time zone, is a foreign clock like
    any other.

    Attributes:
        packets: a strand of all that was captured elsewhere.
        files: where that is more than one file.
        sockets: a strand for each file whose snapshots one clock has stamped, or for each snapshot whose time was
            guessed.
        guessed: the times of the socket strands are mere guesses, to be moved to wherever the evidence puts them;
            otherwise they stay as they are where that contradicts nothing.
    """

    packets: tuple[Strand, ...] = ()
    files: Files | None = None
    sockets: tuple[Strand, ...] = ()
    guessed: bool = False

    @classmethod
    def foreign(
        cls, *, packets: Packets | None = None, sockets: Sockets | None = None, guessed: bool = False
    ) -> Clocks:
        """Every given table as one strand."""
        return cls(
            packets=() if not packets else (Strand(source="packets", start=0, stop=len(packets)),),
            sockets=() if not sockets else (Strand(source="socket snapshots", start=0, stop=len(sockets)),),
            guessed=guessed,
        )

    @property
    def common(self) -> bool:
        return not self.packets and not self.sockets


COMMON = Clocks()
"""One clock for all tables: a recording."""


def resolution(times: npt.NDArray[np.int64]) -> int:
    """How fine times are: 1, 1 000 (classic pcap), 1 000 000 or 1 000 000 000 ns."""
    for step in (1_000_000_000, 1_000_000, 1_000):
        if not (times % step).any():
            return step
    return 1
