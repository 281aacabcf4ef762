"""Arguments of calls about processes, files and memory, in strace's notation."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from sockscope.analysis.narration import describe_values as v
from sockscope.analysis.narration.describe_parts import Formatter, ints, ints_and_flags, joined
from sockscope.analysis.narration.describe_view import View
from sockscope.analysis.narration.payload import quote
from sockscope.model import constants as c
from sockscope.model.calls import Call
from sockscope.model.events import Section
from sockscope.model.signals import signal_name


def _clone(view: View, _: int) -> str:
    value = view.args[0]
    exit_signal = value & 0x7F
    shown = v.flags(value & ~0xFF & 0xFFFFFFFF, c.CLONE_FLAGS)
    if exit_signal:
        shown = signal_name(exit_signal) if shown == "0" else f"{shown}|{signal_name(exit_signal)}"
    return joined(f"child_stack={v.pointer(view.args[1])}", f"flags={shown}")


def _clone3(view: View, _: int) -> str:
    raw = view.sections.get(Section.CLONE_ARGS, b"")
    if len(raw) < 64:
        return joined(v.pointer(view.args[0]), str(view.args[1]))
    flags, _pidfd, _child, _parent, exit_signal, stack, stack_size, _tls = struct.unpack_from("<8Q", raw)
    ending = signal_name(exit_signal) if exit_signal else "0"
    parts = [f"flags={v.flags(flags, c.CLONE_FLAGS)}", f"exit_signal={ending}", f"stack={v.pointer(stack)}"]
    if stack:
        parts.append(f"stack_size={stack_size:#x}")
    return joined(f"{{{joined(*parts)}}}", str(view.args[1]))


def _path(view: View, index: int) -> str:
    raw = view.sections.get(Section.PATH)
    return quote(raw, limit=4096) if raw is not None else v.pointer(view.args[index])


def _execve(view: View, _: int) -> str:
    if view.call == Call.execve:
        return joined(_path(view, 0), v.pointer(view.args[1]), v.pointer(view.args[2]))
    return joined(
        v.descriptor_at(view.args[0]),
        _path(view, 1),
        v.pointer(view.args[2]),
        v.pointer(view.args[3]),
        v.flags(view.args[4] & 0xFFFFFFFF, c.EXECVEAT_FLAGS),
    )


def _wait4(view: View, _: int) -> str:
    raw = view.sections.get(Section.INT, b"")
    reaped = view.returned and view.ret > 0 and len(raw) == 4
    status = f"[{v.wait_status(struct.unpack('<I', raw)[0])}]" if reaped else v.pointer(view.args[1])
    options = v.flags(view.args[2] & 0xFFFFFFFF, c.WAIT_OPTIONS)
    return joined(str(view.int_arg(0)), status, options, v.pointer(view.args[3]))


def _waitid(view: View, _: int) -> str:
    return joined(
        v.name(view.int_arg(0), c.WAITID_TYPES),
        str(view.int_arg(1)),
        v.pointer(view.args[2]),
        v.flags(view.args[3] & 0xFFFFFFFF, c.WAIT_OPTIONS),
    )


def _kill(view: View, _: int) -> str:
    signal_at = 2 if view.call == Call.tgkill else 1
    number = view.int_arg(signal_at)
    ids = [str(view.int_arg(i)) for i in range(signal_at)]
    return joined(*ids, signal_name(number) if number else "0")


def _open(view: View, _: int) -> str:
    at = 0 if view.call in (Call.open, Call.creat) else 1
    parts = [] if at == 0 else [v.descriptor_at(view.args[0])]
    parts.append(_path(view, at))
    if view.call == Call.creat:
        parts.append(f"0{view.args[1] & 0o7777:o}")
    elif view.call == Call.openat2:
        parts += [v.pointer(view.args[2]), str(view.args[3])]
    else:
        value = view.args[at + 1] & 0xFFFFFFFF
        parts.append(c.OPEN_MODES[value & 3] + (f"|{v.flags(value & ~3, c.OPEN_FLAGS)}" if value & ~3 else ""))
        if value & 0o100 or value & 0o20200000 == 0o20200000:
            parts.append(f"0{view.args[at + 2] & 0o7777:o}")
    return joined(*parts)


def _unlink(view: View, _: int) -> str:
    if view.call == Call.unlink:
        return _path(view, 0)
    return joined(v.descriptor_at(view.args[0]), _path(view, 1), v.flags(view.args[2] & 0xFFFFFFFF, c.AT_FLAGS))


def _shmget(view: View, _: int) -> str:
    key = view.args[0] & 0xFFFFFFFF
    mode = view.args[2] & 0xFFFFFFFF
    special = f"{v.flags(mode & ~0o777, c.IPC_FLAGS)}|" if mode & ~0o777 else ""
    return joined(f"{key:#x}" if key else "IPC_PRIVATE", str(view.args[1]), f"{special}0{mode & 0o777:o}")


def _shmat(view: View, _: int) -> str:
    return joined(str(view.int_arg(0)), v.pointer(view.args[1]), v.flags(view.args[2] & 0xFFFFFFFF, c.SHMAT_FLAGS))


def _shmctl(view: View, _: int) -> str:
    # IPC_64 (0x100) is the C library's affair.
    command = view.int_arg(1) & ~0x100
    return joined(str(view.int_arg(0)), v.name(command, c.IPC_COMMANDS), v.pointer(view.args[2]))


def _mmap(view: View, _: int) -> str:
    value = view.args[3] & 0xFFFFFFFF
    rest = value & ~3
    kind = v.name(value & 3, c.MAP_TYPES) + (f"|{v.flags(rest, c.MAP_FLAGS)}" if rest else "")
    return joined(
        v.pointer(view.args[0]),
        str(view.args[1]),
        v.flags(view.args[2] & 0xFFFFFFFF, c.PROT_FLAGS) if view.args[2] else "PROT_NONE",
        kind,
        str(view.int_arg(4)),
        f"{view.args[5]:#x}" if view.args[5] else "0",
    )


def _munmap(view: View, _: int) -> str:
    return joined(v.pointer(view.args[0]), str(view.args[1]))


def _memfd(view: View, _: int) -> str:
    return joined(_path(view, 0), v.flags(view.args[1] & 0xFFFFFFFF, c.MEMFD_FLAGS))


def _io_uring_setup(view: View, _: int) -> str:
    return joined(str(view.int_arg(0)), v.pointer(view.args[1]))


SYSTEM_ARGUMENTS: Final[Mapping[Call, Formatter]] = {
    Call.clone: _clone,
    Call.clone3: _clone3,
    Call.fork: ints(0),
    Call.vfork: ints(0),
    Call.execve: _execve,
    Call.execveat: _execve,
    Call.exit: ints(1),
    Call.exit_group: ints(1),
    Call.wait4: _wait4,
    Call.waitid: _waitid,
    Call.unshare: ints_and_flags(0, c.CLONE_FLAGS),
    Call.kill: _kill,
    Call.tkill: _kill,
    Call.tgkill: _kill,
    Call.shmget: _shmget,
    Call.shmat: _shmat,
    Call.shmdt: lambda view, _: v.pointer(view.args[0]),
    Call.shmctl: _shmctl,
    Call.openat: _open,
    Call.openat2: _open,
    Call.open: _open,
    Call.creat: _open,
    Call.unlink: _unlink,
    Call.unlinkat: _unlink,
    Call.mmap: _mmap,
    Call.munmap: _munmap,
    Call.memfd_create: _memfd,
    Call.io_uring_setup: _io_uring_setup,
    Call.io_uring_enter: ints(4),
}
