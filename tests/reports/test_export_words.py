"""How exports name calls and segments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sockscope.model.tcp import SegmentMark
from sockscope.reports.export_words import call_text, mark_words
from tests.reports.exported import exported, leaking


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        (SegmentMark(0), ""),
        (SegmentMark.RETRANSMISSION, "retransmission"),
        (SegmentMark.RETRANSMISSION | SegmentMark.RTO, "retransmission after a timeout (RTO)"),
        (SegmentMark.RETRANSMISSION | SegmentMark.FAST_RETRANSMISSION, "fast retransmission"),
        (SegmentMark.DUPLICATE_ACK | SegmentMark.ZERO_WINDOW, "duplicate ACK, zero window"),
        (SegmentMark.KEEP_ALIVE_ACK, "keep-alive ACK"),
    ],
)
def test_a_segments_marks(mark: SegmentMark, words: str) -> None:
    assert mark_words(int(mark)) == words


@pytest.mark.parametrize("mark", SegmentMark)
def test_every_mark_has_words(mark: SegmentMark) -> None:
    assert mark_words(int(mark)).replace(" ", "").replace("-", "").replace("(", "").replace(")", "").isalpha()


@pytest.mark.parametrize(
    ("said", "shown"),
    [("close(7) = 0", "close(7) = 0"), ("x" * 400, "x" * 400), ("x" * 401, "x" * 400 + "…"), ("\x1b[0m", "\\x1b[0m")],
)
def test_a_call_is_cut_and_safe(said: str, shown: str, tmp_path: Path) -> None:
    _, tables = exported(leaking(), tmp_path)
    assert call_text(replace(tables, event_text=lambda event: said), 0) == shown
