"""Credentials masked in captured packets before they are written."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.model.redact import redact_regions

ETHERNET_BYTES = 14
IPV4, IPV6 = 4, 6
TCP = 6
IPV6_BYTES = 40


def payload_starts(data: npt.NDArray[np.uint8], network: int) -> npt.NDArray[np.int64]:
    """Where the TCP payload of each frame begins; the network header for anything else.

    Args:
        data: shape (n, width), frames.
        network: offset of the IP header.
    """
    first = data[:, network]
    v4, v6 = first >> 4 == IPV4, first >> 4 == IPV6
    header = np.where(v4, (first & 15).astype(np.int64) * 4, np.where(v6, IPV6_BYTES, 0))
    protocol = np.where(v4, data[:, network + 9], np.where(v6, data[:, network + 6], 0))
    offset = np.minimum(network + header + 12, data.shape[1] - 1)
    segment = (data[np.arange(len(data)), offset] >> 4).astype(np.int64) * 4
    return np.where(protocol == TCP, network + header + segment, network)


def mask_frames(data: npt.NDArray[np.uint8], captured: npt.NDArray[np.integer], network: int) -> None:
    """Mask in place what looks like credentials.

    Args:
        data: shape (n, width), C-contiguous.
        captured: shape (n,), bytes of each frame that count.
        network: offset of the IP header.
    """
    starts = payload_starts(data, network)
    ends = captured.astype(np.int64)
    rows = np.flatnonzero(starts < ends)
    if not len(rows):
        return
    # Most packets carry no payload: only the others are searched.
    held = data[rows]
    base = np.arange(len(rows)) * data.shape[1]
    redact_regions(held.reshape(-1), base + starts[rows], base + ends[rows])
    data[rows] = held
