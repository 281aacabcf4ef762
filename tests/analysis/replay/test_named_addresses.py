"""Addresses that only a name told (strace -yy) are known to the session, and no call of the program."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sockscope.analysis.build import build_session
from sockscope.model.events import EventFlag
from sockscope.model.info import SessionInfo, Target
from sockscope.model.packets import Packets
from sockscope.model.sockets import Sockets
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
