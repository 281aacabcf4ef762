"""Arrays in unlinked files: as good as arrays in memory, and a full disk is said in time."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockscope import storage
from sockscope.errors import UsageError
from sockscope.storage import Growing, allocate

PAIR = np.dtype([("one", "<i4"), ("other", "<u2")])


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(0, 400))
def test_pieces_make_a_whole(sizes: list[int], limit: int) -> None:
    parts = [np.zeros(size, PAIR) for size in sizes]
    for at, part in enumerate(parts):
        part["one"], part["other"] = at, np.arange(len(part))
    growing = Growing(PAIR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "SPILL_BYTES", limit)
        for part in parts:
            growing.append(part)
        assert len(growing) == sum(sizes)
        whole = growing.whole()
    assert np.array_equal(whole, np.concatenate([np.zeros(0, PAIR), *parts]))
    whole["one"] = 7
    assert (whole["one"] == 7).all()


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SPILL_BYTES", 10)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(storage, "temporary_folder", lambda: str(tmp_path))
    column = allocate(100, np.int64)
    assert not column.any()
    column[:] = 3
    assert column.sum() == 300
    assert not list(tmp_path.iterdir())


def test_tmpdir_is_obeyed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert storage.temporary_folder() == str(tmp_path)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SPILL_BYTES", 10)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UsageError, match="no room for 8 MiB of temporary data: No space left on device") as raised:
        allocate(1 << 20, np.int64)
    assert "TMPDIR" in (raised.value.help_text or "")


def test_a_file_system_that_cannot_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(storage, "SPILL_BYTES", 10)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    column = allocate((1 << 20) + 5, np.uint8)
    column[-1] = 1
    assert column.sum() == 1
