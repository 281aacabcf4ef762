"""A command whose ports are not known at first: captured with all others', then alone."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from sockscope.fixture import free_port
from sockscope.pipeline import record as recording
from sockscope.pipeline.options import RecordOptions
from sockscope.sources.packets.files import read_packets
from tests.live import servers

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


def talk(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
        time.sleep(0.05)


def test_strangers_are_left_out_once_the_ports_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "SETTLED_S", 0.5)
    port, early, late = free_port(), free_port(), free_port()
    watcher = recording.Watcher()

    def act() -> None:
        talk(early)
        servers.wait_until_serving(port)
        time.sleep(1.5)
        talk(late)
        servers.count_connections(port, 3)
        time.sleep(0.3)
        watcher.stop.set()

    watcher.on_ready = lambda tgids, seed: threading.Thread(target=act, daemon=True).start()
    command = (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path))
    recording.record(RecordOptions(command=command), tmp_path / "rec", watcher)
    packets = read_packets(tmp_path / "rec" / "packets.pcapng").packets.records
    seen = set(packets["sport"].tolist()) | set(packets["dport"].tolist())
    assert {port, early} <= seen
    assert late not in seen
