"""What one look can say of each state."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.model.snapshot import Cause, causes
from sockscope.model.sockets import SOCKET_DTYPE
from sockscope.model.tcp import TcpState


def row(state: TcpState, *, inode: int = 9, port: int = 80, queues: tuple[int, int] = (0, 0)) -> npt.NDArray[np.void]:
    out = np.zeros(1, SOCKET_DTYPE)
    out["protocol"], out["state"], out["inode"], out["local_port"] = 6, state, inode, port
    out["recv_q"], out["send_q"] = queues
    return out


LISTENER = row(TcpState.LISTEN, queues=(1, 8))
NOBODY = np.zeros(0, SOCKET_DTYPE)


def cause(
    record: npt.NDArray[np.void],
    *,
    owned: bool = False,
    listeners: npt.NDArray[np.void] = NOBODY,
    hidden: bool = False,
) -> Cause:
    return Cause(int(causes(record, np.array([owned]), listeners, owners_may_hide=hidden)[0]))


def test_close_wait_owned() -> None:
    assert cause(row(TcpState.CLOSE_WAIT), owned=True) is Cause.OWNED


def test_without_inode_and_with_a_waiting_listener_it_was_never_accepted() -> None:
    for state in (TcpState.CLOSE_WAIT, TcpState.ESTABLISHED):
        assert cause(row(state, inode=0), listeners=LISTENER) is Cause.NEVER_ACCEPTED


def test_a_listener_of_another_port_or_with_an_empty_queue_proves_nothing() -> None:
    assert cause(row(TcpState.CLOSE_WAIT, inode=0, port=81), listeners=LISTENER) is Cause.ORPHANED
    empty = row(TcpState.LISTEN, queues=(0, 8))
    assert cause(row(TcpState.CLOSE_WAIT, inode=0), listeners=empty) is Cause.ORPHANED


def test_an_inode_without_owner_is_orphaned_only_where_all_can_be_seen() -> None:
    assert cause(row(TcpState.CLOSE_WAIT)) is Cause.ORPHANED
    assert cause(row(TcpState.CLOSE_WAIT), hidden=True) is Cause.HIDDEN_OWNER


def test_closing_states() -> None:
    assert cause(row(TcpState.FIN_WAIT2, inode=0)) is Cause.CLOSED_HERE
    assert cause(row(TcpState.FIN_WAIT2), owned=True) is Cause.HALF_CLOSED
    assert cause(row(TcpState.TIME_WAIT, inode=0)) is Cause.NONE


def test_listeners() -> None:
    assert cause(row(TcpState.LISTEN), owned=True) is Cause.NONE
    assert cause(row(TcpState.LISTEN, queues=(3, 8)), owned=True) is Cause.QUEUE_WAITING
    assert cause(row(TcpState.LISTEN, queues=(9, 8)), owned=True) is Cause.QUEUE_FULL
