"""A log with more calls than memory is worth becomes the same events, in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sockscope import storage
from sockscope.sources.syscalls.strace_log.reader import read_strace


def test_the_same_events_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    lines = [
        f'{7 + at % 3} {1700000000 + at / 1000:.6f} read({at % 9}, "x", 1) = 1 <0.000009>\n' for at in range(20_000)
    ]
    path.write_text("".join(lines))
    usual = read_strace([path]).events
    monkeypatch.setattr(storage, "SPILL_BYTES", 4096)
    big = read_strace([path]).events
    assert np.array_equal(usual.records, big.records)
    assert len(usual) >= 20_000
    assert bytes(usual.blob) == bytes(big.blob)
