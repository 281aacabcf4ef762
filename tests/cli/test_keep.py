"""--keep: times in words, and what it asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from sockscope.cli.keep import flight, keep_seconds
from sockscope.cli.options import FailOn
from sockscope.cli.output import Output
from sockscope.errors import UsageError
from sockscope.model.findings import Severity
from sockscope.pipeline.options import Alarm


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("60s", 60), ("5m", 300), ("5 min", 300), ("1h", 3600), ("2.5s", 2.5), ("1M", 60)]
)
def test_times(text: str, seconds: float) -> None:
    assert keep_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-5", "5d", "ten", "1:30", "5 m s"])
def test_no_times(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        keep_seconds(text)


@pytest.mark.parametrize("text", ["0", "0.5s", "25h"])
def test_times_out_of_range(text: str) -> None:
    with pytest.raises(UsageError, match="out of range"):
        keep_seconds(text)


def test_it_needs_a_folder() -> None:
    with pytest.raises(UsageError, match="needs --output"):
        flight("60s", None, Output())
    assert flight(None, None, Output()) == (None, None)


def test_the_bar_and_the_rules_are_those_of_the_report() -> None:
    seconds, alarm = flight("60s", Path("x"), Output(fail_on=FailOn.error, ignore="fd-leak,missing-fin"))
    assert seconds == 60
    assert alarm == Alarm(bar=int(Severity.ERROR), ignore=frozenset({"fd-leak", "missing-fin"}))
    assert flight("60s", Path("x"), Output(fail_on=FailOn.never)) == (60, None)
