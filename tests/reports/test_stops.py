"""How a server was stopped, on the terminal, on the page and in JSON; what came from the target is only text."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import jsonschema
import pytest
from rich.console import Console

from sockscope.model.report import Report
from sockscope.model.stops import A_GROUP, Disposition, StopAct, StopAudit, StopClients, StopProcess, StopStep
from sockscope.reports.html import render_html
from sockscope.reports.json import render_json, schema_text
from sockscope.reports.stop_words import sentences, stop_cards
from sockscope.reports.terminal import print_report
from tests.reports.example import MS, SCRIPT, SECOND, START_NS, example_report

SIGKILL, SIGTERM = 9, 15
AT = START_NS + SECOND


def step(after_ns: int, act: StopAct, tgid: int = 811, **more: object) -> StopStep:
    return StopStep(time_ns=AT + after_ns, last_ns=AT + after_ns, tgid=tgid, act=act, **more)  # type: ignore[arg-type]


PARENT = StopProcess(
    tgid=811,
    ns_tgid=1,
    comm=SCRIPT,
    disposition=Disposition.HANDLER,
    signalled_ns=AT,
    ended_ns=AT + 312 * MS,
    status=0,
)
CHILD = StopProcess(
    tgid=812, ns_tgid=812, comm="w", parent=811, signalled_ns=AT, ended_ns=AT + MS, status=15, waited_by=811
)
WELL = StopAudit(
    signal=SIGTERM,
    time_ns=AT,
    sender=7,
    tgid=811,
    processes=(PARENT, CHILD),
    steps=(
        step(0, StopAct.SIGNALLED, signal=SIGTERM),
        step(MS, StopAct.CLOSED, fds=(3,), address="0.0.0.0:80", is_listener=True),
        step(2 * MS, StopAct.SENT, signal=SIGTERM, other=812),
        step(2 * MS, StopAct.SIGNALLED, tgid=812, signal=SIGTERM, other=811),
        step(3 * MS, StopAct.ENDED, tgid=812, status=15, connection_count=2),
        step(3 * MS, StopAct.FETCHED, other=812, count=3),
        step(3 * MS, StopAct.SENT, signal=SIGKILL, other=A_GROUP),
        step(3 * MS, StopAct.SENT, signal=SIGKILL),
        step(4 * MS, StopAct.ACCEPTED, fds=(9,)),
        step(5 * MS, StopAct.SHUT, fds=(7,)),
        step(300 * MS, StopAct.ANSWERED),
        step(310 * MS, StopAct.CLOSED, count=12, fds=(7, 8)),
        step(312 * MS, StopAct.ENDED, status=0),
    ),
    clients=StopClients(open_count=4, running_count=2, answered_count=1, cut_count=1, fin_count=3, reset_count=1),
    listeners_first=True,
    ended_ns=AT + 312 * MS,
)


def with_stops(*stops: StopAudit) -> Report:
    return replace(example_report(), stops=stops)


def printed(report: Report, *, verbose: bool = False) -> str:
    console = Console(file=io.StringIO(), width=150, color_system=None)
    print_report(report, console=console, verbose=verbose)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_terminal() -> None:
    text = printed(with_stops(WELL))
    assert f"Stop: SIGTERM to {SCRIPT}[811] (1 in its pid namespace) at +1.000 s: exit 0, 312 ms later" in text
    for line in (
        "It has a handler for SIGTERM.",
        "Process 7 sent it.",
        "Listeners were closed first, then connections.",
        "The signal came to w[812], too.",
        f"w[812] was waited for by {SCRIPT}[811].",
        "Clients: 4 connections open at the signal, 2 with a request under way (1 answered, 1 cut without an answer)",
        "3 saw FIN, 1 saw RST.",
        "closes its listener 0.0.0.0:80 (fd 3)",
        "sends SIGTERM to w[812]",
        f"gets SIGTERM from {SCRIPT}[811]",
        "killed by SIGTERM, which closes 2 connections",
        "waited for w[812] and 2 more",
        "sends SIGKILL to a process group",
        "sends SIGKILL to another process",
        "shuts 1 connection down (fd 7)",
        "finishes 1 answer",
        "closes 12 connections (fd 7, 8 …)",
    ):
        assert line in text


def test_nothing_is_shown_of_no_stop() -> None:
    assert "Stop:" not in printed(example_report())
    assert "How it was stopped" not in render_html(example_report())


def test_html_escapes_what_came_from_the_target() -> None:
    page = render_html(with_stops(WELL))
    assert "How it was stopped" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;[811]" in page
    assert "closes its listener 0.0.0.0:80 (fd 3)" in page


@pytest.mark.parametrize("refused", [None, 2])
def test_json_keeps_the_schema(refused: int | None) -> None:
    clients = replace(WELL.clients, refused_count=refused)
    document = json.loads(render_json(with_stops(replace(WELL, clients=clients, sender=0))))
    jsonschema.Draft202012Validator(json.loads(schema_text())).validate(document)
    (stop,) = document["stops"]
    assert (stop["signal"], stop["time_ns"], stop["sender"]) == ("SIGTERM", SECOND, None)
    assert stop["ended_ns"] == SECOND + 312 * MS == stop["last_ended_ns"]
    assert stop["clients"]["refused_after"] == refused
    assert [one["parent"] for one in stop["processes"]] == [None, 811]
    assert stop["steps"][1]["act"] == "closed"
    assert stop["steps"][1]["listener"] is True


def test_a_shell_that_did_not_hear() -> None:
    shell = replace(PARENT, comm="sh", disposition=Disposition.UNHEARD, status=SIGKILL, ended_ns=AT + 10 * SECOND)
    below = replace(CHILD, ns_tgid=2, signalled_ns=None, status=SIGKILL, ended_ns=AT + 10 * SECOND, waited_by=-1)
    stop = replace(WELL, processes=(shell, below), ended_ns=AT + 10 * SECOND, listeners_first=None, steps=())
    told = sentences(stop)
    assert told[0] == "As PID 1 of its pid namespace, without a handler, it does not hear SIGTERM."
    assert "No such signal came to w[812] (2 in its pid namespace)." in told
    assert "w[812] (2 in its pid namespace) was killed by SIGKILL." in told
    # Its parent went with it: nobody could.
    assert not any("Nobody was seen to wait" in line for line in told)


def test_children_that_are_left_or_not_waited_for() -> None:
    left = replace(CHILD, ended_ns=None, status=None, waited_by=-1, signalled_ns=None)
    late = replace(CHILD, tgid=813, ns_tgid=813, waited_by=-1)
    itself = replace(CHILD, tgid=814, ns_tgid=814, signalled_ns=None, status=0)
    told = sentences(replace(WELL, processes=(PARENT, left, late, itself)))
    assert "No such signal came to w[814]: told by other means, or of itself." in told
    assert "No such signal came to w[812]." in told
    assert "w[812] still ran at the end of the session." in told
    assert "Nobody was seen to wait for w[813]." in told


def test_a_server_that_lives_on() -> None:
    alive = replace(PARENT, disposition=Disposition.IGNORED, ended_ns=None, status=None)
    stop = replace(WELL, processes=(alive,), ended_ns=None, steps=WELL.steps[:1], listeners_first=None)
    stop = replace(stop, clients=StopClients())
    (card,) = stop_cards(with_stops(stop))
    assert card.title.endswith("still running 9.0 s later")
    assert card.lines == ("It ignores SIGTERM.", "Process 7 sent it.", "Clients: no connection was open at the signal.")


@pytest.mark.parametrize(("count", "told"), [(1, "(answered)"), (3, "(all answered)")])
def test_one_fate_for_all(count: int, told: str) -> None:
    clients = StopClients(open_count=5, running_count=count, answered_count=count, fin_count=5)
    assert any(told in line for line in sentences(replace(WELL, clients=clients)))


def test_a_long_story_is_cut_in_the_middle() -> None:
    many = tuple(step(number * MS, StopAct.ACCEPTED) for number in range(100))
    report = with_stops(replace(WELL, steps=(*many, WELL.steps[-1])))
    (card,) = stop_cards(report)
    assert len(card.steps) + card.more == 101
    assert card.steps[-1].text == "exit 0"
    assert "steps between" in printed(report)
    assert "steps between" not in printed(report, verbose=True)


def test_many_stops_are_counted() -> None:
    text = printed(with_stops(*[WELL] * 5))
    assert text.count("Stop: ") == 3
    assert "and 2 more stops" in text
