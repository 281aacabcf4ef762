"""What a file that is no listing of sockets looks like instead."""

from __future__ import annotations

from sockscope.sources.sockets.text.lines import TextFile
from sockscope.sources.strangers import LONGEST_MAGIC, stranger

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
        other = stranger(raw.read(LONGEST_MAGIC))
    if other is not None:
        return f"it looks like {other.what}" + (f": {other.mend}" if other.mend else "")
    if not file.first_text:
        return "it is empty" if not file.sections else "it has headers only"
    for known, words in _BEGINNINGS:
        if file.first_text.lstrip(" ").startswith(known):
            return f"it looks like {words}"
    if "\x00" in file.first_text or file.first_text.count("\ufffd") > 3:
        return "it is no text"
    if "(" in file.first_text and ") = " in file.first_text:
        return "it looks like an strace log: give it with --strace"
    if file.unread:
        first = file.unread[0]
        return f"line {first.line_number}: {first.why}: {first.text[:80]!r}"
    return "it has headers only, no socket below them"
