"""What a compiled object says of itself: its symbols (ELF) and the layout of its structs (BTF).

Source: elf(5); Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

EM_BPF = 247
KIND_STRUCT = 4
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_BTF_TAIL_BYTES = {1: 4, 3: 12, 14: 4, 17: 4}
"""What follows a type of each kind; where it is so much for each of its `vlen` members, see below."""
_BTF_MEMBER_BYTES = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Struct:
    """A struct as compiled: bytes, and the byte offset of each named member."""

    size: int
    offsets: dict[str, int]


class Elf:
    """A 64-bit little-endian relocatable object."""

    def __init__(self, data: bytes) -> None:
        assert data[:6] == b"\x7fELF\x02\x01"
        self.machine = struct.unpack_from("<H", data, 18)[0]
        (at,) = struct.unpack_from("<Q", data, 40)
        size, count, names = struct.unpack_from("<HHH", data, 58)
        self._data = data
        self._headers = [_SECTION.unpack_from(data, at + i * size) for i in range(count)]
        self._names = [_text(self._content(names), header[0]) for header in self._headers]

    def _content(self, index: int) -> bytes:
        header = self._headers[index]
        return self._data[header[4] : header[4] + header[5]]

    def section(self, name: str) -> bytes:
        return self._content(self._names.index(name))

    def symbols(self) -> Iterator[tuple[str, str, int, int]]:
        """(section, name, offset within the section, bytes) of each symbol that lies in one."""
        index = self._names.index(".symtab")
        texts = self._content(self._headers[index][6])
        for name, _, _, where, value, size in _SYMBOL.iter_unpack(self._content(index)):
            if 0 < where < len(self._names):
                yield self._names[where], _text(texts, name), value, size


def structs_of(btf: bytes) -> dict[str, Struct]:
    """Every named struct of a .BTF section."""
    magic, _, _, header, types_at, types_bytes, texts_at, _ = struct.unpack_from("<HBBIIIII", btf)
    assert magic == 0xEB9F
    texts = btf[header + texts_at :]
    found = {}
    at, end = header + types_at, header + types_at + types_bytes
    while at < end:
        name, info, size = struct.unpack_from("<III", btf, at)
        kind, count, bits = info >> 24 & 31, info & 0xFFFF, info >> 31
        at += 12
        if kind == KIND_STRUCT:
            members = [struct.unpack_from("<III", btf, at + 12 * i) for i in range(count)]
            offsets = {_text(texts, n): (o & 0xFFFFFF if bits else o) // 8 for n, _, o in members}
            found[_text(texts, name)] = Struct(size=size, offsets=offsets)
        at += _BTF_TAIL_BYTES.get(kind, 0) + _BTF_MEMBER_BYTES.get(kind, 0) * count
    return found


def _text(texts: bytes, at: int) -> str:
    return texts[at : texts.index(b"\0", at)].decode()
