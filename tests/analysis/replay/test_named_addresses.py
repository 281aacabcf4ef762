"""Addresses that only a name told (strace -yy) are known to the session, and no call of the program."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sockscope.analysis.alignment.talks import returns
from sockscope.analysis.build import build_session
from sockscope.analysis.session import Session
from sockscope.analysis.wire.columns import NEVER
from sockscope.findings.shared.kept_waiting import Arrivals
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag, Unassigned, is_seeded
from sockscope.model.ids import NO_ID
from sockscope.model.info import SessionInfo, Target
from sockscope.model.packets import Packets
from sockscope.model.sockets import Sockets
from sockscope.pipeline.analyze import make_report
from sockscope.sources.syscalls.strace_log.reader import read_strace

LOG = b"""77 1000000000.000001 accept4(5<TCP:[0.0.0.0:80]>, NULL, NULL, 0) = 6<TCP:[127.0.0.1:80->127.0.0.1:5555]>
77 1000000000.000002 read(6<TCP:[127.0.0.1:80->127.0.0.1:5555]>, "x", 9) = 1
77 1000000000.000003 read(7<TCP:[127.0.0.1:80->127.0.0.1:4444]>, "y", 9) = 1
77 1000000000.000004 close(6<TCP:[127.0.0.1:80->127.0.0.1:5555]>) = 0
"""


def test_names_give_addresses(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(LOG)
    log = read_strace([path])
    info = SessionInfo(
        target=Target(), started_realtime_ns=0, started_ns=10**18, ended_ns=2 * 10**18, syscalls=log.coverage
    )
    session = build_session(
        info=info, seed=log.seed, events=log.events, packets=Packets.empty(), sockets=Sockets.empty()
    )
    seeded = np.flatnonzero(log.events.records["flags"] & EventFlag.SEEDED)
    assert len(seeded) == 5
    assert not np.isin(seeded, session.order).any()
    assert len(session.order) == 4
    ends = {(str(made.local), str(made.peer)) for made in session.connections}
    assert ends == {("127.0.0.1:80", "127.0.0.1:5555"), ("127.0.0.1:80", "127.0.0.1:4444")}


def _session(tmp_path: Path, text: bytes) -> Session:
    path = tmp_path / "log"
    path.write_bytes(text)
    log = read_strace([path])
    first, last = int(log.events.records["enter_ns"].min()), int(log.events.records["exit_ns"].max())
    info = SessionInfo(
        target=Target(), started_realtime_ns=0, started_ns=first, ended_ns=last + 10**9, syscalls=log.coverage
    )
    return build_session(info=info, seed=log.seed, events=log.events, packets=Packets.empty(), sockets=Sockets.empty())


def test_what_only_a_name_told_names_nothing_itself(tmp_path: Path) -> None:
    session = _session(tmp_path, LOG)
    seeded = np.flatnonzero(is_seeded(session.events.records))
    for column in (session.event_connection, session.event_open_file, session.event_descriptor):
        assert (column[seeded] == NO_ID).all()
    assert set(session.event_reason[seeded].tolist()) == {Unassigned.SEEDED}
    rows = make_report(session).connections
    assert sorted(row.event_count for row in rows) == [1, 3]
    assert "seeded" not in make_report(session).unassigned


def test_a_name_is_no_touch_of_a_connection(tmp_path: Path) -> None:
    """A read that waits touches its connection when it returns: not when it begins, where its line names an address."""
    session = _session(tmp_path, LOG.replace(b'"y", 9) = 1', b'"y", 9) = 1 <5.000000>'))
    (known,) = (made for made in session.connections if made.opened_event < 0)
    (touch,) = Arrivals(session).next_touch(np.array([known.id]), np.array([session.info.started_ns])).tolist()
    assert session.events.call(touch) is Call.read


def test_a_name_is_no_next_call(tmp_path: Path) -> None:
    """Without durations a call has returned when its thread makes the next: not when its own line names an address."""
    path = tmp_path / "log"
    path.write_bytes(LOG)
    events = read_strace([path]).events
    calls = np.flatnonzero(~is_seeded(events.records))
    entered = events.records["enter_ns"][calls]
    back = returns(events)[calls]
    assert back[:-1].tolist() == entered[1:].tolist()
    assert back[-1] == NEVER


def test_a_message_with_an_address_is_a_datagram(tmp_path: Path) -> None:
    whom = b'{sa_family=AF_INET, sin_port=htons(9), sin_addr=inet_addr("127.0.0.1")}, [16]'
    text = (
        b'77 1000000000.000001 recvfrom(3<UDP:[127.0.0.1:53]>, "q", 64, 0, ' + whom + b") = 1\n"
        b'77 1000000000.000002 recvfrom(4<TCP:[127.0.0.1:80->127.0.0.1:5]>, "r", 64, 0, NULL, NULL) = 1\n'
    )
    session = _session(tmp_path, text)
    types = {file.local.port: file.socket_type for file in session.open_files if file.local is not None}
    assert types == {53: 2, 80: 0}
