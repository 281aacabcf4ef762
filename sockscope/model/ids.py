"""Numbers that must not be mixed up."""

from __future__ import annotations

from typing import NewType

Tid = NewType("Tid", int)
"""A thread, as `gettid(2)` numbers it in the tracer's pid namespace."""

Tgid = NewType("Tgid", int)
"""A process (thread group), as `getpid(2)` numbers it in the tracer's pid namespace."""

Fd = NewType("Fd", int)
"""A descriptor number: an index into one files table, reused at once after close."""

EventId = NewType("EventId", int)
"""Row number in the recording's `syscalls.arrows`; stable for the life of the recording."""

ConnectionId = NewType("ConnectionId", int)
"""Index into the session's connections."""

NO_ID = -1
"""Stands for "none" in integer columns."""
