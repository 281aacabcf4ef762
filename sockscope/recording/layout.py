"""Names and version of what a recording folder holds."""

from __future__ import annotations

FORMAT = "sockscope-recording"
VERSION = 1
"""Raised when a reader of the former version would misread; each raise brings one migration."""

MANIFEST = "manifest.json"
SYSCALLS = "syscalls.arrows"
SOCKETS = "sockets.arrows"
OWNERS = "owners.arrows"
DESCRIPTORS = "descriptors.arrows"
INTERESTS = "interests.arrows"
PROCESSES = "processes.arrows"
NAMESPACES = "namespaces.arrows"
SEGMENTS = "segments.arrows"
PACKETS = "packets.pcapng"
RESERVE = ".reserve"
"""Kept while recording, removed before the last manifest is written."""
