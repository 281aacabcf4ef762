"""What each TCP connection on the wire went through, counted: one row a flow, a column a side."""

from __future__ import annotations

import numpy as np

FLOW_FACT_DTYPE = np.dtype(
    [
        # Segments sent by side 0 and side 1, by SegmentMark.
        ("retransmissions", "<u4", (2,)),  # all kinds
        ("fast_retransmissions", "<u4", (2,)),
        ("spurious_retransmissions", "<u4", (2,)),
        ("rtos", "<u4", (2,)),
        ("out_of_order", "<u4", (2,)),
        ("lost_before", "<u4", (2,)),
        ("acked_unseen", "<u4", (2,)),
        ("duplicate_acks", "<u4", (2,)),
        ("zero_windows", "<u4", (2,)),
        ("zero_window_probes", "<u4", (2,)),
        ("window_fulls", "<u4", (2,)),
        ("keep_alives", "<u4", (2,)),
        (
            "delayed_ack_stalls",
            "<u4",
            (2,),
        ),  # the side held its ACK >= 40 ms (RFC 9293 3.8.6.3), the other's data waited
        ("longest_stall_ns", "<i8", (2,)),  # the longest of them; 0: none
        ("handshake_rtt_ns", "<i8"),  # SYN to the ACK that ends the handshake; -1: not seen
        # Data of a side to its ACK, without retransmitted ones (Karn, RFC 6298 section 3); -1: none.
        ("rtt_min_ns", "<i8", (2,)),
        ("rtt_median_ns", "<i8", (2,)),
        ("rtt_max_ns", "<i8", (2,)),
        ("seen_sides", "u1"),  # bit 0, bit 1: packets of the side are in the capture; 1 or 2: a one-sided capture
        ("began_before", "u1"),  # the capture begins in the middle of it
        ("port_reused", "u1"),  # its addresses had another connection before
        ("simultaneous_open", "u1"),
        ("simultaneous_close", "u1"),  # both FINs were sent before either came in (RFC 9293 section 3.6, case 3)
        ("reset_side", "i1"),  # who sent the first RST; -1: nobody
        ("half_close_ns", "<i8"),  # data went on so long after one side's FIN; -1: it did not
    ]
)
