"""Facts of /proc that a flight recorder holds: the window's, in bounded memory."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from sockscope.model.facts import NETNS_FACT_DTYPE, PROCESS_FACT_DTYPE, SEGMENT_FACT_DTYPE, Facts

FACT_BYTES = 16 << 20
"""The most that each of processes and namespaces may take; above, the oldest go."""


class KeptFacts:
    """Samples of the window; of shared memory the first look (what was there before) and the newest."""

    def __init__(self, keep_ns: int, most_bytes: int = FACT_BYTES) -> None:
        self._processes = _Rows(keep_ns, most_bytes, PROCESS_FACT_DTYPE)
        self._namespaces = _Rows(keep_ns, most_bytes, NETNS_FACT_DTYPE)
        self._first: npt.NDArray[np.void] | None = None
        self._newest: npt.NDArray[np.void] = np.zeros(0, SEGMENT_FACT_DTYPE)

    def add(self, facts: Facts) -> None:
        """What was seen since the last call."""
        self._processes.add(facts.processes)
        self._namespaces.add(facts.namespaces)
        if not len(facts.segments):
            return
        if self._first is None:
            self._first = facts.segments
        else:
            self._newest = facts.segments

    def held(self) -> Facts:
        """Oldest first."""
        first = self._first if self._first is not None else np.zeros(0, SEGMENT_FACT_DTYPE)
        return Facts(
            processes=self._processes.held(),
            namespaces=self._namespaces.held(),
            segments=np.concatenate([first, self._newest]),
        )


class _Rows:
    def __init__(self, keep_ns: int, most_bytes: int, dtype: np.dtype[np.void]) -> None:
        self._keep_ns = keep_ns
        self._most_bytes = most_bytes
        self._dtype = dtype
        self._parts: deque[npt.NDArray[np.void]] = deque()
        self._held_bytes = 0

    def add(self, records: npt.NDArray[np.void]) -> None:
        if not len(records):
            return
        self._parts.append(records)
        self._held_bytes += records.nbytes
        begins = int(records["time_ns"].max()) - self._keep_ns
        while len(self._parts) > 1 and (
            int(self._parts[0]["time_ns"].max()) < begins or self._held_bytes > self._most_bytes
        ):
            self._held_bytes -= self._parts.popleft().nbytes

    def held(self) -> npt.NDArray[np.void]:
        return np.concatenate(self._parts) if self._parts else np.zeros(0, self._dtype)
