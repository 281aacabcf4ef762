"""What `sockscope demo SLUG` says of each fault, for the rule pages: `python -m tools.excerpts [SLUG…]` (as root).

Writes `fixtures/SLUG/excerpt.txt`. That they still hold is shown by tests/live/test_fixtures.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from difflib import SequenceMatcher

from sockscope.fixture import fixtures_folder, slugs

COLUMNS = 110
_NUMBERS = re.compile(r"[+-]?\d[\d.,]*|0x[0-9a-f]+")
_STORY = "  Evidence, of the worst"


def demo(slug: str, *options: str) -> str:
    """What the demo prints.

    Raises:
        CalledProcessError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "sockscope", "demo", slug, *options],
        env={**os.environ, "COLUMNS": str(COLUMNS), "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def excerpt(said: str, slug: str) -> str:
    """The finding as it was printed, title to evidence; empty where it was not."""
    lines = [line.rstrip() for line in said.splitlines()]
    begins = re.compile(rf"(ERROR|WARNING|INFO)  {re.escape(slug)}  ")
    first = next((at for at, line in enumerate(lines) if begins.match(line)), None)
    if first is None:
        return ""
    # A title may take more than one line.
    below = next((at for at in range(first, len(lines)) if lines[at].startswith(" ")), len(lines))
    after = (at for at in range(below, len(lines)) if lines[at] and not lines[at].startswith(" "))
    return "\n".join(lines[first : next(after, len(lines))]).rstrip() + "\n"


def likeness(one: str, other: str) -> float:
    """How far two excerpts say the same, 0 to 1: the words before the story, whatever their numbers."""

    def words(text: str) -> list[str]:
        return _NUMBERS.sub("#", text.split(_STORY)[0]).split()

    return SequenceMatcher(None, words(one), words(other), autojunk=False).ratio()


def main() -> None:
    for slug in sys.argv[1:] or slugs():
        found = excerpt(demo(slug), slug)
        if not found:
            sys.exit(f"{slug}: the demo does not find it")
        (fixtures_folder() / slug / "excerpt.txt").write_text(found, encoding="utf-8")
        print(slug)


if __name__ == "__main__":
    main()
