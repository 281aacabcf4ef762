"""The joined session: what rules read. Built by `analysis.build.build_session`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sockscope.analysis.wire.flow_table import Flows
from sockscope.model.columns import PIECE_ROWS, Columns, in_memory, pieces
from sockscope.model.connections import Connection
from sockscope.model.descriptors import Descriptor, EpollInterest, FilesTable, OpenFile, Process
from sockscope.model.events import Events
from sockscope.model.exchanges import EXCHANGE_DTYPE
from sockscope.model.facts import Facts
from sockscope.model.flow_facts import FLOW_FACT_DTYPE
from sockscope.model.info import SessionInfo
from sockscope.model.kernel import KERNEL_EVENT_DTYPE
from sockscope.model.packets import Packets
from sockscope.model.seed import Seed
from sockscope.model.sockets import Sockets

Ids = npt.NDArray[np.int64]

_PLACE_BITS = (PIECE_ROWS - 1).bit_length()


def _runs(values: npt.NDArray[np.signedinteger]) -> tuple[npt.NDArray[np.signedinteger], Ids, Ids]:
    """Of sorted values: each distinct one, where its run begins, how long that is."""
    begins = np.flatnonzero(np.append(len(values) > 0, values[1:] != values[:-1])[: len(values)])
    return values[begins], begins, np.diff(np.append(begins, len(values)))


class Grouping:
    """Rows grouped by an id column: which rows carry each id, in the given row order.

    Args:
        ids: shape (n,), int; -1: in no group.
        order: shape (n,), int64 permutation (or selection) of rows, giving the order within a group.
        columns: makes room for the rows.
    """

    def __init__(self, ids: npt.NDArray[np.signedinteger], order: Ids, columns: Columns = in_memory) -> None:
        # As many passes as pieces, instead of one sort of everything: what it takes beside the rows is a number an id.
        tallies = [_runs(np.sort(ids[order[part]])) for part in pieces(len(order))]
        names = np.concatenate([names for names, _, _ in tallies])
        names.sort()
        # searchsorted converts keys of another type than its question's, all of them, at every question.
        self._ids: Ids = _runs(names)[0].astype(np.int64)
        sizes = np.zeros(len(self._ids), np.int64)
        for names, _, counts in tallies:
            sizes[np.searchsorted(self._ids, names)] += counts
        self._bounds: Ids = np.append(0, np.cumsum(sizes))
        self._rows: Ids = columns(len(order), np.int64)
        free = self._bounds[:-1].copy()
        for part in pieces(len(order)):
            picked = order[part]
            # Id and place in one number: several times faster to sort than an argsort is.
            packed = ids[picked].astype(np.int64) << _PLACE_BITS | np.arange(len(picked))
            packed.sort()
            names, begins, counts = _runs(packed >> _PLACE_BITS)
            at = np.searchsorted(self._ids, names)
            within = np.arange(len(picked)) + np.repeat(free[at] - begins, counts)
            self._rows[within] = picked[packed & ((1 << _PLACE_BITS) - 1)]
            free[at] += counts

    @property
    def ids(self) -> Ids:
        """The ids there are, ascending."""
        return self._ids

    def of(self, wanted: int) -> Ids:
        """Rows of one id, in order; empty where there are none."""
        at = int(np.searchsorted(self._ids, wanted))
        if at == len(self._ids) or self._ids[at] != wanted:
            return self._rows[:0]
        return self._rows[self._bounds[at] : self._bounds[at + 1]]

    def of_each(self, wanted: Ids) -> tuple[Ids, Ids]:
        """Of several ids, shape (k,): the place in `wanted` that each row belongs to, ascending, and the rows."""
        begins, counts = self._spans_of(wanted)
        place = np.repeat(np.arange(len(wanted)), counts)
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows: Ids = self._rows[begins[place] + within]
        return place, rows

    def counts(self, wanted: Ids) -> Ids:
        """How many rows each of several ids has: shape (k,)."""
        return self._spans_of(wanted)[1]

    def _spans_of(self, wanted: Ids) -> tuple[Ids, Ids]:
        """Where the rows of each id begin, and how many there are, both shape (k,)."""
        if not len(self._ids):
            return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.int64)
        at = np.minimum(np.searchsorted(self._ids, wanted), len(self._ids) - 1)
        begins = self._bounds[at]
        return begins, np.where(self._ids[at] == wanted, self._bounds[at + 1] - begins, 0)

    def spans(self, count: int) -> tuple[Ids, Ids]:
        """Rows of the ids 0 to count - 1, id after id; and shape (count + 1,): where each id's begin in them."""
        bounds = self._bounds[np.searchsorted(self._ids, np.arange(count + 1))]
        return self._rows[bounds[0] : bounds[-1]], bounds - bounds[0]


@dataclass(kw_only=True)
class Session:
    """Everything joined. Ids index the lists here; -1 means none.

    Attributes:
        events: the event table; an event id is its row.
        order: shape (k,), event ids in replay order: calls that release a descriptor (close,
            exit) or hand one over (sendmsg with SCM_RIGHTS) at their entry, all others at their return.
            Kernel events are not among them, and so in none of the groups that `events_of…` give.
        effective_ns: shape (n,), the time each event takes effect (the sort key of `order`).
        event_connection, event_open_file, event_descriptor, event_table: shape (n,) int32, -1: none.
            event_open_file is the file named by args[0], and for accept the *listener*
            (the accepted connection's `opened_event` points back). Likewise event_connection of
            epoll_ctl is the connection it registers, of splice the socket on either side.
        event_reason: shape (n,) uint8, `Unassigned`: why event_connection is -1.
        packet_flow: shape (packets,), int32. packet_ns: shape (packets,), CLOCK_MONOTONIC ns.
        socket_connection: shape (socket rows,), int32.
        kernel: shape (kernel events,), KERNEL_EVENT_DTYPE, in time: what the kernel told, where the engine hears it.
        kernel_connection: shape (kernel events,), int32.
        exchanges: shape (exchanges,), EXCHANGE_DTYPE, connection after connection, each in order of time.
        facts: what /proc said of processes, namespaces and shared memory through the session.
        packet_marks: shape (packets,), uint16, `SegmentMark`.
        flow_facts: shape (flows,), FLOW_FACT_DTYPE.
        captures: the files that the packets were read from.
        columns: makes room for columns as long as the event table.
    """

    info: SessionInfo
    seed: Seed
    events: Events
    packets: Packets
    sockets: Sockets
    order: Ids
    effective_ns: npt.NDArray[np.int64]
    event_connection: npt.NDArray[np.int32]
    event_open_file: npt.NDArray[np.int32]
    event_descriptor: npt.NDArray[np.int32]
    event_table: npt.NDArray[np.int32]
    event_reason: npt.NDArray[np.uint8]
    packet_flow: npt.NDArray[np.int32]
    packet_ns: npt.NDArray[np.int64]
    socket_connection: npt.NDArray[np.int32]
    processes: dict[int, Process] = field(default_factory=dict)
    tables: list[FilesTable] = field(default_factory=list)
    descriptors: list[Descriptor] = field(default_factory=list)
    open_files: list[OpenFile] = field(default_factory=list)
    interests: list[EpollInterest] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    flows: Flows = field(default_factory=Flows)
    kernel: npt.NDArray[np.void] = field(default_factory=lambda: np.zeros(0, KERNEL_EVENT_DTYPE))
    kernel_connection: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    exchanges: npt.NDArray[np.void] = field(default_factory=lambda: np.zeros(0, EXCHANGE_DTYPE))
    facts: Facts = field(default_factory=Facts)
    packet_marks: npt.NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    flow_facts: npt.NDArray[np.void] = field(default_factory=lambda: np.zeros(0, FLOW_FACT_DTYPE))
    captures: tuple[Path, ...] = ()
    columns: Columns = in_memory

    @cached_property
    def event_call(self) -> npt.NDArray[np.uint16]:
        """Shape (n,): `events.records["call"]`, copied out of them once.

        Who asks the whole table for a few kinds of call reads 2 bytes a row here, and all of the records there.
        """
        calls: npt.NDArray[np.uint16] = self.columns(len(self.events), np.uint16)
        for part in pieces(len(calls)):
            calls[part] = self.events.records["call"][part]
        return calls

    @cached_property
    def snapshots_ns(self) -> Ids:
        """When the kernel's sockets were looked at: shape (snapshots,), ascending."""
        return np.unique(self.sockets.records["time_ns"])

    @cached_property
    def _events_by_connection(self) -> Grouping:
        return Grouping(self.event_connection, self.order, self.columns)

    @cached_property
    def _events_by_open_file(self) -> Grouping:
        return Grouping(self.event_open_file, self.order, self.columns)

    @cached_property
    def _events_by_descriptor(self) -> Grouping:
        return Grouping(self.event_descriptor, self.order, self.columns)

    @cached_property
    def _events_by_tgid(self) -> Grouping:
        return Grouping(self.events.records["tgid"], self.order, self.columns)

    @cached_property
    def _events_by_tid(self) -> Grouping:
        return Grouping(self.events.records["tid"], self.order, self.columns)

    @cached_property
    def _packets_by_flow(self) -> Grouping:
        return Grouping(self.packet_flow, np.argsort(self.packet_ns, kind="stable"))

    @cached_property
    def _sockets_by_connection(self) -> Grouping:
        return Grouping(self.socket_connection, np.arange(len(self.sockets), dtype=np.int64))

    @cached_property
    def _kernel_by_connection(self) -> Grouping:
        return Grouping(self.kernel_connection, np.arange(len(self.kernel), dtype=np.int64))

    def kernel_of(self, connection: int) -> Ids:
        """Rows of `kernel` about the connection's socket, in time."""
        return self._kernel_by_connection.of(connection)

    def kernel_of_each(self, connections: Ids) -> tuple[Ids, Ids]:
        """`kernel_of` several, as in `events_of_each`."""
        return self._kernel_by_connection.of_each(connections)

    def events_of(self, connection: int) -> Ids:
        """Event ids on one connection (any process), in replay order, its accept/connect included."""
        return self._events_by_connection.of(connection)

    def events_of_each(self, connections: Ids) -> tuple[Ids, Ids]:
        """`events_of` several: the place in `connections` of each, and the event ids, both shape (n,)."""
        return self._events_by_connection.of_each(connections)

    def events_of_all(self) -> tuple[Ids, Ids]:
        """`events_of` every connection, one after another, and shape (connections + 1,): where each begins."""
        return self._events_by_connection.spans(len(self.connections))

    def packets_of_flows(self) -> tuple[Ids, Ids]:
        """Packet rows of every flow, one after another, in time; and shape (flows + 1,): where each begins."""
        return self._packets_by_flow.spans(len(self.flows))

    def events_of_open_file(self, open_file: int) -> Ids:
        return self._events_by_open_file.of(open_file)

    def events_of_descriptor(self, descriptor: int) -> Ids:
        return self._events_by_descriptor.of(descriptor)

    def events_of_tgid(self, tgid: int) -> Ids:
        return self._events_by_tgid.of(tgid)

    def events_of_tid(self, tid: int) -> Ids:
        return self._events_by_tid.of(tid)

    def packets_of(self, connection: int) -> Ids:
        """Packet rows of the connection's flow, in time; empty where it has none."""
        flow = self.connections[connection].flow
        return self._packets_by_flow.of(flow) if flow >= 0 else np.zeros(0, np.int64)

    def packets_of_each(self, connections: Ids) -> tuple[Ids, Ids]:
        """`packets_of` several, as in `events_of_each`."""
        flows = self._flows_of(connections)
        known = np.flatnonzero(flows >= 0)
        place, rows = self._packets_by_flow.of_each(flows[known])
        return known[place], rows

    def row_counts(self, connections: Ids) -> Ids:
        """How many events and packets each of several connections has, together: shape (k,)."""
        flows = self._flows_of(connections)
        packets = np.where(flows >= 0, self._packets_by_flow.counts(flows), 0)
        return self._events_by_connection.counts(connections) + packets

    def _flows_of(self, connections: Ids) -> Ids:
        return np.fromiter((self.connections[one].flow for one in connections.tolist()), np.int64, len(connections))

    def samples_of(self, connection: int) -> Ids:
        """Socket rows of the connection, one a snapshot, in time."""
        return self._sockets_by_connection.of(connection)

    def samples_of_each(self, connections: Ids) -> tuple[Ids, Ids]:
        """`samples_of` several, as in `events_of_each`."""
        return self._sockets_by_connection.of_each(connections)

    def holders_of(self, open_file: int) -> list[Descriptor]:
        """Descriptors that still name the open file at the end of the session."""
        if open_file < 0:
            return []
        named = (self.descriptors[d] for d in self.open_files[open_file].descriptors)
        return [d for d in named if d.closed_ns is None]

    def tgid_of_table(self, table: int) -> int:
        """The process a files table belongs to (the last that joined it)."""
        return self.tables[table].tgids[-1]

    def comm(self, tgid: int) -> str:
        """Of the target's processes, and of others as far as somebody looked at them; `?` where nobody did."""
        process = self.processes.get(tgid)
        return process.comm if process else self._comms.get(tgid, "?")

    @cached_property
    def _comms(self) -> dict[int, str]:
        rows = self.facts.processes
        _, firsts = np.unique(rows["tgid"], return_index=True)
        pairs = zip(rows["tgid"][firsts].tolist(), rows["comm"][firsts].tolist(), strict=True)
        return {tgid: comm.decode("utf-8", "backslashreplace") for tgid, comm in pairs}
