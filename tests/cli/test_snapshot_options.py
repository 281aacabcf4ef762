from __future__ import annotations

import pytest

from sockscope.cli.snapshot import parse_state, snapshot
from sockscope.errors import UsageError
from sockscope.model.tcp import TcpState


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("close-wait", TcpState.CLOSE_WAIT),
        ("CLOSE_WAIT", TcpState.CLOSE_WAIT),
        ("fin-wait-1", TcpState.FIN_WAIT1),
        ("FIN_WAIT2", TcpState.FIN_WAIT2),
        ("estab", TcpState.ESTABLISHED),
        ("listening", TcpState.LISTEN),
        ("syn-recv", TcpState.SYN_RECV),
        ("closed", TcpState.CLOSE),
        ("TIME-WAIT", TcpState.TIME_WAIT),
    ],
)
def test_both_spellings(text: str, state: TcpState) -> None:
    assert parse_state(text) is state


def test_a_misspelt_state_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        parse_state("close-wiat")
    assert "CLOSE_WAIT" in (caught.value.help_text or "")


def test_ports_and_stray_seconds_are_refused() -> None:
    for port in (0, 65536):
        with pytest.raises(UsageError, match="out of range"):
            snapshot(port=[port])
    with pytest.raises(UsageError, match="what is 5"):
        snapshot(seconds=5)
