"""Judges a recording of the flight recorder, in a process of its own that gives way to everything else.

`python -m sockscope.pipeline.flight_check FOLDER SELECT IGNORE` prints one JSON array of findings.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from sockscope.sources.child import environment

_MODULE = "sockscope.pipeline.flight_check"
_LONGEST_S = 900.0
_LAST_OF_ALL = 19
"""nice(1): what runs only when nothing else wants to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """A finding, as far as the flight recorder must know it."""

    rule: str
    severity: int
    tgid: int
    comm: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a check came to.

    Attributes:
        fired: every finding.
        cost_s: how long it took, the writing not counted.
        problem: why it came to nothing; empty: it did.
    """

    fired: tuple[Fired, ...] = ()
    cost_s: float = 0.0
    problem: str = ""


class Checker:
    """Runs the rules over recordings, elsewhere; one at a time. `stop` is callable from any thread."""

    def __init__(self, select: Collection[str] = (), ignore: Collection[str] = ()) -> None:
        self._rules = [",".join(sorted(select)), ",".join(sorted(ignore))]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def check(self, folder: Path) -> Checked:
        """Returns when the rules are done."""
        began_s = time.monotonic()
        process = self._start(folder)
        if process is None:
            return Checked(problem="stopped")
        try:
            said, _ = process.communicate(timeout=_LONGEST_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return Checked(cost_s=time.monotonic() - began_s, problem=f"took longer than {_LONGEST_S:g} s")
        cost_s = time.monotonic() - began_s
        if process.returncode:
            return Checked(cost_s=cost_s, problem=f"ended with {process.returncode}")
        return Checked(fired=tuple(Fired(**one) for one in json.loads(said)), cost_s=cost_s)

    def stop(self) -> None:
        """End what runs, and let nothing begin any more."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def _start(self, folder: Path) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopped:
                return None
            # A session of its own: Ctrl-C is for us.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, str(folder), *self._rules],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment(),
                start_new_session=True,
            )
            _give_way(self._process.pid)
            return self._process


def _give_way(pid: int) -> None:
    """No CPU that anybody else wants; and where memory runs out, it is this process that ends."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, _LAST_OF_ALL)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")


def main(folder: str, select: str, ignore: str) -> None:
    """Judge, print, end."""
    # Who has it done needs none of this.
    from sockscope.findings.run import run_rules
    from sockscope.pipeline.load import load_session

    session = load_session(Path(folder))
    findings, _, _ = run_rules(session, select=_slugs(select) or None, ignore=_slugs(ignore) or None)
    fired = [Fired(rule=f.rule, severity=int(f.severity), tgid=f.tgid, comm=f.comm, title=f.title) for f in findings]
    print(json.dumps([asdict(one) for one in fired]))


def _slugs(text: str) -> frozenset[str]:
    return frozenset(part for part in text.split(",") if part)


if __name__ == "__main__":
    main(*sys.argv[1:])
