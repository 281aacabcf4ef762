"""A port filter for the kernel: inet_diag byte code.

```
 0       1       2               4
+-------+-------+---------------+
| code  |  yes  |      no       |   struct inet_diag_bc_op: yes, no: bytes to jump
+-------+-------+---------------+
| (unused)      |     port      |   second word of a port comparison
+---------------+---------------+
```
Falling off the end exactly accepts the socket; jumping 4 bytes beyond it refuses.

Source: net/ipv4/inet_diag.c inet_diag_bc_run(), inet_diag_bc_audit().
"""

from __future__ import annotations

import struct
from collections.abc import Collection

MAX_RANGES = 256
"""Above this the kernel's check of the program (quadratic) costs more than it saves."""

_JMP = 1
_S_GE, _S_LE, _D_GE, _D_LE = 2, 3, 4, 5
_COMPARE = struct.Struct("<BBHHH")
_JUMP = struct.Struct("<BBH")
_TEST_BYTES = 2 * _COMPARE.size + _JUMP.size


def port_ranges(ports: Collection[int]) -> list[tuple[int, int]]:
    """Ports as inclusive ranges, in order."""
    out: list[tuple[int, int]] = []
    for port in sorted(set(ports)):
        if out and out[-1][1] + 1 == port:
            out[-1] = (out[-1][0], port)
        else:
            out.append((port, port))
    return out


def port_program(ports: Collection[int], *, local_only: bool = False) -> bytes | None:
    """Byte code that keeps sockets with one of the ports.

    Args:
        ports: host order.
        local_only: the socket's own port must match; otherwise the peer's may, too.

    Returns:
        The program, or None where there are so many ports that filtering here is cheaper.
    """
    ranges = port_ranges(ports)
    if not ranges or len(ranges) > MAX_RANGES:
        return None
    tests = [(_S_GE, _S_LE, low, high) for low, high in ranges]
    if not local_only:
        tests += [(_D_GE, _D_LE, low, high) for low, high in ranges]
    total = len(tests) * _TEST_BYTES
    program = bytearray()
    for number, (at_least, at_most, low, high) in enumerate(tests):
        left = total - number * _TEST_BYTES
        otherwise = _TEST_BYTES if number + 1 < len(tests) else left + 4
        program += _COMPARE.pack(at_least, _COMPARE.size, otherwise, 0, low)
        program += _COMPARE.pack(at_most, _COMPARE.size, otherwise - _COMPARE.size, 0, high)
        program += _JUMP.pack(_JMP, _JUMP.size, left - 2 * _COMPARE.size)
    return bytes(program)
