"""A server whose children come and go by the hundred is watched all the same."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sockscope.fixture import free_port
from sockscope.pipeline.load import load_session
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.pipeline.record import Watcher, record
from tests.live import servers
from tests.live.engines import BOTH, need

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

FORKING = """
import http.server, socketserver, sys
class Server(socketserver.ForkingMixIn, http.server.HTTPServer):
    request_queue_size = 64
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *a): pass
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.parametrize("engine", BOTH)
def test_diagnose_by_port_while_children_end(engine: EngineChoice, tmp_path: Path) -> None:
    need(engine)
    port = free_port()
    server = subprocess.Popen([sys.executable, "-c", FORKING, str(port)])
    enough = threading.Event()

    def load() -> None:
        while not enough.is_set():
            servers.count_connections(port, 1)

    clients = [threading.Thread(target=load, daemon=True) for _ in range(3)]
    try:
        servers.wait_until_serving(port)
        for client in clients:
            client.start()
        for attempt, duration_s in enumerate((0.4, 0.4, 0.4, 2.0)):
            folder = tmp_path / str(attempt)
            record(RecordOptions(port=port, duration_s=duration_s, packets=False, engine=engine), folder, Watcher())
            session = load_session(folder)
            assert len(session.connections) > 5
            assert session.info.syscalls.lost_count == 0
            # Children serve the port for a moment: they are no newcomers.
            assert not [note for note in session.info.notes if "port" in note], session.info.notes
    finally:
        enough.set()
        for client in clients:
            client.join(10)
        time.sleep(0.1)
        server.kill()
        server.wait()
