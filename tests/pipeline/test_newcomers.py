"""Who is offered to the engine, how often, and what is said of it."""

from __future__ import annotations

import pytest

from sockscope.model.calls import Call
from sockscope.model.events import Events
from sockscope.model.seed import Seed
from sockscope.pipeline import newcomers
from sockscope.pipeline.newcomers import OFFERS_MAX, Newcomers
from tests.analysis.builders import Script


class Watch:
    """Stands in for the thread that looks."""

    found: frozenset[int] = frozenset({100})

    def __init__(self, port: int, tgids: object) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def servers(self) -> frozenset[int]:
        return Watch.found


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newcomers, "PortWatch", Watch)
    monkeypatch.setattr(newcomers, "descendants", list)
    monkeypatch.setattr(newcomers, "read_seed", lambda tgids: Seed.empty())
    Watch.found = frozenset({100})


def events(*rows: tuple[int, Call, int, int]) -> Events:
    script = Script()
    for tgid, call, *arguments in rows:
        script.event(tgid, tgid, call, *arguments)
    return script.session().events


def test_one_is_offered_once_a_look_until_it_is_followed() -> None:
    known = Newcomers(80, [100])
    assert known.offers() == []
    Watch.found = frozenset({100, 200})
    assert known.offers() == [200]
    assert known.offers() == []
    assert known.meet(events((200, Call.task_attach, 0, 0))) is not None
    assert known.meet(events((200, Call.task_attach, 0, 0))) is None
    Watch.found = frozenset({200, 100})
    assert known.offers() == []
    assert known.notes() == [
        "process 200 began to serve port 80 while it was watched; what was open before was read then"
    ]


def test_what_can_never_be_followed_is_said_once() -> None:
    known = Newcomers(80, [100])
    for _ in range(OFFERS_MAX):
        Watch.found = frozenset([100, 200])
        assert known.offers() == [200]
    for _ in range(2):
        Watch.found = frozenset([100, 200])
        assert known.offers() == []
    assert known.notes() == ["port 80 was also served by process 200, which could not be followed"]


def test_children_are_no_newcomers_and_the_end_of_all_is_said() -> None:
    known = Newcomers(80, [100])
    known.meet(events((100, Call.task_new, 101, 101)))
    Watch.found = frozenset({100, 101})
    assert known.offers() == []
    known.meet(events((101, Call.task_exit, 0, 0), (100, Call.task_exit, 0, 0)))
    # A look that is older than their end.
    assert known.offers() == []
    assert known.notes() == ["at the end none of the watched processes was left to serve port 80"]


def test_another_thread_may_go_on_with_a_new_program() -> None:
    known = Newcomers(80, [100])
    known.meet(events((100, Call.task_exit, 0, 0)))
    known.meet(events((100, Call.task_exec, 101, 0)))
    assert known.notes() == []
    known.meet(events((100, Call.task_exec, 100, 0), (100, Call.task_exit, 0, 0)))
    assert known.notes() == ["at the end none of the watched processes was left to serve port 80"]


def test_who_binds_the_port_by_itself_is_a_newcomer_but_no_late_child() -> None:
    known = Newcomers(80, [100])
    known.meet(events((200, Call.task_attach, 1, 0), (101, Call.task_attach, 0, 0)))
    (note,) = known.notes()
    assert note.startswith("process 200 began")


def test_without_a_port_nothing_is_said() -> None:
    known = Newcomers(None, [100])
    assert known.offers() == []
    assert known.meet(events((101, Call.task_attach, 0, 0))) is not None
    assert known.notes() == []
