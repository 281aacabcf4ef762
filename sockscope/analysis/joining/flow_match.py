"""Which flow on the wire is which connection: by addresses and time."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property

from sockscope.analysis.joining.socket_rows import EndKey, end_key
from sockscope.model.connections import Connection, Flow, Protocol, Role
from sockscope.model.ids import NO_ID
from sockscope.model.sockaddr import Address

CLOCK_SLACK_NS = 2_000_000
"""How much later than the accept or connect a flow may seem to begin."""

Candidate = tuple[int, int, int]
"""(first_ns, flow, local side)"""


class FlowMatcher:
    """Gives each flow to at most one connection on each of its sides.

    Args:
        flows: all flows.
        apart_ns: how far packets and calls may be apart; None: nothing tells, and those with calls get none.

    Attributes:
        claimed: (flow, local side) that a connection has.
    """

    def __init__(self, flows: Sequence[Flow], apart_ns: int | None = 0) -> None:
        self.flows = flows
        self._joins = apart_ns is not None
        self._slack_ns = max(CLOCK_SLACK_NS, apart_ns or 0)
        self.claimed: set[tuple[int, int]] = set()

    # Where only the wire is known, nobody asks; of 200 000 flows each costs half a second.

    @cached_property
    def _in_time(self) -> list[Flow]:
        return sorted(self.flows, key=lambda flow: flow.first_ns)

    @cached_property
    def _by_ends(self) -> dict[EndKey, list[Candidate]]:
        found: defaultdict[EndKey, list[Candidate]] = defaultdict(list)
        for flow in self._in_time:
            one, other = flow.ends
            found[end_key(other, one.port)].append((flow.first_ns, flow.id, 0))
            found[end_key(one, other.port)].append((flow.first_ns, flow.id, 1))
        return dict(found)

    @cached_property
    def _by_server(self) -> dict[tuple[bytes, int], list[Candidate]]:
        found: defaultdict[tuple[bytes, int], list[Candidate]] = defaultdict(list)
        for flow in self._in_time:
            server = flow.ends[1]
            found[(server.packed, server.port)].append((flow.first_ns, flow.id, 0))
        return dict(found)

    @cached_property
    def _by_port(self) -> dict[int, list[Candidate]]:
        found: defaultdict[int, list[Candidate]] = defaultdict(list)
        for flow in self._in_time:
            found[flow.ends[1].port].append((flow.first_ns, flow.id, 1))
        return dict(found)

    @cached_property
    def _answered(self) -> set[Address]:
        """Ends that took a connection whose handshake was seen."""
        return {flow.ends[1] for flow in self.flows if _has_handshake(flow)}

    @cached_property
    def _ends_seen(self) -> Counter[Address]:
        """How many flows each end has: a server's many, a client's one."""
        return Counter(end for flow in self.flows for end in flow.ends)

    def server_side(self, flow: Flow) -> int:
        """Which side took the connection: of one that began before the capture, the likelier."""
        if _has_handshake(flow):
            return 1
        one, other = flow.ends
        for rank in (self._answered.__contains__, self._ends_seen.__getitem__):
            if rank(one) != rank(other):
                return 1 if rank(other) > rank(one) else 0
        return 1 if other.port <= one.port else 0

    def of_ends(self, made: Connection, ports: Iterable[int], began_ns: int) -> bool:
        """The youngest flow between its ends that had begun by then; ports: those its local one may be."""
        if made.peer is None:
            return False
        for port in ports:
            found = self._by_ends.get(end_key(made.peer, port))
            if not found:
                continue
            last = bisect_right(found, (began_ns + self._slack_ns, len(self.flows), 2))
            for at in (*range(last - 1, -1, -1), *range(last, len(found))):
                if self._take(made, found[at]):
                    return True
        return False

    def of_connect(self, made: Connection, entered_ns: int, returned_ns: int) -> bool:
        """The flow whose SYN a connect sent, where the local port is not known: SYN goes out during the call."""
        if made.peer is None:
            return False
        found = self._by_server.get((made.peer.packed, made.peer.port), [])
        for at in range(bisect_left(found, (entered_ns - self._slack_ns, NO_ID, 0)), len(found)):
            if found[at][0] > returned_ns + self._slack_ns:
                break
            if self._take(made, found[at]):
                return True
        return False

    def of_accepts(self, accepted: Iterable[tuple[Connection, int]], port: int) -> None:
        """Flows of connections whose accept did not ask for the peer: the queue is first in, first out.

        Args:
            accepted: (connection, when accept returned) of one listener, in order.
        """
        waiting = [c for c in self._by_port.get(port, ()) if (c[1], c[2]) not in self.claimed]
        queue = iter(
            sorted(
                (established, *candidate)
                for candidate in waiting
                if (established := self.flows[candidate[1]].established_ns) is not None
            )
        )
        for made, returned_ns in accepted:
            following = next(queue, None)
            if following is None or following[0] > returned_ns + self._slack_ns:
                return  # out of step: nothing that follows can be trusted
            self._take(made, following[1:])

    def _take(self, made: Connection, candidate: Candidate) -> bool:
        _, number, side = candidate
        flow = self.flows[number]
        local = flow.ends[side]
        if (not self._joins and made.open_file >= 0) or (number, side) in self.claimed or not _fits(made.local, local):
            return False
        self.claimed.add((number, side))
        made.flow = number
        made.local_side = side
        made.local = local
        made.peer = flow.ends[1 - side]
        made.first_ns = min(made.first_ns, flow.first_ns)
        made.last_ns = max(made.last_ns, flow.last_ns)
        return True

    def alone(self, flow: Flow, side: int, number: int) -> Connection:
        """A connection of which only the wire knows."""
        self.claimed.add((flow.id, side))
        return Connection(
            id=number,
            protocol=Protocol.TCP,
            role=Role.SERVER,
            local=flow.ends[side],
            peer=flow.ends[1 - side],
            first_ns=flow.first_ns,
            last_ns=flow.last_ns,
            flow=flow.id,
            local_side=side,
        )


def _has_handshake(flow: Flow) -> bool:
    return flow.syn_ns is not None or flow.synack_ns is not None


def _fits(wanted: Address | None, local: Address) -> bool:
    """Whether the flow's end may be this local address: unknown, wildcard, or the same."""
    return wanted is None or not any(wanted.packed) or wanted == local
