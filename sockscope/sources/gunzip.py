"""gzip unpacked a piece at a time, in bounded memory, as far as it goes: RFC 1952; members may follow one another."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

GZIP_MAGIC: Final = b"\x1f\x8b"


class PackDamage(Exception):
    """Packed bytes are not what they should be; the words say where."""


class CutShort(PackDamage):
    """They end early."""


def gunzip(blocks: Iterator[bytes], piece_bytes: int) -> Iterator[bytes]:
    """What is in them.

    Args:
        blocks: of the file, from its beginning; none is empty.
        piece_bytes: of what is yielded, at most.

    Raises:
        PackDamage: after all that could be unpacked.
    """
    taken = 0

    def more() -> bytes:
        nonlocal taken
        block = next(blocks, b"")
        taken += len(block)
        return block

    waiting = more()
    while waiting:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            try:
                piece = member.decompress(waiting, piece_bytes)
            except zlib.error as error:
                # zlib keeps to itself what it had made of these bytes: less than a piece is lost.
                raise PackDamage(f"damaged near byte {taken - len(waiting)}") from error
            if piece:
                yield piece
            waiting = member.unconsumed_tail or (b"" if member.eof else more())
            if not waiting and not member.eof:
                rest = member.flush(piece_bytes)
                if rest:
                    yield rest
                raise CutShort(f"cut at byte {taken}")
        # Tapes and downloads are padded with zeros (gzip(1)); anything else that is no member is garbage.
        waiting = member.unused_data.lstrip(b"\0")
        while not waiting:
            block = more()
            if not block:
                return
            waiting = block.lstrip(b"\0")
        if len(waiting) < len(GZIP_MAGIC):
            waiting += more()
        if not waiting.startswith(GZIP_MAGIC):
            raise PackDamage(f"something else follows from byte {taken - len(waiting)} on")
