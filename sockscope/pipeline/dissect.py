"""Takes the packets of one connection apart, layer by layer, from the file they were read from."""

from __future__ import annotations

from pathlib import Path

from sockscope.analysis.session import Session
from sockscope.errors import UsageError
from sockscope.model.dissection import DissectedConnection, DissectedPacket
from sockscope.model.sockaddr import encode_key
from sockscope.recording import layout
from sockscope.sources.packets.dissect import Dissection
from sockscope.sources.packets.files import read_frames

MOST_PACKETS = 40


def dissect_connection(
    session: Session, recording: Path, connection: int, most: int = MOST_PACKETS
) -> DissectedConnection:
    """The first packets of a connection, in time.

    Args:
        session: loaded from `recording` alone: its packet rows say where in that file they lie.
        recording: the folder.
        connection: its id.
        most: packets, at most.

    Raises:
        UsageError: the recording has no packets.
    """
    path = recording / layout.PACKETS
    if not path.is_file() or not len(session.packets):
        raise UsageError("the recording holds no packets", help_text="record again without --no-packets")
    rows = session.packets_of(connection)
    shown = rows[:most]
    records = session.packets.records[shown]
    one = session.connections[connection]
    local = session.flows[one.flow].ends[one.local_side] if one.flow >= 0 else one.local
    key = encode_key(local) if local is not None else b""
    port = local.port if local is not None else -1
    frames = read_frames(path, records["payload_offset"].tolist())
    dissection = Dissection()
    packets = [
        DissectedPacket(
            row=row,
            time_ns=time_ns,
            from_target=source.tobytes() == key and source_port == port,
            wire_bytes=frame.wire_bytes,
            captured_bytes=len(frame.data),
            lines=dissection.dissect(frame.data, frame.link),
        )
        for row, time_ns, source, source_port, frame in zip(
            shown.tolist(),
            session.packet_ns[shown].tolist(),
            records["src"],
            records["sport"].tolist(),
            frames,
            strict=True,
        )
    ]
    return DissectedConnection(packets=packets, left_out_count=len(rows) - len(packets))
