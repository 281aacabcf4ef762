"""Whom a listener's holders make a target."""

from __future__ import annotations

import pytest

from sockscope.errors import CannotObserveError
from sockscope.sources.sockets import listeners, procfs


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 1 is systemd; 10 is a service with the worker 11; 20 is something else."""
    tree = {1: [10, 20], 10: [11]}
    init = procfs.Stat(comm="systemd", state="S", ppid=0, flags=0, start_ticks=0)
    monkeypatch.setattr(procfs, "children_of_all", lambda: tree)
    monkeypatch.setattr(procfs, "read_stat", lambda tgid: init)


@pytest.mark.usefixtures("machine")
def test_an_init_system_that_holds_the_listener_too_is_left_out() -> None:
    assert listeners._servers_and_children(80, [1, 10]) == [10, 11]


@pytest.mark.usefixtures("machine")
def test_an_init_system_alone_does_not_stand_for_the_whole_machine() -> None:
    with pytest.raises(CannotObserveError, match="held by systemd"):
        listeners._servers_and_children(80, [1])


@pytest.mark.usefixtures("machine")
def test_a_server_as_process_1_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    server = procfs.Stat(comm="nginx", state="S", ppid=0, flags=0, start_ticks=0)
    monkeypatch.setattr(procfs, "read_stat", lambda tgid: server)
    assert listeners._servers_and_children(80, [1]) == [1, 10, 20, 11]


@pytest.mark.usefixtures("machine")
def test_workers_follow_their_master() -> None:
    assert listeners._servers_and_children(80, [10, 11]) == [10, 11]
