"""Flows as columns; an object only of those that somebody asks for: of 200 000 most are never looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import overload

import numpy as np
import numpy.typing as npt

from sockscope.analysis.wire.columns import NEVER, Ints, Words
from sockscope.model.connections import Flow
from sockscope.model.sockaddr import Address

_NEVER = int(NEVER)
_FEW, _MANY = 4, 256
"""So many are made together: of who asks for one, and of who went on to the one behind those made before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowColumns:
    """What the fields of `Flow` of the same names say, as columns; NEVER: not seen.

    Attributes:
        number: shape (n, 2), uint64, the ends: equal exactly where address and port are.
        key: shape (n, 2, 16), uint8, their addresses as the packets' table has them; port: shape (n, 2), uint16.
        first_ns, last_ns, syn_ns, synack_ns, established_ns: shape (n,), int64.
        packet_count, payload_bytes, retransmission_count, zero_window_count: shape (n, 2).
        fin_ns, fin_acked_ns, rst_ns, last_payload_ns: shape (n, 2), int64.
    """

    number: Words
    key: npt.NDArray[np.uint8]
    port: npt.NDArray[np.uint16]
    first_ns: Ints
    last_ns: Ints
    packet_count: Ints
    payload_bytes: Ints
    syn_ns: Ints
    synack_ns: Ints
    established_ns: Ints
    fin_ns: Ints
    fin_acked_ns: Ints
    rst_ns: Ints
    last_payload_ns: Ints
    retransmission_count: Ints
    zero_window_count: Ints

    @classmethod
    def room(cls, count: int) -> FlowColumns:
        """For so many flows, to be filled in."""
        one = dict.fromkeys(("first_ns", "last_ns", "syn_ns", "synack_ns", "established_ns"), (count,))
        of_sides = {
            each.name: np.empty(one.get(each.name, (count, 2)), np.int64)
            for each in fields(cls)
            if each.name not in ("number", "key", "port")
        }
        return cls(
            number=np.empty((count, 2), np.uint64),
            key=np.empty((count, 2, 16), np.uint8),
            port=np.empty((count, 2), np.uint16),
            **of_sides,
        )

    def put(self, flows: npt.NDArray[np.signedinteger], columns: FlowColumns) -> None:
        """Fill in what is known of some: shape (k,), which."""
        for each in fields(self):
            getattr(self, each.name)[flows] = getattr(columns, each.name)


class Flows(Sequence[Flow]):
    """All flows of a capture, in order of their first packet.

    Attributes:
        columns: for who asks something of all of them.
    """

    __slots__ = ("_addresses", "_made", "_next", "columns")

    def __init__(self, columns: FlowColumns | None = None) -> None:
        self.columns = columns or FlowColumns.room(0)
        self._made: dict[int, Flow] = {}
        self._next = 0
        self._addresses: dict[int, Address] = {}

    def __len__(self) -> int:
        return len(self.columns.first_ns)

    @overload
    def __getitem__(self, at: int) -> Flow: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Flow]: ...
    def __getitem__(self, at: int | slice) -> Flow | Sequence[Flow]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(f"flow {at} of {len(self)}")
        at %= len(self)
        found = self._made.get(at)
        if found is None:
            stop = min(at + (_MANY if at == self._next else _FEW), len(self))
            self.prepare(np.arange(at, stop))
            self._next = stop
            found = self._made[at]
        return found

    def __iter__(self) -> Iterator[Flow]:
        return (self[number] for number in range(len(self)))

    def ends_of(self, flow: Ints, side: Ints) -> list[Address]:
        """The addresses of these ends: shape (k,) each. Equal ends share an object."""
        known, columns = self._addresses, self.columns
        numbers, at, of_each = np.unique(columns.number[flow, side], return_index=True, return_inverse=True)
        flow, side = flow[at], side[at]
        raw, ports = columns.key[flow, side].tobytes(), columns.port[flow, side].tolist()
        distinct = np.empty(len(numbers), np.object_)
        for place, (number, port) in enumerate(zip(numbers.tolist(), ports, strict=True)):
            address = known.get(number)
            if address is None:
                address = known[number] = Address.inet(raw[place * 16 : place * 16 + 16], port)
            distinct[place] = address
        found: list[Address] = distinct[of_each].tolist()
        return found

    def prepare(self, which: Ints) -> None:
        """Make those together that will be asked for one by one: shape (k,)."""
        missing = [number for number in which.tolist() if number not in self._made]
        self._made.update((one.id, one) for one in self._make(np.array(missing, np.int64)))

    def _make(self, which: Ints) -> list[Flow]:
        part = {one.name: getattr(self.columns, one.name)[which] for one in fields(FlowColumns)}
        ends = [self.ends_of(which, np.full(len(which), side)) for side in (0, 1)]
        return [
            Flow(
                id=number,
                ends=both,
                first_ns=first_ns,
                last_ns=last_ns,
                packet_count=packet_count,
                payload_bytes=payload_bytes,
                syn_ns=syn,
                synack_ns=synack,
                established_ns=established,
                fin_ns=fin,
                fin_acked_ns=fin_acked,
                rst_ns=rst,
                last_payload_ns=last_payload,
                retransmission_count=retransmitted,
                zero_window_count=zero_window,
            )
            for (
                number,
                both,
                first_ns,
                last_ns,
                packet_count,
                payload_bytes,
                syn,
                synack,
                established,
                fin,
                fin_acked,
                rst,
                last_payload,
                retransmitted,
                zero_window,
            ) in zip(
                which.tolist(),
                zip(*ends, strict=True),
                part["first_ns"].tolist(),
                part["last_ns"].tolist(),
                _pairs(part["packet_count"]),
                _pairs(part["payload_bytes"]),
                _times(part["syn_ns"]),
                _times(part["synack_ns"]),
                _times(part["established_ns"]),
                _time_pairs(part["fin_ns"]),
                _time_pairs(part["fin_acked_ns"]),
                _time_pairs(part["rst_ns"]),
                _time_pairs(part["last_payload_ns"]),
                _pairs(part["retransmission_count"]),
                _pairs(part["zero_window_count"]),
                strict=True,
            )
        ]


def _pairs(values: Ints) -> list[tuple[int, int]]:
    return list(zip(values[:, 0].tolist(), values[:, 1].tolist(), strict=True))


def _times(values: Ints) -> list[int | None]:
    return [None if at == _NEVER else at for at in values.tolist()]


def _time_pairs(values: Ints) -> list[tuple[int | None, int | None]]:
    return list(zip(_times(values[:, 0]), _times(values[:, 1]), strict=True))
