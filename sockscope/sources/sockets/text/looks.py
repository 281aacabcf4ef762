"""What a file that is no listing of sockets looks like instead."""

from __future__ import annotations

from sockscope.sources.sockets.text.lines import TextFile

_MAGIC = (
    (b"\n\r\r\n", "a pcapng capture: give it as --pcap"),
    (b"\xd4\xc3\xb2\xa1", "a pcap capture: give it as --pcap"),
    (b"\xa1\xb2\xc3\xd4", "a pcap capture: give it as --pcap"),
    (b"\x4d\x3c\xb2\xa1", "a pcap capture: give it as --pcap"),
    (b"\xa1\xb2\x3c\x4d", "a pcap capture: give it as --pcap"),
    (b"\x7fELF", "a program"),
    (b"ARROW1", "an Arrow file"),
)
_BEGINNINGS = (
    ("{", "JSON"),
    ("[", "JSON"),
    ("<", "HTML or XML"),
    ("COMMAND", "output of lsof"),
    ("Total:", "the summary that `ss -s` prints"),
    ("sl  local_address", "/proc/net/tcp"),
    ("Kernel Interface table", "output of netstat -i"),
    ("Kernel IP routing table", "output of netstat -r"),
    ("Ip:", "the counters that netstat -s prints"),
)


def looks_like(file: TextFile) -> str:
    """In a few words."""
    with file.path.open("rb") as raw:
        beginning = raw.read(8)
    for magic, words in _MAGIC:
        if beginning.startswith(magic):
            return f"it looks like {words}"
    if not file.first_text:
        return "it is empty" if not file.sections else "it has headers only"
    for known, words in _BEGINNINGS:
        if file.first_text.lstrip(" ").startswith(known):
            return f"it looks like {words}"
    if "\x00" in file.first_text or file.first_text.count("\ufffd") > 3:
        return "it is no text"
    if "(" in file.first_text and ") = " in file.first_text:
        return "it looks like an strace log: give it as --strace"
    if file.unread:
        first = file.unread[0]
        return f"line {first.line_number}: {first.why}: {first.text[:80]!r}"
    return "it has headers only, no socket below them"
