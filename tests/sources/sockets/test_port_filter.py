"""The byte code, run by a copy of the kernel's interpreter and passed by a copy of its check."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from sockscope.sources.sockets.port_filter import MAX_RANGES, port_program, port_ranges

PORTS = st.sets(st.integers(1, 65535), min_size=1, max_size=40)


def runs(program: bytes, local: int, peer: int) -> bool:
    """inet_diag_bc_run()."""
    at, left = 0, len(program)
    while left > 0:
        code, yes, no = struct.unpack_from("<BBH", program, at)
        port = struct.unpack_from("<H", program, at + 6)[0] if code != 1 else 0
        match = {1: False, 2: local >= port, 3: local <= port, 4: peer >= port, 5: peer <= port}[code]
        step = yes if match else no
        at, left = at + step, left - step
    return left == 0


def audits(program: bytes) -> bool:
    """inet_diag_bc_audit() with valid_cc()."""

    def reachable(target: int) -> bool:
        at, left = 0, len(program)
        while left >= 0:
            if target > left:
                return False
            if target == left:
                return True
            yes = program[at + 1]
            if yes < 4 or yes & 3:
                return False
            at, left = at + yes, left - yes
        return False

    at, left = 0, len(program)
    while left > 0:
        code, yes, no = struct.unpack_from("<BBH", program, at)
        least = 4 if code == 1 else 8
        if left < least or (no < least and code != 1) or no > left + 4 or no & 3:
            return False
        if no < left and not reachable(left - no):
            return False
        if yes < least or yes > left + 4 or yes & 3:
            return False
        at, left = at + yes, left - yes
    return left == 0


@given(PORTS, st.integers(0, 65535), st.integers(0, 65535))
def test_either_end(ports: set[int], local: int, peer: int) -> None:
    program = port_program(ports)
    assert program is not None
    assert audits(program)
    assert runs(program, local, peer) == (local in ports or peer in ports)


@given(PORTS, st.integers(0, 65535), st.integers(0, 65535))
def test_own_end_only(ports: set[int], local: int, peer: int) -> None:
    program = port_program(ports, local_only=True)
    assert program is not None
    assert audits(program)
    assert runs(program, local, peer) == (local in ports)


@given(PORTS)
def test_every_wanted_port_passes(ports: set[int]) -> None:
    program = port_program(ports)
    assert program is not None
    assert all(runs(program, port, 0) and runs(program, 0, port) for port in ports)


def test_neighbours_are_one_range() -> None:
    assert port_ranges([82, 80, 81, 90]) == [(80, 82), (90, 90)]


def test_too_many_ranges_are_left_to_us() -> None:
    assert port_program(range(1, 2 * MAX_RANGES + 2, 2)) is None
    assert port_program([]) is None
