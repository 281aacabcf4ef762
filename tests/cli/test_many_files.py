"""Options that take several files after one name, as shells write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sockscope.cli import execute
from sockscope.cli.many import spread


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with a recording's folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rec").mkdir()


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("analyze rec/", "analyze rec/"),
        ("analyze --strace a", "analyze --strace a"),
        ("analyze --strace a b", "analyze --strace a --strace b"),
        ("analyze --strace a b c", "analyze --strace a --strace b --strace c"),
        ("--strace a b --pcap c d rec/", "--strace a --strace b --pcap c --pcap d rec/"),
        ("--ss one two --json -", "--ss one --ss two --json -"),
        # A folder is the recording, wherever it stands.
        ("rec/ --strace a b", "rec/ --strace a --strace b"),
        ("--strace a rec/ b", "--strace a rec/ b"),
        # Another option ends the list, and its value is its own.
        ("--strace a b --port 80 --html out.html", "--strace a --strace b --port 80 --html out.html"),
        ("--strace a -p 80 b", "--strace a -p 80 b"),
        ("--strace a -v b", "--strace a -v b"),
        # With `=` the first is there; others follow.
        ("--strace=a", "--strace=a"),
        ("--strace=a b", "--strace=a --strace b"),
        ("--strace=a b --pcap=c d", "--strace=a --strace b --pcap=c --pcap d"),
        ("--html=out.html a", "--html=out.html a"),
        ("--strace a --strace b c", "--strace a --strace b --strace c"),
        # `-` is a file's name like any other.
        ("--strace - b", "--strace - --strace b"),
        # A value may be missing: the parser says so.
        ("--strace", "--strace"),
        ("--strace --pcap c", "--strace --pcap c"),
        # Behind -- nothing is an option.
        ("--strace a b -- c d", "--strace a --strace b -- c d"),
        ("-- --strace a b", "-- --strace a b"),
    ],
)
def test_each_file_has_its_option(given: str, parsed: str) -> None:
    assert list(spread(given.split())) == parsed.split()


def test_the_first_value_may_be_a_folder() -> None:
    """It is no log, and whoever reads it says so."""
    assert list(spread(["--strace", "rec"])) == ["--strace", "rec"]


def test_the_command_reads_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    line = '100 1700000000.00000{} recvfrom(7, "x", 1, 0, NULL, NULL) = 1 <0.000001>\n'
    Path("a.log").write_text(line.format(1))
    Path("b.log").write_text(line.format(2))
    assert execute(["analyze", "--strace", "a.log", "b.log", "--fail-on", "never"]) == 0
    assert "2 events" in capsys.readouterr().out
    assert execute(["analyze", "--strace", "a.log", "missing.log"]) == 2
    assert "missing.log" in capsys.readouterr().err


def test_other_commands_keep_their_words(capsys: pytest.CaptureFixture[str]) -> None:
    """`run` passes them on to the command that it starts."""
    assert execute(["report", "rec", "--strace", "a", "b"]) == 2
    assert "No such option: --strace" in capsys.readouterr().err
