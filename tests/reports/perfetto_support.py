"""Reading a Perfetto trace back: with the official schema, and with Perfetto's own trace processor."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PROCESSOR = Path(os.environ.get("SOCKSCOPE_TRACE_PROCESSOR", HERE.parents[1] / "build" / "trace-processor"))
BEGIN, END, INSTANT, COUNTER = 1, 2, 3, 4
MONOTONIC = 3


@dataclass(kw_only=True)
class Slice:
    track: str
    name: str
    begin_ns: int
    end_ns: int | None = None
    notes: dict[str, str | int] = field(default_factory=dict)
    flows: tuple[int, ...] = ()
    instant: bool = False


@dataclass(kw_only=True)
class Read:
    """A trace, every promise of the format checked."""

    slices: list[Slice]
    counters: list[tuple[str, int, int]]
    tracks: dict[int, str]
    """A track's name, its parents before it."""

    def named(self, name: str) -> list[Slice]:
        return [one for one in self.slices if one.name == name]

    def on(self, track: str) -> list[Slice]:
        return [one for one in self.slices if one.track == track]


def read(path: Path) -> Read:
    """Parse, and assert what readers of the format rely on."""
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace

    trace = Trace()
    trace.ParseFromString(path.read_bytes())
    reader = _Reader()
    for packet in trace.packet:
        reader.packet(packet)
    return reader.done()


class _Reader:
    def __init__(self) -> None:
        self.names: dict[str, dict[int, str]] = defaultdict(dict)
        self.tracks: dict[int, str] = {}
        self.clocked = self.began = False
        self.events: list[tuple[int, int, Any]] = []

    def packet(self, packet: Any) -> None:
        assert packet.trusted_packet_sequence_id == 1
        if packet.HasField("clock_snapshot"):
            assert packet.clock_snapshot.primary_trace_clock == MONOTONIC
            assert MONOTONIC in [clock.clock_id for clock in packet.clock_snapshot.clocks]
            self.clocked = True
        if packet.sequence_flags & 1:
            assert not self.began
            assert packet.trace_packet_defaults.timestamp_clock_id == MONOTONIC
            self.began = True
        elif packet.HasField("track_event") or packet.HasField("interned_data"):
            assert packet.sequence_flags & 2
            assert self.began
        for kind in ("event_names", "event_categories", "debug_annotation_names"):
            for entry in getattr(packet.interned_data, kind):
                assert entry.iid
                assert entry.iid not in self.names[kind]
                self.names[kind][entry.iid] = entry.name
        for entry in packet.interned_data.debug_annotation_string_values:
            self.names["strings"][entry.iid] = entry.str.decode()
        if packet.HasField("track_descriptor"):
            self.describe(packet.track_descriptor)
        if packet.HasField("track_event"):
            assert self.clocked
            assert packet.track_event.track_uuid in self.tracks
            self.events.append((packet.timestamp, len(self.events), packet.track_event))

    def describe(self, told: Any) -> None:
        assert told.uuid
        assert told.uuid not in self.tracks
        if told.HasField("process"):
            name = f"{told.process.process_name}[{told.process.pid}]"
        elif told.HasField("thread"):
            name = f"process {told.thread.pid}, thread {told.thread.tid}"
        else:
            name = told.name
        if told.parent_uuid:
            name = f"{self.tracks[told.parent_uuid]}/{name}"
        self.tracks[told.uuid] = name

    def done(self) -> Read:
        open_slices: dict[int, list[Slice]] = defaultdict(list)
        slices: list[Slice] = []
        counters = []
        flows: dict[int, int] = defaultdict(int)
        # As the trace processor does: in order of time, and of the file.
        for when, _, event in sorted(self.events, key=lambda one: one[:2]):
            track = self.tracks[event.track_uuid]
            if event.type == COUNTER:
                counters.append((track, when, event.counter_value))
                continue
            if event.type == END:
                open_slices[event.track_uuid].pop().end_ns = when
                continue
            assert event.type in (BEGIN, INSTANT)
            if event.type == BEGIN:
                assert not open_slices[event.track_uuid], "slices of a track overlap"
            for iid in event.category_iids:
                assert iid in self.names["event_categories"]
            made = Slice(
                track=track,
                name=event.name or self.names["event_names"][event.name_iid],
                begin_ns=when,
                notes={self.note_name(one): self.note_value(one) for one in event.debug_annotations},
                flows=tuple(event.flow_ids),
                instant=event.type == INSTANT,
            )
            for flow in event.flow_ids:
                flows[flow] += 1
            slices.append(made)
            if event.type == BEGIN:
                open_slices[event.track_uuid].append(made)
        assert all(count > 1 for count in flows.values()), "an arrow needs two ends"
        return Read(slices=slices, counters=counters, tracks=self.tracks)

    def note_name(self, one: Any) -> str:
        return one.name or self.names["debug_annotation_names"][one.name_iid]

    def note_value(self, one: Any) -> str | int:
        kind = one.WhichOneof("value")
        assert kind in ("int_value", "string_value", "string_value_iid")
        value: str | int = getattr(one, kind)
        return self.names["strings"][int(value)] if kind == "string_value_iid" else value


def query(path: Path, *questions: str) -> list[list[dict[str, Any]]]:
    """What Perfetto's trace processor answers; the test is skipped where it or node is missing."""
    node = shutil.which("node")
    if node is None or not (PROCESSOR / "trace_processor.wasm").is_file():
        pytest.skip("Perfetto's trace processor is not here: tools/trace-processor.sh, and node")
    done = subprocess.run(
        [node, str(HERE / "trace_processor.mjs"), str(PROCESSOR), str(path)],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[list[dict[str, Any]]] = json.loads(done.stdout)
    return answers
