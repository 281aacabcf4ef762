"""What a capture tells of the same connections, seen from either end: side flow * 2 + which end is the log's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.alignment.talks import Key
from sockscope.analysis.wire.columns import NEVER
from sockscope.analysis.wire.flow_table import Flows
from sockscope.analysis.wire.streams import Carried
from sockscope.model.packets import Packets

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Ends of flows: shape (flows * 2,) each, NEVER where a time was not seen.

    Attributes:
        flows: the flows.
        opened_ns: the latest packet of its handshake.
        syn_ns, synack_ns: what they say.
        our_fin_ns, their_fin_ns: each half's first FIN.
        received_bytes, sent_bytes: payload.
        carried: which bytes passed when.
    """

    flows: Flows
    opened_ns: Ints
    syn_ns: Ints
    synack_ns: Ints
    our_fin_ns: Ints
    their_fin_ns: Ints
    received_bytes: Ints
    sent_bytes: Ints
    carried: Carried

    def __len__(self) -> int:
        return 2 * len(self.flows)

    @classmethod
    def of(cls, packets: Packets, packet_ns: Ints, flows: Flows, packet_flow: npt.NDArray[np.int32]) -> Sides:
        """Of a capture and its flows."""
        columns = flows.columns
        syn, synack, established = columns.syn_ns, columns.synack_ns, columns.established_ns
        opened = np.where(established != NEVER, established, np.where(synack != NEVER, synack, syn))
        fins, sent = columns.fin_ns.reshape(-1), columns.payload_bytes.reshape(-1)
        return cls(
            flows=flows,
            opened_ns=np.repeat(opened, 2),
            syn_ns=np.repeat(syn, 2),
            synack_ns=np.repeat(synack, 2),
            our_fin_ns=fins,
            their_fin_ns=_swapped(fins),
            received_bytes=_swapped(sent),
            sent_bytes=sent,
            carried=Carried.of(packets, packet_ns, packet_flow, flows),
        )

    def keys(self, shape: tuple[bool, bool, bool]) -> list[Key]:
        """The sides' keys, with the parts left out that the shape lacks."""
        host, peer_port, port = shape
        found: list[Key] = []
        for one in self.flows:
            first, second = one.ends
            for local, peer in ((first, second), (second, first)):
                found.append((peer.packed if host else b"", peer.port if peer_port else 0, local.port if port else 0))
        return found


def _swapped(values: Ints) -> Ints:
    swapped: Ints = values.reshape(-1, 2)[:, ::-1].reshape(-1)
    return swapped
