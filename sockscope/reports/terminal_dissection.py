"""The packets of one connection, layer by layer, on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from sockscope.model.dissection import DissectedConnection, DissectedPacket
from sockscope.model.info import SessionInfo
from sockscope.reports import format as words
from sockscope.reports.escape import safe

INDENT = 4


def print_dissection(found: DissectedConnection, info: SessionInfo, *, console: Console) -> None:
    """Print each packet: when, which way, how long, and a line a layer; then how many are not shown.

    What came from the wire is printed as text only: no control sequence, no markup.
    """
    ascii_only = not console.encoding.lower().replace("_", "-").startswith("utf")
    console.print()
    console.print(Text("Packets" if found.packets else "Packets: none of this connection", "bold"))
    for packet in found.packets:
        _show(console, _heading(packet, info, ascii_only=ascii_only), "", 0, ascii_only)
        for line in packet.lines:
            name, _, rest = safe(line).partition("  ")
            _show(console, name, f"  {rest}" if rest else "", INDENT, ascii_only)
    if found.left_out_count:
        _show(console, "", f"{words.counted(found.left_out_count, 'more packet')}, not shown", 0, ascii_only)


def _heading(packet: DissectedPacket, info: SessionInfo, *, ascii_only: bool) -> str:
    way = ("->" if ascii_only else "→") if packet.from_target else ("<-" if ascii_only else "←")
    length = words.counted(packet.wire_bytes, "byte")
    if packet.captured_bytes < packet.wire_bytes:
        length += f", {words.number(packet.captured_bytes)} captured"
    return f"{words.since_start(packet.time_ns, info)}  {way}  {length}"


def _show(console: Console, name: str, rest: str, indent: int, ascii_only: bool) -> None:
    if ascii_only:
        name, rest = words.to_ascii(name), words.to_ascii(rest)
    line = Text(name, "cyan").append(rest, "" if name else "dim")
    console.print(Padding(line, (0, 0, 0, indent), expand=False) if indent else line, overflow="fold")
