"""Coverage-guided fuzzing of what reads foreign files: nothing but sockscope's own errors may come out.

    pip install atheris
    python -m tools.fuzz strace corpus/ -max_total_time=120 -timeout=10 -rss_limit_mb=3000

The first word is a reader: encode, strace, ss, captures. What follows goes to libFuzzer: a folder of samples to begin
with (real logs, listings, captures, cut small), and its options.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sockscope.sources"]):
    from sockscope.sources.packets.files import read_captures
    from sockscope.sources.sockets.text.reader import read_socket_texts
    from sockscope.sources.syscalls.strace_log.encode import NotUnderstood, encode
    from sockscope.sources.syscalls.strace_log.reader import read_strace
    from sockscope.sources.syscalls.strace_log.signatures import CALLS

from sockscope.errors import SockscopeError

NAMES = sorted(CALLS)


def encode_one(data: bytes) -> None:
    """The first byte chooses the call; ` = ` parts its arguments from its result."""
    if data:
        arguments, _, result = data[1:].partition(b") = ")
        encode(NAMES[data[0] % len(NAMES)], arguments, result)


def main() -> None:
    reader, *options = sys.argv[1:] or [""]
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        of_files: dict[str, Callable[[list[Path]], object]] = {
            "strace": read_strace,
            "ss": read_socket_texts,
            "captures": read_captures,
        }
        if reader != "encode" and reader not in of_files:
            sys.exit(__doc__)

        def one(data: bytes) -> None:
            try:
                if reader == "encode":
                    encode_one(data)
                else:
                    path.write_bytes(data)
                    of_files[reader]([path])
            except (SockscopeError, NotUnderstood):
                return

        atheris.Setup([sys.argv[0], *options], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
