"""manifest.json: SessionInfo and the processes of the seed, to JSON and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sockscope.errors import DamagedInputError
from sockscope.model.calls import CallGroup
from sockscope.model.info import PacketCoverage, SessionInfo, SocketCoverage, SyscallCoverage, Target
from sockscope.model.seed import SeedProcess
from sockscope.recording.layout import FORMAT, VERSION


def encode(info: SessionInfo, processes: Sequence[SeedProcess]) -> str:
    """The manifest's text."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "info": asdict(info),
        "processes": [asdict(process) for process in processes],
    }
    return json.dumps(document, indent=1)


def decode(text: str, where: str) -> tuple[SessionInfo, tuple[SeedProcess, ...]]:
    """Read a manifest.

    Args:
        text: the file's content.
        where: its path, for messages.

    Raises:
        DamagedInputError: not a manifest, or of a newer version.
    """
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise DamagedInputError(f"{where} is not a sockscope recording's manifest")
        if document["version"] > VERSION:
            raise DamagedInputError(
                f"{where} has format version {document['version']}; this sockscope reads up to {VERSION}",
                help_text="upgrade sockscope: pip install -U sockscope",
            )
        return _info(document["info"]), tuple(_process(p) for p in document["processes"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedInputError(
            f"{where} is damaged: {type(error).__name__} {error}",
            help_text="without its manifest a recording cannot be read; packets.pcapng still opens in Wireshark",
        ) from error


def _info(data: Mapping[str, Any]) -> SessionInfo:
    target = data["target"]
    packets = data["packets"]
    return SessionInfo(
        target=Target(
            command=tuple(target["command"]),
            pids=tuple(int(pid) for pid in target["pids"]),
            ports=tuple(int(port) for port in target["ports"]),
        ),
        started_realtime_ns=int(data["started_realtime_ns"]),
        started_ns=int(data["started_ns"]),
        ended_ns=int(data["ended_ns"]),
        host=str(data["host"]),
        kernel=str(data["kernel"]),
        machine=str(data["machine"]),
        clock_samples=tuple((int(a), int(b)) for a, b in data["clock_samples"]),
        clock_skew_ns=int(data["clock_skew_ns"]),
        syscalls=SyscallCoverage(
            **{**data["syscalls"], "missing_groups": tuple(map(CallGroup, data["syscalls"].get("missing_groups", ())))}
        ),
        packets=PacketCoverage(**{**packets, "interfaces": tuple(packets["interfaces"])}),
        sockets=SocketCoverage(**data["sockets"]),
        notes=tuple(str(note) for note in data["notes"]),
        complete=bool(data["complete"]),
    )


def _process(data: Mapping[str, Any]) -> SeedProcess:
    return SeedProcess(**{**data, "tids": tuple(data["tids"]), "cmdline": tuple(data["cmdline"])})
