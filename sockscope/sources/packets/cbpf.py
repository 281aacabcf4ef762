"""The kernel's packet filter: classic BPF for "TCP or UDP, from or to one of these ports".

Source: Documentation/networking/filter.rst, include/uapi/linux/filter.h.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass

_LD_ABS_B, _LD_ABS_H, _LD_ABS_W = 0x30, 0x28, 0x20
_LD_IND_B, _LD_IND_H = 0x50, 0x48
_LD_MEM, _ST = 0x60, 0x02
_LDX_IMM = 0x01
_AND, _LSH, _RSH, _ADD, _ADD_X = 0x54, 0x64, 0x74, 0x04, 0x0C
_TAX, _TXA = 0x07, 0x87
_JA, _JEQ, _JSET = 0x05, 0x15, 0x45
_RET = 0x06

_AD_PKTTYPE = 0xFFFFF000 + 4
_PACKET_OUTGOING = 4

MAX_FILTER_PORTS = 900
"""A program has at most 4096 instructions (BPF_MAXINSNS), four a port."""

_VLANS = (0x8100, 0x88A8, 0x9100)
_MAX_EXTENSIONS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    code: int
    k: int = 0
    to: str = ""
    """Jump there where true (always, for ja); empty: on."""
    otherwise: str = ""


class _Program:
    """Instructions with named places; jumps go forward only, as the kernel demands."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._places: dict[str, int] = {}

    def place(self, name: str) -> None:
        self._places[name] = len(self._steps)

    def do(self, code: int, k: int = 0) -> None:
        self._steps.append(_Step(code=code, k=k))

    def jump(self, to: str) -> None:
        self._steps.append(_Step(code=_JA, to=to))

    def when(self, code: int, k: int, to: str = "", otherwise: str = "") -> None:
        self._steps.append(_Step(code=code, k=k, to=to, otherwise=otherwise))

    def assemble(self) -> bytes:
        """struct sock_filter x n: u16 code, u8 jt, u8 jf, u32 k."""
        out = bytearray()
        for at, step in enumerate(self._steps):
            far = self._places[step.to] - at - 1 if step.to else 0
            if step.code == _JA:
                out += struct.pack("=HBBI", step.code, 0, 0, far)
            else:
                other = self._places[step.otherwise] - at - 1 if step.otherwise else 0
                out += struct.pack("=HBBI", step.code, far, other, step.k)
        return bytes(out)


def port_filter(ports: Collection[int], *, snap_bytes: int, ethernet: bool, drop_outgoing: bool = False) -> bytes:
    """The program, as an array of `struct sock_filter`.

    It knows VLAN tags left in the frame (up to two), IPv4 options, IPv6 extension headers (up to four), and
    passes of fragments only the first, which alone has ports. With more than `MAX_FILTER_PORTS` ports, or
    none, it passes all TCP and UDP.

    Args:
        ports: host order.
        snap_bytes: bytes kept of each packet.
        ethernet: frames begin with an Ethernet header; else with IP (SOCK_DGRAM).
        drop_outgoing: for loopback, which shows each packet leaving and arriving.
    """
    listed = sorted(set(ports)) if len(set(ports)) <= MAX_FILTER_PORTS else []
    program = _Program()
    if drop_outgoing:
        program.do(_LD_ABS_W, _AD_PKTTYPE)
        program.when(_JEQ, _PACKET_OUTGOING, "drop early", "")
    if ethernet:
        _ethernet(program)
    else:
        program.do(_LDX_IMM, 0)
        program.do(_LD_ABS_B, 0)
        program.do(_RSH, 4)
        program.when(_JEQ, 4, "ipv4")
        program.when(_JEQ, 6, "ipv6")
    program.place("drop early")
    program.do(_RET, 0)
    _ipv4(program, with_ports=bool(listed))
    _ipv6(program)
    _ports(program, listed, snap_bytes)
    return program.assemble()


def _ethernet(program: _Program) -> None:
    """X = where the IP header begins."""
    for at in (12, 16, 20):
        program.do(_LDX_IMM, at + 2)
        program.do(_LD_ABS_H, at)
        program.when(_JEQ, 0x0800, "ipv4")
        program.when(_JEQ, 0x86DD, "ipv6")
        if at < 20:
            for kind in _VLANS[:-1]:
                program.when(_JEQ, kind, f"tag {at + 4}")
            program.when(_JEQ, _VLANS[-1], "", "drop early")
            program.place(f"tag {at + 4}")


def _ipv4(program: _Program, *, with_ports: bool) -> None:
    program.place("ipv4")
    if with_ports:
        program.do(_LD_IND_H, 6)
        program.when(_JSET, 0x1FFF, "drop")
    program.do(_LD_IND_B, 9)
    program.when(_JEQ, 6, "v4 transport")
    program.when(_JEQ, 17, "v4 transport", "drop")
    program.place("v4 transport")
    program.do(_LD_IND_B, 0)
    program.do(_AND, 0x0F)
    program.do(_LSH, 2)
    program.do(_ADD_X)
    program.do(_TAX)
    program.jump("ports")


def _ipv6(program: _Program) -> None:
    """A = next header, X = where it begins; unrolled, since jumps go forward only."""
    program.place("ipv6")
    program.do(_LD_IND_B, 6)
    program.do(_ST, 0)
    program.do(_TXA)
    program.do(_ADD, 40)
    program.do(_TAX)
    program.do(_LD_MEM, 0)
    for level in range(_MAX_EXTENSIONS + 1):
        program.when(_JEQ, 6, "to ports")
        program.when(_JEQ, 17, "to ports")
        if level == _MAX_EXTENSIONS:
            break
        program.when(_JEQ, 44, f"fragment {level}")
        for kind in (0, 43):
            program.when(_JEQ, kind, f"extension {level}")
        program.when(_JEQ, 60, f"extension {level}", "drop")
        program.place(f"extension {level}")
        program.do(_LD_IND_B, 0)
        program.do(_ST, 0)
        program.do(_LD_IND_B, 1)
        program.do(_ADD, 1)
        program.do(_LSH, 3)
        program.do(_ADD_X)
        program.jump(f"next {level}")
        program.place(f"fragment {level}")
        program.do(_LD_IND_H, 2)
        program.when(_JSET, 0xFFF8, "drop")
        program.do(_LD_IND_B, 0)
        program.do(_ST, 0)
        program.do(_TXA)
        program.do(_ADD, 8)
        program.place(f"next {level}")
        program.do(_TAX)
        program.do(_LD_MEM, 0)
    program.place("drop")
    program.do(_RET, 0)
    program.place("to ports")


def _ports(program: _Program, ports: list[int], snap_bytes: int) -> None:
    program.place("ports")
    if not ports:
        program.do(_RET, snap_bytes)
        return
    for side in (0, 2):
        program.do(_LD_IND_H, side)
        for port in ports:
            # A return of its own for each: conditional jumps reach only 255 instructions.
            name = f"not {side} {port}"
            program.when(_JEQ, port, "", name)
            program.do(_RET, snap_bytes)
            program.place(name)
    program.do(_RET, 0)
