"""What room each side said it has: window scales, and segments that fill it to the brim (RFC 7323 section 2)."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from sockscope.analysis.wire.columns import Ints, Mask
from sockscope.analysis.wire.neighbours import Places
from sockscope.analysis.wire.segments import Segments
from sockscope.model.tcp import TcpFlag

Scales = npt.NDArray[np.int8]

UNKNOWN = np.int8(-1)
_LARGEST = 14
_BARE = TcpFlag.SYN | TcpFlag.FIN | TcpFlag.RST


class Columns(Protocol):
    """Columns of segments, all of one length."""

    @property
    def flags(self) -> npt.NDArray[np.uint8]: ...
    @property
    def seq(self) -> npt.NDArray[np.uint32]: ...
    @property
    def ack(self) -> npt.NDArray[np.uint32]: ...
    @property
    def window(self) -> npt.NDArray[np.uint16]: ...
    @property
    def length(self) -> Ints: ...
    @property
    def gid(self) -> Ints: ...


def window_scales(table: Segments) -> Scales:
    """Of each side (flow * 2 + side) by how many bits its windows count; UNKNOWN where its SYN was not seen."""
    offered = np.full(table.flow_count * 2, -2, np.int8)
    opens = np.flatnonzero(table.has(TcpFlag.SYN))[::-1]
    # What a capture cut off, or a broken stack sends: no more than 14 (RFC 7323 section 2.3).
    offered[table.gid[opens]] = np.clip(table.wscale[opens], -1, _LARGEST)
    # Only what both offer is used.
    refused = offered.reshape(-1, 2)[:, ::-1].ravel() == -1
    scales: Scales = np.where(offered == -2, UNKNOWN, np.where(refused | (offered == -1), np.int8(0), offered))
    return scales


def fills_window(columns: Columns, other: Places | Ints, scales: Scales) -> Mask:
    """Which segments with data reach to the very edge of the window that the other side last told; shape (n,)."""
    found = np.zeros(len(columns.seq), np.bool_)
    rows = np.flatnonzero((columns.length > 0) & (columns.flags & np.uint8(_BARE) == 0) & (other >= 0))
    shift = scales[columns.gid[rows] ^ 1]
    known = shift != UNKNOWN
    rows, shift = rows[known], shift[known].astype(np.uint32)
    said = other[rows]
    # The windows of the handshake itself are never scaled.
    shift[columns.flags[said] & np.uint8(TcpFlag.SYN) != 0] = 0
    edge = columns.ack[said] + (columns.window[said].astype(np.uint32) << shift)
    found[rows] = columns.seq[rows] + columns.length[rows].astype(np.uint32) == edge
    return found
