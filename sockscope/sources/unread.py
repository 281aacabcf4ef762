"""Lines of text files that say nothing to us: counted, and the first of them kept to be shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

UNREAD_KEPT: Final = 20
UNREAD_LENGTH: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadLine:
    """A line that was not understood.

    Attributes:
        file: its name as the reader tells it. line_number: from 1.
        text: the line, at most `UNREAD_LENGTH` of it.
        why: what is wrong with it.
    """

    file: str
    line_number: int
    text: str
    why: str
