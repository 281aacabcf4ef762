"""Flows as a sequence over columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockscope.analysis.wire.columns import NEVER
from sockscope.analysis.wire.ends import flow_end, flow_ends
from sockscope.analysis.wire.flow_table import FlowColumns, Flows

Drawn: TypeAlias = tuple[tuple[int | None, ...], tuple[int | None, ...], tuple[int | None, ...], int]


def _or_never(times: Sequence[int | None]) -> npt.NDArray[np.int64]:
    return np.array([NEVER if at is None else at for at in times], np.int64)


def _columns(count: int) -> FlowColumns:
    at = np.arange(count, dtype=np.int64)
    pairs = np.stack([at, at + 1], axis=1)
    never = np.full(count, NEVER)
    key = np.zeros((count, 2, 16), np.uint8)
    key[:, :, 10:12] = 255
    key[:, :, 15] = [1, 2]
    port = np.stack([at + 40_000, np.full(count, 80)], axis=1).astype(np.uint16)
    return FlowColumns(
        number=(key[:, :, 15].astype(np.uint64) << np.uint64(16)) | port,
        key=key,
        port=port,
        first_ns=at,
        last_ns=at + 9,
        packet_count=pairs,
        payload_bytes=pairs * 10,
        syn_ns=np.where(at % 2 == 0, at, NEVER),
        synack_ns=never,
        established_ns=never,
        fin_ns=np.stack([at + 5, never], axis=1),
        fin_acked_ns=np.stack([never, never], axis=1),
        rst_ns=np.stack([never, never], axis=1),
        last_payload_ns=pairs,
        retransmission_count=pairs * 0,
        zero_window_count=pairs * 0,
    )


@pytest.mark.parametrize("count", [1, 64, 65, 130])
def test_each_is_made_of_its_row(count: int) -> None:
    flows = Flows(_columns(count))
    assert [one.id for one in flows] == list(range(count))
    for at in {0, count // 2, count - 1}:
        one = flows[at]
        assert (one.first_ns, one.last_ns, one.packet_count, one.payload_bytes) == (
            at,
            at + 9,
            (at, at + 1),
            (at * 10, at * 10 + 10),
        )
        assert one.syn_ns == (at if at % 2 == 0 else None)
        assert one.fin_ns == (at + 5, None)
        assert str(one.ends[0]) == f"0.0.0.1:{40_000 + at}"
    assert flows[-1].id == count - 1
    assert len(flows[:3]) == min(count, 3)


def test_who_asks_again_gets_the_same() -> None:
    flows = Flows(_columns(70))
    assert flows[66] is flows[66]
    assert flows[0].ends[1] is flows[69].ends[1]


def test_there_may_be_none() -> None:
    assert not Flows()
    assert list(Flows()) == []
    with pytest.raises(IndexError):
        Flows()[0]


def test_the_ends_of_all_are_the_ends_of_each() -> None:
    times = st.sampled_from([1, 2, 3, None])
    pair = st.tuples(times, times)

    @given(st.lists(st.tuples(st.tuples(times, times, times), pair, pair, st.integers(0, 1)), min_size=1, max_size=20))
    def same(drawn: list[Drawn]) -> None:
        singles = _or_never([at for one in drawn for at in one[0]]).reshape(-1, 3)
        fins = _or_never([at for one in drawn for at in one[1]]).reshape(-1, 2)
        resets = _or_never([at for one in drawn for at in one[2]]).reshape(-1, 2)
        columns = replace(
            _columns(len(drawn)),
            syn_ns=singles[:, 0],
            synack_ns=singles[:, 1],
            established_ns=singles[:, 2],
            fin_ns=fins,
            rst_ns=resets,
            packet_count=np.array([(1, one[3]) for one in drawn], np.int64),
        )
        assert flow_ends(columns) == [flow_end(one) for one in Flows(columns)]

    same()
