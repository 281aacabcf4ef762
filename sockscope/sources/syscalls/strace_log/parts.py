"""The blob of one call while it is put together."""

from __future__ import annotations

from typing import Final

from sockscope.model.events import Section, pack_section

PAYLOAD_CAP: Final = 16384
"""Of what strace printed; a live engine takes 64 bytes unless told to take more."""
MAX_ELEMENTS: Final = 8192
"""Of any list."""


class Parts:
    """Sections in the order in which they are added, and whether strace printed less than there was."""

    __slots__ = ("blob", "truncated")

    def __init__(self) -> None:
        self.blob = b""
        self.truncated = False

    def add(self, kind: Section, data: bytes) -> None:
        self.blob += pack_section(kind, data)

    def cut(self) -> None:
        """Strace printed less than there was."""
        self.truncated = True

    def payload(self, data: bytes, moved: int) -> None:
        """The first bytes of what was moved.

        Args:
            data: what strace printed.
            moved: how many bytes the call moved (was asked to, where it failed).
        """
        data = data[: min(moved, PAYLOAD_CAP)]
        if len(data) < moved:
            self.cut()
        if data:
            self.add(Section.PAYLOAD, data)
