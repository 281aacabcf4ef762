"""Which flow on the wire is which connection: by addresses and time."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sockscope.analysis.joining.socket_rows import EndKey, end_key
from sockscope.analysis.wire.columns import NEVER, Ints
from sockscope.analysis.wire.flow_table import Flows
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
        claimed: (flow, local side) that a connection with more than packets has.
    """

    def __init__(self, flows: Flows, apart_ns: int | None = 0) -> None:
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

    def server_sides(self) -> Ints:
        """Of each flow which side took the connection: of one that began before the capture, the likelier."""
        columns = self.flows.columns
        shaken = (columns.syn_ns != NEVER) | (columns.synack_ns != NEVER)
        sides = np.ones(len(shaken), np.int64)
        rest = np.flatnonzero(~shaken)
        if not len(rest):
            return sides
        distinct, end, counts = np.unique(columns.number, return_inverse=True, return_counts=True)
        end = end.reshape(-1, 2)
        # Ends that took a connection whose handshake was seen; and a server has many, a client one.
        answered = np.zeros(len(distinct), np.bool_)
        answered[end[shaken, 1]] = True
        sides[rest] = columns.port[rest, 1] <= columns.port[rest, 0]
        for rank in (counts, answered.astype(np.int64)):
            one, other = rank[end[rest]].T
            sides[rest] = np.where(one != other, other > one, sides[rest])
        return sides

    def unclaimed(self, sides: Ints) -> npt.NDArray[np.bool_]:
        """Which of all flows nobody has on these sides of theirs: shape (flows,), as `sides`."""
        free = np.ones((len(self.flows), 2), np.bool_)
        if self.claimed:
            taken = np.array(list(self.claimed), np.int64)
            free[taken[:, 0], taken[:, 1]] = False
        found: npt.NDArray[np.bool_] = free[np.arange(len(self.flows)), sides]
        return found

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

    def alone(self, flows: Ints, sides: Ints, first_id: int) -> list[Connection]:
        """Connections of which only the wire knows: shape (k,) each, their flows and which sides are local."""
        columns = self.flows.columns
        return [
            Connection(
                id=number,
                protocol=Protocol.TCP,
                role=Role.SERVER,
                local=local,
                peer=peer,
                first_ns=first_ns,
                last_ns=last_ns,
                flow=flow,
                local_side=side,
            )
            for number, (local, peer, first_ns, last_ns, flow, side) in enumerate(
                zip(
                    self.flows.ends_of(flows, sides),
                    self.flows.ends_of(flows, 1 - sides),
                    columns.first_ns[flows].tolist(),
                    columns.last_ns[flows].tolist(),
                    flows.tolist(),
                    sides.tolist(),
                    strict=True,
                ),
                first_id,
            )
        ]


def _fits(wanted: Address | None, local: Address) -> bool:
    """Whether the flow's end may be this local address: unknown, wildcard, or the same."""
    return wanted is None or not any(wanted.packed) or wanted == local
