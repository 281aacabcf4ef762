"""Containers and namespaces. Source: namespaces(7), user_namespaces(7), pid_namespaces(7)."""

from __future__ import annotations

import os

from sockscope.model.capability import Capability, Status
from sockscope.sources.capabilities.privileges import read_text
from sockscope.sources.sockets.procfs import sees_every_process

_WHOLE_UID_MAP = ["0", "0", "4294967295"]


def container_signs() -> list[str]:
    """What speaks for a container, in words; empty: nothing does."""
    signs = [path for path in ("/.dockerenv", "/run/.containerenv") if os.path.exists(path)]
    # cgroup v2 in its own namespace shows only "/", so this finds the older ones.
    cgroup = read_text("/proc/1/cgroup") or ""
    signs += [f"cgroup of {word}" for word in ("docker", "kubepods", "lxc", "libpod") if word in cgroup]
    if not sees_every_process():
        signs.append("a pid namespace of its own")
    return signs


def check_container() -> Capability:
    signs = container_signs()
    if not signs:
        meaning = "all processes of the host can be seen"
        return Capability(name="container", status=Status.OK, detail="none", meaning=meaning)
    if sees_every_process():
        meaning = "a container by its looks, but in the host's pid namespace: all processes can be seen"
        return Capability(name="container", status=Status.OK, detail=", ".join(signs), meaning=meaning)
    return Capability(
        name="container",
        status=Status.LIMITED,
        detail=", ".join(signs),
        meaning="only this container's processes can be seen; sockets held outside show no owner",
        mend="run sockscope on the host, or docker run --pid=host",
    )


def check_namespaces() -> Capability:
    """User, pid and net namespace, as against process 1's."""
    differing = []
    for kind in ("user", "pid", "net"):
        own, first = _namespace("self", kind), _namespace("1", kind)
        if own and first and own != first:
            differing.append(kind)
    mapped = (read_text("/proc/self/uid_map") or "").split()
    if mapped and mapped != _WHOLE_UID_MAP:
        return Capability(
            name="namespaces",
            status=Status.LIMITED,
            detail="a user namespace maps only some users",
            meaning="root here is not root on the host: other users' processes stay closed",
            mend="run sockscope outside the user namespace (rootful)",
        )
    inodes = ", ".join(f"{kind} {_namespace('self', kind)}" for kind in ("user", "pid", "net"))
    if differing:
        detail = f"{inodes}; other than process 1's: {', '.join(differing)}"
        meaning = "sockets are looked up in each target's own network namespace"
        return Capability(name="namespaces", status=Status.OK, detail=detail, meaning=meaning)
    meaning = "the same as process 1's, or not readable"
    return Capability(name="namespaces", status=Status.OK, detail=inodes, meaning=meaning)


def _namespace(pid: str, kind: str) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except OSError:
        return 0
