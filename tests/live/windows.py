"""A recording as the flight recorder would have written it: the last part of its time whole, little of the rest."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np

from sockscope.analysis.build import build_session
from sockscope.analysis.session import Session
from sockscope.analysis.wire.flows import monotonic_ns
from sockscope.model.event_rows import subset
from sockscope.model.events import Events
from sockscope.model.facts import Facts
from sockscope.model.packets import Packets
from sockscope.model.sockets import SOCKET_DTYPE, Sockets
from sockscope.pipeline.flight_dump import Shot, dump_info
from sockscope.recording import keep
from sockscope.recording.keep import Kept, KeptSockets
from sockscope.recording.keep_facts import KeptFacts
from sockscope.recording.reader import Recording, read_recording
from sockscope.sources.packets.files import read_packets

BATCH_NS = 50_000_000


def window_of(folder: Path, share: float) -> Session:
    """The session of the last `share` of a recording's time."""
    whole = read_recording(folder)
    info = whole.info
    keep_ns = int((info.ended_ns - info.started_ns) * share)
    sockets = KeptSockets(keep_ns)
    for number in np.unique(whole.sockets.records["snapshot"]):
        sockets.add(whole.sockets.records[whole.sockets.records["snapshot"] == number])
    snapshots = sockets.snapshots()
    with patch.object(keep, "_PENDING_EVENTS", 1):
        kept = _fed(whole, keep_ns)
    shot = Shot(
        info=info,
        seed=whole.seed,
        window=kept.window(),
        snapshots=snapshots,
        owners=whole.sockets,
        facts=_facts(whole, keep_ns),
        segments=(),
        keep_s=keep_ns / 1e9,
    )
    cut = dump_info(shot)
    packets = _packets(whole)
    times = monotonic_ns(packets, info.clock_samples)
    return build_session(
        info=cut,
        seed=whole.seed,
        events=Events.concat(list(shot.window.tables)),
        packets=Packets(records=packets.records[times >= cut.started_ns], raw=packets.raw),
        sockets=Sockets(records=np.concatenate([np.zeros(0, SOCKET_DTYPE), *snapshots]), owners=whole.sockets.owners),
        facts=shot.facts,
    )


def _fed(whole: Recording, keep_ns: int) -> Kept:
    kept = Kept(keep_ns)
    kept.begin(whole.seed)
    records, ended = whole.events.records, whole.info.ended_ns
    ends = np.where(records["exit_ns"] >= 0, records["exit_ns"], ended)
    low, high = 0, whole.info.started_ns
    while low < ended:
        rows = np.flatnonzero((ends >= low) & (ends < high))
        kept.add(subset(whole.events, rows), min(high, ended))
        low, high = high, high + BATCH_NS
    return kept


def _facts(whole: Recording, keep_ns: int) -> Facts:
    """As they came: a sample after the other."""
    kept = KeptFacts(keep_ns)
    facts = whole.facts
    tables = (facts.processes, facts.namespaces, facts.segments)
    for time_ns in np.unique(np.concatenate([table["time_ns"] for table in tables])):
        processes, namespaces, segments = (table[table["time_ns"] == time_ns] for table in tables)
        kept.add(Facts(processes=processes, namespaces=namespaces, segments=segments))
    return kept.held()


def _packets(whole: Recording) -> Packets:
    path = whole.packets_path
    if path is None or not path.stat().st_size:
        return Packets.empty()
    return read_packets(path, ports=frozenset(whole.info.target.ports) or None).packets
