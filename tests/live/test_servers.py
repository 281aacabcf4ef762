"""Sound servers under load: every connection seen, nothing above info, a clean detach."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from sockscope.model.findings import Severity
from sockscope.model.report import Report
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.load import load_session
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.pipeline.record import Watcher, record
from tests.live import servers
from tests.live.engines import BOTH, need
from tests.live.rehearsals import Rehearsals
from tests.live.server_sessions import How, ServerCase, Watched, accepted

pytestmark = [pytest.mark.server, pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

LOADED = ("nginx", "redis", "gunicorn", "flask", "http.server", "haproxy")
"""The others live (below), and some of them are launched."""
LAUNCHED = (*LOADED, "apache-event", "uwsgi", "postgres")


def sessions(how: How, names: Iterable[str]) -> list[ServerCase]:
    return [ServerCase(name=name, how=how, engine=engine) for name in names for engine in BOTH]


def assert_sound(report: Report | Watched) -> None:
    loud = [
        f"{f.rule} ({f.severity.label}): {f.title}: {f.explanation}"
        for f in report.findings
        if f.severity > Severity.INFO
    ]
    assert not loud, "\n".join(loud)
    assert not report.info.syscalls.lost_count, report.info.syscalls.lost
    assert report.info.packets.lost_count == 0


def assert_complete(watched: Watched) -> None:
    """The tracer's connections, the wire's and the clients' own count agree."""
    ours = watched.accepted
    assert len(ours) >= watched.made
    unclaimed = [c for c in ours if c.open_file < 0]
    assert not unclaimed, f"{unclaimed[:3]}"
    unseen = [c for c in ours if c.witnessed and c.flow < 0]
    assert not unseen, f"{unseen[:3]}"
    assert len({c.flow for c in ours if c.flow >= 0}) == len([c for c in ours if c.flow >= 0])
    assert set(watched.statuses) <= {200}


@pytest.mark.parametrize("case", [*sessions(How.ATTACH, LOADED), *sessions(How.DIAGNOSE, LOADED)], ids=str)
def test_watched_while_it_runs(case: ServerCase, rehearsals: Rehearsals) -> None:
    """Found by its process or by its port; what is left after the detach is what was before."""
    need(case.engine)
    watched = rehearsals.outcome(case)
    assert not watched.touched
    assert_sound(watched)
    assert_complete(watched)


@pytest.mark.parametrize("case", sessions(How.RUN, LAUNCHED), ids=str)
def test_run(case: ServerCase, rehearsals: Rehearsals) -> None:
    """From the first syscall to a graceful stop: the engine ends what it launched by SIGTERM."""
    need(case.engine)
    watched = rehearsals.outcome(case)
    assert_sound(watched)
    assert_complete(watched)


@pytest.mark.parametrize("case", sessions(How.LIFE, servers.SERVERS), ids=str)
def test_reloaded_and_stopped_under_load(case: ServerCase, rehearsals: Rehearsals) -> None:
    need(case.engine)
    watched = rehearsals.outcome(case)
    tally = watched.tally
    assert tally is not None
    assert tally.answered > 20, tally
    assert not tally.cut, tally
    assert not tally.errors, tally
    assert watched.exit_status == 0, watched.exit_status
    assert_sound(watched)


@pytest.mark.parametrize("engine", BOTH)
def test_flask_lesson(engine: EngineChoice, tmp_path: Path) -> None:
    """Attach at rest, then two pages, one a 404: idle polling and its period, accept4, the thread, recv, each send."""
    need(engine)
    server = servers.flask(tmp_path)
    with servers.running(server) as pid:
        watcher = Watcher()

        def act() -> None:
            time.sleep(2.5)
            servers.curl_many(server.port, 2, ["/", "/missing"])
            time.sleep(1)
            watcher.stop.set()

        watcher.on_ready = lambda tgids, seed: threading.Thread(target=act, daemon=True).start()
        record(RecordOptions(pids=(pid,), engine=engine), tmp_path / "rec", watcher)
    report = make_report(load_session(tmp_path / "rec"))
    assert_sound(report)
    assert any("poll" in line and "500 ms" in line for line in report.idle_words), report.idle_words
    ours = accepted(report, server.port)
    assert len(ours) == 2
    for connection, status in zip(ours, ("200", "404"), strict=True):
        items = report.timelines(connection.id)
        names = [item.name for item in items if item.lane == "syscall"]
        order = [names.index(wanted) for wanted in ("poll", "accept4", "recvfrom", "sendto")]
        assert order == sorted(order), names
        assert any(name.startswith(("clone", "task_new", "new thread")) for name in names), names
        assert names.count("sendto") >= 2
        told = " | ".join(item.words for item in items)
        assert status in told, told
        assert "header" in told, told
        assert "body" in told, told
