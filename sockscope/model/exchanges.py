"""Exchanges: what a server reads and then writes on one connection, a request and its answer, one row each."""

from __future__ import annotations

import numpy as np

EXCHANGE_DTYPE = np.dtype(
    [
        ("connection", "<i4"),
        ("number", "<i4"),  # 0-based in its connection
        ("tgid", "<i4"),  # who wrote the answer; who read the request where there is none
        ("tid", "<i4"),
        ("answered", "u1"),  # something was written after the request was read
        # What came before, of a connection's first exchange only; -1 otherwise and where not seen.
        ("syn_ns", "<i8"),
        ("established_ns", "<i8"),  # the handshake's last ACK
        ("accept_ns", "<i8"),  # accept returned
        # All CLOCK_MONOTONIC; -1: not seen.
        ("arrived_ns", "<i8"),  # the request's first byte, on the wire
        ("arrived_whole_ns", "<i8"),  # its last byte, on the wire
        ("first_read_ns", "<i8"),  # the first read that took of it returned
        ("last_read_ns", "<i8"),
        ("first_write_ns", "<i8"),  # the first write of the answer was entered
        ("last_write_ns", "<i8"),  # the last one returned
        ("sent_ns", "<i8"),  # the answer's last byte, on the wire
        ("acked_ns", "<i8"),  # and the peer's ACK of it
        ("fin_ns", "<i8"),  # FIN of the target's side, on a connection's last exchange only
        ("read_bytes", "<u8"),
        ("written_bytes", "<u8"),
        ("read_count", "<u4"),
        ("write_count", "<u4"),
        ("first_read_event", "<i8"),  # event ids; -1: none
        ("last_read_event", "<i8"),
        ("first_write_event", "<i8"),
        ("last_write_event", "<i8"),
    ]
)
"""A run of reads and the run of writes that follows it. TCP and unix stream connections of role server.

Pipelined requests that are read together are one exchange. An idle read of a stream's end is none. What a server writes
before it read anything (a greeting, or the answer to what was read before the attach) is a first exchange with
read_count 0. Times on the wire are those of the exchange's own bytes, found by their place in the stream; they are -1
where events were lost, and where a connection was there before the watching and its bytes do not add up.
"""
