"""What a file is that was given as text and is none, by its first bytes."""

from __future__ import annotations

from typing import Final, NamedTuple

from sockscope.sources.packets.pcap import PCAP_MAGICS
from sockscope.sources.packets.pcapng import PCAPNG_MAGIC

LONGEST_MAGIC: Final = 8


class Stranger(NamedTuple):
    """A kind of files.

    Attributes:
        magic: how they begin. what: one of them in words. mend: what to do with it; empty: nothing can be done.
    """

    magic: bytes
    what: str
    mend: str


_STRANGERS: Final = (
    *(Stranger(magic, "a pcap capture", "give it with --pcap") for magic in PCAP_MAGICS),
    Stranger(PCAPNG_MAGIC, "a pcapng capture", "give it with --pcap"),
    Stranger(b"BZh", "a file compressed by bzip2", "unpack it first: bunzip2 -k FILE"),
    Stranger(b"\xfd7zXZ\x00", "a file compressed by xz", "unpack it first: unxz -k FILE"),
    Stranger(b"\x28\xb5\x2f\xfd", "a file compressed by zstd", "unpack it first: unzstd FILE"),
    Stranger(b"PK\x03\x04", "a zip archive", "unpack it first: unzip FILE"),
    Stranger(b"\x7fELF", "a program or library", ""),
    Stranger(b"ARROW1", "an Arrow file", ""),
)


def stranger(head: bytes) -> Stranger | None:
    """What begins so; None: nothing that is known here.

    Args:
        head: the first `LONGEST_MAGIC` bytes at least, as far as there are so many.
    """
    return next((known for known in _STRANGERS if head.startswith(known.magic)), None)
