from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.reports.escape import safe


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET /index.html → 200", "GET /index.html → 200"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egpj.exe\u2066", "\\u202egpj.exe\\u2066"),
        ("\udc80", "\\udc80"),
        ("naïve 日本 ✓", "naïve 日本 ✓"),
        ("", ""),
    ],
)
def test_safe(text: str, shown: str) -> None:
    assert safe(text) == shown


@settings(deadline=None)
@given(st.text())
def test_nothing_that_controls_is_left(text: str) -> None:
    shown = safe(text)
    assert not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in shown)
    assert safe(shown) == shown
    shown.encode()
