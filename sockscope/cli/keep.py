"""`--keep`: what the user wrote, as the session needs it."""

from __future__ import annotations

import re
from pathlib import Path

from sockscope.cli.options import FailOn
from sockscope.cli.output import Output, slugs
from sockscope.errors import UsageError
from sockscope.pipeline.options import Alarm

_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}
_LEAST_S = 1.0
_MOST_S = 24 * 3600.0


def keep_seconds(text: str) -> float:
    """`60`, `60s`, `5m`, `1h` in seconds.

    Raises:
        UsageError: it is no time, or none that makes sense.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in _SECONDS:
        raise UsageError(f"--keep {text!r} is not a time", help_text="seconds, or with a unit: 90, 60s, 5m, 1h")
    seconds = float(found[1]) * _SECONDS[found[2]]
    if not _LEAST_S <= seconds <= _MOST_S:
        raise UsageError(f"--keep {text} is out of range", help_text="from 1s to 24h")
    return seconds


def flight(text: str | None, folder: Path | None, output: Output) -> tuple[float | None, Alarm | None]:
    """How long the window is, and which findings make the flight recorder write; (None, None) without it.

    Raises:
        UsageError: `--keep` is no time, or there is no folder to write into.
    """
    if text is None:
        return None, None
    seconds = keep_seconds(text)
    if folder is None:
        raise UsageError(
            "--keep needs --output DIR: the folder that the recordings go into",
            help_text="for example --keep 60s --output /var/tmp/flight",
        )
    if output.fail_on is FailOn.never:
        return seconds, None
    from sockscope.model.findings import Severity

    bar = int(Severity[output.fail_on.value.upper()])
    return seconds, Alarm(bar=bar, select=slugs(output.select), ignore=slugs(output.ignore))
