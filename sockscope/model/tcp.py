"""TCP states and header flags under the kernel's numbers (include/net/tcp_states.h, RFC 9293)."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class TcpState(IntEnum):
    UNKNOWN = 0
    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12


class TcpFlag(IntFlag):
    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20
    ECE = 0x40
    CWR = 0x80


class SegmentMark(IntFlag):
    """What a segment is, seen in the order of the capture; RFC 9293 and the TCP analysis of Wireshark (its names).

    At most one of the retransmission kinds; RETRANSMISSION is set with each of them. docs/wire.md says what each
    mean, and where they differ from Wireshark. Resets have none.
    """

    RETRANSMISSION = 0x0001  # brings bytes (or a SYN, a FIN) that were sent before, perhaps with new ones behind
    FAST_RETRANSMISSION = 0x0002  # at once after duplicate ACKs (RFC 5681 section 3.2)
    SPURIOUS_RETRANSMISSION = 0x0004  # of bytes that were acknowledged before it was sent
    RTO = 0x0008  # after a timeout (RFC 6298): neither of the two, its sender silent for 150 ms and a round trip
    OUT_OF_ORDER = 0x0010  # late, but the first time
    LOST_BEFORE = 0x0020  # bytes before it were never seen: lost, or not captured
    ACKED_UNSEEN = 0x0040  # acknowledges bytes that were never seen: not captured
    DUPLICATE_ACK = 0x0080
    ZERO_WINDOW = 0x0100
    ZERO_WINDOW_PROBE = 0x0200
    ZERO_WINDOW_PROBE_ACK = 0x0400
    WINDOW_FULL = 0x0800  # fills what the other side said it has room for
    WINDOW_UPDATE = 0x1000
    KEEP_ALIVE = 0x2000
    KEEP_ALIVE_ACK = 0x4000
    PORT_REUSED = 0x8000  # a SYN or SYN-ACK on addresses of an earlier connection
