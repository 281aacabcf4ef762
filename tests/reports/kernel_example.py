"""A report made of a session in which the kernel was heard, all the way from events."""

from __future__ import annotations

from sockscope.analysis.session import Session
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.model.report import Report
from sockscope.model.tcp import TcpFlag, TcpState
from sockscope.pipeline.analyze import make_report
from tests.analysis.builders import Script, address

S = TcpState
MS = 1_000_000
SERVER = address("127.0.0.1", 80)
CLIENT = address("127.0.0.1", 40112)
OTHER = address("127.0.0.1", 40113)


def heard_script() -> Script:
    """Connection 0 is told of its end and kept, connection 1 goes through an io_uring and nothing is heard of it."""
    script = Script(ports=(80,), engine="bpf").process(100).seed_fd(100, 3, inode=3)
    script.snapshot(at=0)
    script.socket_row(SERVER, None, S.LISTEN, inode=3, owners=[(100, 3)])
    script.handshake(CLIENT, SERVER, at=10 * MS)
    script.states(SERVER, CLIENT, S.LISTEN, S.SYN_RECV, S.ESTABLISHED, at=10 * MS + 25_000, step=5000)
    script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=CLIENT, at=11 * MS)
    script.kernel(Call.tcp_retransmit, SERVER, CLIENT, S.ESTABLISHED, at=300 * MS)
    script.snapshot(at=500 * MS)
    script.socket_row(SERVER, CLIENT, S.ESTABLISHED, inode=5, owners=[(100, 7)])
    script.packet(CLIENT, SERVER, TcpFlag.FIN | TcpFlag.ACK, seq=1001, ack=5001, at=900 * MS)
    script.states(SERVER, CLIENT, S.ESTABLISHED, S.CLOSE_WAIT, at=900 * MS + 4000)
    script.states(CLIENT, SERVER, S.ESTABLISHED, S.FIN_WAIT1, S.FIN_WAIT2, at=900 * MS)
    script.event(100, 100, Call.recvfrom, 0, 100, fd=7, ret=0, at=901 * MS)
    script.event(100, 100, Call.accept, fd=3, ret=8, sockaddr=OTHER, at=950 * MS, flags=EventFlag.URING)
    script.event(100, 100, Call.recvfrom, 0, 100, fd=8, ret=5, payload=b"hello", at=960 * MS, flags=EventFlag.URING)
    for turn in range(1, 9):
        script.event(100, 100, Call.epoll_wait, 0, 64, 500, fd=4, ret=0, at=turn * 1000 * MS, took=500 * MS)
    script.kernel(Call.tcp_reset_received, SERVER, CLIENT, S.CLOSE_WAIT, at=9500 * MS)
    return script.ends(10_000 * MS)


def heard_session() -> Session:
    return heard_script().session()


def heard_report() -> Report:
    return make_report(heard_session())
