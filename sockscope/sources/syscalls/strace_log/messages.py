"""What the calls that move bytes print: strings, iovecs, message headers, control messages. Pure.

Source: strace src/io.c, src/msghdr.c, src/mmsghdr.c; cmsg(3), sendmmsg(2).
"""

from __future__ import annotations

import struct
from typing import Final

from sockscope.model.constants import SCM_CREDENTIALS, SCM_RIGHTS, SOL_SOCKET
from sockscope.model.events import Section
from sockscope.sources.syscalls.strace_log.addresses import sockaddr
from sockscope.sources.syscalls.strace_log.arguments import CUT, Group, Value
from sockscope.sources.syscalls.strace_log.parts import MAX_ELEMENTS, Parts
from sockscope.sources.syscalls.strace_log.texts import Text
from sockscope.sources.syscalls.strace_log.values import U64, after, number, signed32, whole

_CONTROL_CAP: Final = 4096
_CMSG: Final = struct.Struct("<Qii")


def payload(value: Value | None, count: int, ret: int | None, parts: Parts, *, receives: bool) -> None:
    """A plain buffer's first bytes: PAYLOAD."""
    moved = ret if ret is not None and ret >= 0 else 0 if receives else count
    if isinstance(value, Text):
        parts.payload(value.data, moved)
    elif ret is not None and ret > 0:
        parts.cut()  # strace was told to print no more than the address


def iovecs(value: Value | None, ret: int | None, parts: Parts, *, receives: bool) -> None:
    """`[{iov_base="..", iov_len=3}, ...]`, or strace 4's `[{"..", 3}]`: IOV_TOTAL and PAYLOAD."""
    if not isinstance(value, Group) or not value.items or (receives and (ret is None or ret < 0)):
        return
    total = 0
    first: Value | None = None
    whole_list = True
    for each in value.items[:MAX_ELEMENTS]:
        if not isinstance(each, Group) or not each.items:
            whole_list = False
            continue
        length = number(each.field(b"iov_len") or each.items[-1])
        if length is None or length < 0:
            whole_list = False
            continue
        if length and first is None:
            first = each.field(b"iov_base") or each.items[0]
        total += length
    if whole_list:
        parts.add(Section.IOV_TOTAL, struct.pack("<Q", total & U64))
    else:
        parts.cut()
    if isinstance(first, Text):
        parts.payload(first.data, ret if ret is not None and ret >= 0 else total)


def message(value: Value | None, ret: int | None, parts: Parts, *, receives: bool) -> None:
    """A struct msghdr: SOCKADDR, IOV_TOTAL, PAYLOAD, CONTROL, MSG_FLAGS."""
    value = after(value)
    failed = ret is None or ret < 0
    if not isinstance(value, Group) or value.opener != b"{" or (receives and failed):
        return
    name, stated = _counted(value, b"msg_name")
    length = value.field(b"msg_namelen")
    raw = sockaddr(name, number(length) if length is not None else stated)
    if raw:
        parts.add(Section.SOCKADDR, raw)
    iovecs(_counted(value, b"msg_iov")[0], ret, parts, receives=receives)
    control = control_messages(value)
    if control is not None:
        if len(control) > _CONTROL_CAP:
            parts.cut()
        parts.add(Section.CONTROL, control[:_CONTROL_CAP])
    flags = value.field(b"msg_flags")
    if receives and flags is not None:
        parts.add(Section.MSG_FLAGS, struct.pack("<I", whole(flags) & 0xFFFF_FFFF))


def _counted(message_header: Group, name: bytes) -> tuple[Value | None, int | None]:
    """A field, and the count that strace 4 puts into its name: `msg_iov(1)=`."""
    found = message_header.field(name)
    if found is not None:
        return found, None
    prefix = name + b"("
    for index, each in enumerate(message_header.names):
        if each.startswith(prefix):
            count = each[len(prefix) : -1]
            return message_header.items[index], int(count) if count.isdigit() and len(count) < 9 else None
    return None, None


def control_messages(message_header: Group) -> bytes | None:
    """msg_control as it lay there: cmsghdrs, each padded to 8 bytes; None where there are none."""
    held = _counted(message_header, b"msg_control")[0]
    if held is None:
        # Strace 4 gives it no name: `msg_controllen=24, [{cmsg_len=20, ...}], msg_flags=0`.
        unnamed = (item for name, item in zip(message_header.names, message_header.items, strict=True) if not name)
        held = next((item for item in unnamed if isinstance(item, Group)), None)
    held = after(held)
    if not isinstance(held, Group):
        return None
    raw = b""
    for each in [held] if held.opener == b"{" else held.items[:64]:
        if isinstance(each, Group):
            raw += _cmsg(each)
    stated = number(message_header.field(b"msg_controllen"))
    if stated is not None and 0 < stated < len(raw):
        raw = raw[:stated]
    return raw or None


def _cmsg(fields: Group) -> bytes:
    level, kind = whole(fields.field(b"cmsg_level")), whole(fields.field(b"cmsg_type"))
    value = fields.field(b"cmsg_data")
    if value is None and fields.items and not fields.names[-1]:
        value = fields.items[-1]  # strace 4: {cmsg_len=20, cmsg_level=.., cmsg_type=.., [5]}
    data = _cmsg_data(level, kind, value)
    length = number(fields.field(b"cmsg_len"))
    if length is None or not _CMSG.size <= length <= _CONTROL_CAP:
        length = _CMSG.size + len(data)
    body = data.ljust(length - _CMSG.size, b"\0")[: length - _CMSG.size]
    raw = _CMSG.pack(length, signed32(level), signed32(kind)) + body
    return raw.ljust((len(raw) + 7) & ~7, b"\0")


def _cmsg_data(level: int, kind: int, value: Value | None) -> bytes:
    if isinstance(value, Text):
        return value.data
    if isinstance(value, Group) and level == SOL_SOCKET and kind == SCM_RIGHTS:
        fds = [signed32(whole(each)) for each in value.items[:1024] if each != CUT]
        return struct.pack(f"<{len(fds)}i", *fds)
    if isinstance(value, Group) and level == SOL_SOCKET and kind == SCM_CREDENTIALS:
        return credentials(value)
    if isinstance(value, Group) and value.opener == b"[" and len(value.items) == 1:
        return struct.pack("<I", whole(value.items[0]) & 0xFFFF_FFFF)
    return b""


def credentials(value: Group) -> bytes:
    """`{pid=1, uid=2, gid=3}`: struct ucred."""
    return struct.pack("<3I", *(whole(value.field(name)) & 0xFFFF_FFFF for name in (b"pid", b"uid", b"gid")))


def messages(value: Value | None, ret: int | None, parts: Parts, *, receives: bool) -> None:
    """`[{msg_hdr={..}, msg_len=5}, ...]`, or strace 4's `[{{..}, 5}]`: MMSG_LENS and the first one's parts."""
    value = after(value)
    if not isinstance(value, Group) or value.opener != b"[":
        return
    held = [each for each in value.items[:MAX_ELEMENTS] if isinstance(each, Group) and each.items]
    if not held:
        return
    header = held[0].field(b"msg_hdr") or held[0].items[0]
    if ret is None or ret <= 0:
        if not receives:
            message(header, ret, parts, receives=False)
        return
    lens = [whole(_message_length(each)) & 0xFFFF_FFFF for each in held[:ret]]
    if len(lens) < ret:
        parts.cut()
    parts.add(Section.MMSG_LENS, struct.pack(f"<{len(lens)}I", *lens))
    message(header, lens[0], parts, receives=receives)


def _message_length(each: Group) -> Value | None:
    stated = each.field(b"msg_len")
    return stated if stated is not None else each.items[-1] if len(each.items) > 1 else None
