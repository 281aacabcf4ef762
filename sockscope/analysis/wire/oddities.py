"""Which flows went smoothly: every segment follows the one before, and nobody says anything twice. Most do."""

from __future__ import annotations

import numpy as np

from sockscope.analysis.wire.columns import Mask
from sockscope.analysis.wire.neighbours import neighbours
from sockscope.analysis.wire.segments import Segments
from sockscope.analysis.wire.windows import Scales, fills_window
from sockscope.model.tcp import TcpFlag

_BARE = np.uint8(TcpFlag.SYN | TcpFlag.FIN | TcpFlag.RST)


def odd_flows(table: Segments, scales: Scales) -> Mask:
    """Shape (flows,): flows in which some segment may deserve a mark. All others deserve none."""
    counts = ~table.has(TcpFlag.RST)
    near = neighbours(table.begins, table.side, counts)
    syn, fin = table.has(TcpFlag.SYN), table.has(TcpFlag.FIN)
    after = table.seq + table.length.astype(np.uint32)
    after += syn.view(np.uint8)
    after += fin.view(np.uint8)
    # -1, where there is none before, reads the last row: masked out at once.
    follows = near.own >= 0
    odd = follows & (after[near.own] != table.seq)
    odd |= follows & (table.ack[near.own] == table.ack) & (table.length == 0) & (table.flags & _BARE == 0)
    odd |= (table.window == 0) & ~syn
    answers = (near.other >= 0) & table.has(TcpFlag.ACK)
    odd |= answers & ((table.ack - after[near.other]).view(np.int32) > 0)
    odd |= fills_window(table, near.other, scales)
    odd &= counts
    found = np.zeros(table.flow_count, np.bool_)
    found[table.flow[odd]] = True
    return found
