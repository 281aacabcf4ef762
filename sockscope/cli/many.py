"""Options that take several files after one name: `--strace log.1 log.2 --pcap c.pcap`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

MANY = ("--strace", "--pcap", "--ss")


def spread(arguments: Sequence[str]) -> Iterator[str]:
    """`--strace a b` as `--strace a --strace b`, which is what the parser knows. A folder is never one of them."""
    option, has_value = "", False
    for at, word in enumerate(arguments):
        if word == "--":
            yield from arguments[at:]
            return
        name = word.partition("=")[0]
        if name in MANY:
            option, has_value = name, "=" in word
        elif word.startswith("-") and word != "-":
            option = ""
        elif option and not has_value:
            has_value = True
        elif option and not Path(word).is_dir():
            yield option
        else:
            option = ""
        yield word
