"""Runs of reads and the runs of writes that follow them, for all connections at once: requests and their answers.

Columns throughout: a million events on fifty thousand connections take a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sockscope.analysis.exchanges.wire import tell_wire
from sockscope.analysis.replay.control import COUNTS_MESSAGES, IS_READ, IS_WRITE
from sockscope.analysis.replay.decode import message_bytes
from sockscope.analysis.session import Ids, Session
from sockscope.model.calls import Call
from sockscope.model.columns import Appended, group_pieces
from sockscope.model.connections import Connection, Protocol, Role
from sockscope.model.events import EventFlag
from sockscope.model.exchanges import EXCHANGE_DTYPE
from sockscope.model.ids import NO_ID
from sockscope.model.tcp import TcpState

_MSG_PEEK = 2
_UNSEEN = np.array(
    tuple(NO_ID if name.endswith(("_ns", "_event")) else 0 for name in EXCHANGE_DTYPE.names or ()), EXCHANGE_DTYPE
)
_UNSEEN.flags.writeable = False
_FIN_SENT = (TcpState.FIN_WAIT1, TcpState.LAST_ACK)


def build_exchanges(session: Session) -> npt.NDArray[np.void]:
    """All exchanges of TCP and unix stream connections on which the target is the server.

    Args:
        session: joined, but for its exchanges.

    Returns:
        Shape (n,), EXCHANGE_DTYPE, connection after connection, each in order of time.
    """
    wanted = _wanted(session.connections)
    rows, bounds = session.events_of_all()
    all_made = Appended(session.columns, EXCHANGE_DTYPE)
    firsts, lasts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for begin, end in group_pieces(bounds):
        connection = np.repeat(np.arange(begin, end), np.diff(bounds[begin : end + 1]))
        moves = _Moves.of(session, rows[bounds[begin] : bounds[end]], connection, wanted)
        made, opens = _of_moves(session, moves)
        before = len(all_made)
        firsts.append(np.flatnonzero(opens) + before)
        lasts.append(np.flatnonzero(np.append(opens[1:], True)[: len(opens)]) + before)
        all_made.add(made)
    made = all_made.whole()
    if len(made):
        _tell_beginnings(session, made, np.concatenate(firsts))
        _tell_ends(session, made, np.concatenate(lasts))
        tell_wire(session, made)
    return made


def _of_moves(session: Session, moves: _Moves) -> tuple[npt.NDArray[np.void], npt.NDArray[np.bool_]]:
    """Exchanges as their calls tell them; and which are the first of a connection."""
    count = len(moves.rows)
    if not count:
        return np.zeros(0, EXCHANGE_DTYPE), np.zeros(0, np.bool_)
    new_connection = np.append(True, moves.connection[1:] != moves.connection[:-1])
    begins = new_connection | np.append(False, ~moves.write[1:] & moves.write[:-1])
    first = np.flatnonzero(begins)
    end = np.append(first[1:], count)
    made = np.full(len(first), _UNSEEN, EXCHANGE_DTYPE)
    made["connection"] = moves.connection[first]
    opens = new_connection[first]
    turn = np.arange(len(first))
    made["number"] = turn - np.maximum.accumulate(np.where(opens, turn, 0))
    _tell_calls(session, made, moves, first, end)
    return made, opens


class _Moves:
    """What moved bytes, connection after connection, in order of effect.

    Attributes:
        rows: shape (n,), event ids.
        connection: shape (n,). write: shape (n,), bool. byte_count: shape (n,), int64, all above 0.
    """

    def __init__(
        self, rows: Ids, connection: npt.NDArray[np.int64], write: npt.NDArray[np.bool_], byte_count: Ids
    ) -> None:
        self.rows, self.connection, self.write, self.byte_count = rows, connection, write, byte_count

    @classmethod
    def of(cls, session: Session, rows: Ids, connection: Ids, wanted: npt.NDArray[np.bool_]) -> _Moves:
        """Of these events, given connection after connection.

        Args:
            wanted: shape (connections,).
        """
        records = session.events.records
        call, ret = records["call"][rows], records["ret"][rows]
        data = IS_READ[call] | IS_WRITE[call] | (call == Call.splice)
        kept = np.flatnonzero(data & (ret > 0) & wanted[connection])
        rows, connection, call, byte_count = rows[kept], connection[kept], call[kept], ret[kept]
        write = IS_WRITE[call]
        for at in np.flatnonzero(COUNTS_MESSAGES[call]).tolist():
            byte_count[at] = message_bytes(session.events.blob_of(int(rows[at])))
        spliced = np.flatnonzero(call == Call.splice)
        if len(spliced):
            file_of = np.array([c.open_file for c in session.connections], np.int64)
            # Its first descriptor is what is read from.
            write[spliced] = session.event_open_file[rows[spliced]] != file_of[connection[spliced]]
        good = (byte_count > 0) & ((records["flags"][rows] & EventFlag.ENTERED_ONLY) == 0)
        for receive, place in ((Call.recvfrom, 3), (Call.recvmsg, 2)):
            asked = np.flatnonzero(call == receive)
            good[asked] &= (records["args"][rows[asked], place] & _MSG_PEEK) == 0
        if not good.all():
            rows, connection, write, byte_count = rows[good], connection[good], write[good], byte_count[good]
        return cls(rows, connection, write, byte_count)


def _wanted(connections: Sequence[Connection]) -> npt.NDArray[np.bool_]:
    kinds = (Protocol.TCP, Protocol.UNIX)
    return np.fromiter((c.role is Role.SERVER and c.protocol in kinds for c in connections), np.bool_, len(connections))


def _tell_calls(session: Session, made: npt.NDArray[np.void], moves: _Moves, first: Ids, end: Ids) -> None:
    """What the calls of each exchange say: moves `first` to `end`, the reads before the writes."""
    records = session.events.records
    before = np.concatenate([[0], np.cumsum(moves.write)])
    made["write_count"] = before[end] - before[first]
    made["read_count"] = end - first - made["write_count"]
    turn = first + made["read_count"].astype(np.int64)
    summed = np.concatenate([[0], np.cumsum(moves.byte_count)])
    made["read_bytes"] = summed[turn] - summed[first]
    made["written_bytes"] = summed[end] - summed[turn]
    made["answered"] = made["write_count"] > 0
    author = moves.rows[np.where(turn < end, np.minimum(turn, len(moves.rows) - 1), first)]
    made["tgid"], made["tid"] = records["tgid"][author], records["tid"][author]
    reads, writes = np.flatnonzero(turn > first), np.flatnonzero(turn < end)
    for name, which, at, column in (
        ("first_read", reads, first[reads], "exit_ns"),
        ("last_read", reads, turn[reads] - 1, "exit_ns"),
        ("first_write", writes, turn[writes], "enter_ns"),
        ("last_write", writes, end[writes] - 1, "exit_ns"),
    ):
        events = moves.rows[at]
        made[f"{name}_event"][which] = events
        made[f"{name}_ns"][which] = records[column][events]


def _tell_beginnings(session: Session, made: npt.NDArray[np.void], firsts: Ids) -> None:
    """Handshake and accept, of the first exchange of each connection that was seen to begin."""
    records = session.events.records
    ids = made["connection"][firsts].tolist()
    opened = np.array([session.connections[c].opened_event for c in ids], np.int64)
    call = np.where(opened >= 0, records["call"][opened], Call.unknown)
    accepted = (call == Call.accept) | (call == Call.accept4)
    made["accept_ns"][firsts] = np.where(accepted, records["exit_ns"][opened], NO_ID)
    if session.flows:
        flows = [session.flows[f] if f >= 0 else None for f in (session.connections[c].flow for c in ids)]
        for name, times in (
            ("syn_ns", [None if flow is None else flow.syn_ns for flow in flows]),
            ("established_ns", [None if flow is None else flow.established_ns for flow in flows]),
        ):
            made[name][firsts] = [NO_ID if when is None else when for when in times]
    told = _kernel_times(session, (TcpState.ESTABLISHED,))
    if told is not None:
        lacking = firsts[made["established_ns"][firsts] < 0]
        made["established_ns"][lacking] = told[made["connection"][lacking]]


def _tell_ends(session: Session, made: npt.NDArray[np.void], lasts: Ids) -> None:
    """The FIN of the target's side, of the last exchange of each connection."""
    if session.flows:
        ends = [session.connections[c] for c in made["connection"][lasts].tolist()]
        fins = [session.flows[c.flow].fin_ns[c.local_side] if c.flow >= 0 else None for c in ends]
        made["fin_ns"][lasts] = [NO_ID if when is None else when for when in fins]
    told = _kernel_times(session, _FIN_SENT)
    if told is not None:
        lacking = lasts[made["fin_ns"][lasts] < 0]
        made["fin_ns"][lacking] = told[made["connection"][lacking]]


def _kernel_times(session: Session, states: Sequence[TcpState]) -> Ids | None:
    """When each connection first came into one of these states, as the kernel told; None where it told nothing."""
    if not len(session.kernel):
        return None
    fits = (session.kernel["call"] == Call.sock_state) & (session.kernel_connection >= 0)
    fits &= np.isin(session.kernel["new"], np.array(states, np.uint8))
    # The first one written last stays.
    rows = np.flatnonzero(fits)[::-1]
    found = np.full(len(session.connections), NO_ID, np.int64)
    found[session.kernel_connection[rows]] = session.kernel["time_ns"][rows]
    return found
