"""Groups of options: each command that names one has all its options, once."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass, fields
from typing import Annotated

import pytest
import typer
import typer.main
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.testing import CliRunner

from sockscope.cli.app import app
from sockscope.cli.groups import with_groups
from sockscope.cli.output import Output, Written
from sockscope.cli.watching import Watching

WRITE = ("--html", "--json", "--markdown", "--sarif", "--perfetto", "--pcapng", "--parquet")
JUDGE = ("--select", "--ignore", "--fail-on")
WATCH = (
    "--duration",
    "--engine",
    "--payload",
    "--no-pin",
    "--no-redact",
    "--no-packets",
    "--no-sockets",
    "--keep",
    "--output",
)
REPORTING = ("attach", "run", "diagnose", "analyze", "report")
COMMANDS = (*REPORTING, "snapshot", "rules", "doctor", "demo")


def commands() -> dict[str, TyperCommand]:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return {name: one for name, one in group.commands.items() if isinstance(one, TyperCommand)}


def options(name: str) -> list[str]:
    """All spellings of a command's options, as often as they are there."""
    return [word for one in commands()[name].params if isinstance(one, TyperOption) for word in one.opts]


def test_all_commands_are_looked_at() -> None:
    assert set(commands()) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_there_once(name: str) -> None:
    assert {word: count for word, count in Counter(options(name)).items() if count > 1} == {}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_option_once(name: str) -> None:
    told = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert told.exit_code == 0
    own, _, _ = told.output.partition("Examples:")
    listed = Counter(
        word.rstrip(",") for line in own.splitlines() if line.startswith("  -") for word in line.split("  ")[1].split()
    )
    for option in options(name):
        assert listed[option] == 1, (option, listed)


@pytest.mark.parametrize("name", [*REPORTING, "demo"])
def test_whatever_has_a_session_can_be_exported(name: str) -> None:
    assert set(WRITE) <= set(options(name))


@pytest.mark.parametrize("name", REPORTING)
def test_whatever_judges_can_choose_and_fail(name: str) -> None:
    assert set(JUDGE) <= set(options(name))


def test_a_demo_fails_on_nothing_and_chooses_nothing() -> None:
    assert not set(JUDGE) & set(options("demo"))


@pytest.mark.parametrize("name", ["attach", "run", "diagnose"])
def test_whatever_watches_can_be_told_how(name: str) -> None:
    assert set(WATCH) <= set(options(name))


@pytest.mark.parametrize("name", ["snapshot", "rules", "doctor"])
def test_what_makes_no_session_exports_none(name: str) -> None:
    assert not {"--html", "--perfetto", "--pcapng", "--parquet", "--sarif"} & set(options(name))


def test_each_field_is_an_option() -> None:
    """A field without an option of its own could never be given."""
    names = {one.name for one in commands()["diagnose"].params}
    assert {one.name for group in (Written, Output, Watching) for one in fields(group)} <= names


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    low: Annotated[int, typer.Option("--low")]
    high: Annotated[int, typer.Option("--high")] = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Colour:
    red: Annotated[bool, typer.Option("--red")] = False


def paint(ends: Ends, name: Annotated[str, typer.Argument()], colour: Colour, often: int = 1) -> int:
    """Paint."""
    print(name, ends.low, ends.high, colour.red, often)
    return 0


def test_the_command_gets_its_groups_filled_in() -> None:
    painting = typer.Typer()
    painting.command()(with_groups(paint))
    given = CliRunner().invoke(painting, ["wall", "--low", "3", "--red"])
    assert given.output == "wall 3 9 True 1\n"
    missing = CliRunner().invoke(painting, ["wall"])
    assert missing.exit_code == 2
    assert "--low" in missing.output


def test_the_commands_own_come_first_and_keep_their_defaults() -> None:
    shown = inspect.signature(with_groups(paint)).parameters
    assert list(shown) == ["name", "often", "low", "high", "red"]
    assert shown["low"].default is inspect.Parameter.empty
    assert (shown["often"].default, shown["high"].default, shown["red"].default) == (1, 9, False)


def test_a_command_without_groups_stays_as_it_is() -> None:
    def plain(word: str, times: int = 2) -> int:
        return len(word) * times

    assert with_groups(plain)(word="ab") == 4
    assert list(inspect.signature(with_groups(plain)).parameters) == ["word", "times"]
