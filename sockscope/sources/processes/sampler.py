"""Facts of /proc through a session: a thread that looks about once a second, and never costs much."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from sockscope.model.facts import NETNS_FACT_DTYPE, PROCESS_FACT_DTYPE, SEGMENT_FACT_DTYPE, Facts
from sockscope.sources.processes.look import Looker
from sockscope.sources.processes.segments import read_segments

PERIOD_S = 1.0
_SHARE = 50
"""A look may cost a fiftieth (2 %) of the time until the next."""
_BYTES_A_SECOND = 64 << 10
_SOONEST_S = 0.1
"""After a look, another that somebody asks for comes no sooner."""


class FactSampler:
    """Samples processes and their network namespaces; shared memory at the start and at the end.

    Use: `start`, `drain` now and then, `stop` once. Roots that end are forgotten by themselves.

    Args:
        tgids: the target's processes, each of them; their children are found here.
        period_s: time between two looks while they are cheap; it grows so that looking stays below 2 % of a CPU.
    """

    def __init__(self, tgids: Collection[int] = (), *, period_s: float = PERIOD_S) -> None:
        self._tgids = set(tgids)
        self._period_s = period_s
        self._lock = threading.Lock()
        self._taken: list[Facts] = []
        self._wake = threading.Event()
        self._stopping = False
        self._started = threading.Event()
        self._looker = Looker()
        self._cost_s = 0.0
        self._thread = threading.Thread(target=self._work, name="fact-sampler", daemon=True)

    @property
    def cost_s(self) -> float:
        """CPU time that looking has taken so far, user and system."""
        return self._cost_s

    def start(self) -> None:
        """Take the first look, and go on in the background."""
        self._thread.start()
        self._started.wait()

    def drain(self) -> Facts:
        """The rows since the last call."""
        with self._lock:
            taken, self._taken = self._taken, []
        return _join(taken)

    def add_tgids(self, tgids: Collection[int]) -> None:
        """More processes; from the next look on."""
        with self._lock:
            self._tgids.update(tgids)

    def look_soon(self) -> None:
        """Something has happened (a signal, for one): do not wait for the next look's time."""
        self._wake.set()

    def stop(self) -> Facts:
        """End, with a last look.

        Returns:
            What was not drained yet, the last look's rows included.
        """
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        return self.drain()

    def _work(self) -> None:
        try:
            self._run()
        finally:
            # Whatever happened: nobody waits for ever.
            self._started.set()

    def _run(self) -> None:
        while True:
            stopping = self._stopping
            began = time.thread_time()
            held = self._look()
            cost = time.thread_time() - began
            self._cost_s += cost
            first = not self._started.is_set()
            # The first look also pays for cold caches: it is no measure.
            if first:
                cost = 0.0
            if first or stopping:
                self._look_at_segments()
            # Not before: a launched command waits for it, and what it makes then is new.
            self._started.set()
            if stopping:
                return
            self._pause(max(self._period_s, cost * _SHARE, held / _BYTES_A_SECOND), max(_SOONEST_S, cost * _SHARE))

    def _pause(self, period_s: float, soonest_s: float) -> None:
        began_s = time.monotonic()
        if self._wake.wait(period_s) and not self._stopping:
            left_s = soonest_s - (time.monotonic() - began_s)
            if left_s > 0:
                self._wake.clear()
                self._wake.wait(left_s)
        self._wake.clear()

    def _look(self) -> int:
        """One look; how many bytes it came to."""
        with self._lock:
            tgids = set(self._tgids)
        processes = self._looker.processes(tgids)
        namespaces = self._looker.namespaces(processes["tgid"].tolist())
        gone = {tgid for tgid in tgids - set(processes["tgid"].tolist()) if not os.path.exists(f"/proc/{tgid}")}
        with self._lock:
            self._tgids -= gone
            if len(processes) or len(namespaces):
                self._taken.append(Facts(processes=processes, namespaces=namespaces))
        return processes.nbytes + namespaces.nbytes

    def _look_at_segments(self) -> None:
        began = time.thread_time()
        with self._lock:
            tgids = set(self._tgids)
        segments = read_segments(tgids, now_ns=time.monotonic_ns())
        with self._lock:
            self._taken.append(Facts(segments=segments))
        self._cost_s += time.thread_time() - began


def _join(parts: list[Facts]) -> Facts:
    def rows(taken: list[npt.NDArray[np.void]], dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
        return np.concatenate(taken) if taken else np.zeros(0, dtype)

    return Facts(
        processes=rows([part.processes for part in parts], PROCESS_FACT_DTYPE),
        namespaces=rows([part.namespaces for part in parts], NETNS_FACT_DTYPE),
        segments=rows([part.segments for part in parts], SEGMENT_FACT_DTYPE),
    )
