"""Messages arrive as they were sent, and an end is an end."""

from __future__ import annotations

import socket

import pytest

from sockscope.sources.syscalls.ptrace import wire

MESSAGES: list[wire.Message] = [
    wire.Attach(tgids=[1, 2]),
    wire.Launch(path="/bin/sh", command=["sh", "-c", "echo 'ü'"]),
    wire.Go(),
    wire.Free(segment=-1),
    wire.Stop(),
    wire.Ready(process_count=1, tgid=5),
    wire.Refused(message="no", help_text=None),
    wire.Filled(
        segment=1, record_count=2, blob_bytes=3, complete_ns=1 << 62, dropped_count=0, foreign_count=0, unread_count=0
    ),
    wire.Ended(status=None),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_round_trip(message: wire.Message) -> None:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with a, b:
        assert wire.send(a, message)
        assert wire.receive(b) == message


def test_the_end_comes_after_the_last_message_though_ours_were_not_read() -> None:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with b:
        wire.send(b, wire.Stop())
        wire.send(a, wire.Ended(status=0))
        a.close()
        assert wire.receive(b) == wire.Ended(status=0)
        assert wire.receive(b) is None
        assert not wire.send(b, wire.Stop())
