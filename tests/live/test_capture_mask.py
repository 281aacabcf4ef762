"""What looks like credentials never reaches the capture file."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from sockscope.sources.packets.live import Capture

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

SECRETS = [
    b"GET / HTTP/1.1\r\nAuthorization: Basic hunter2x\r\n\r\n",
    b"AUTH hunter2x\r\n",
    b"GET /?token=hunter2x HTTP/1.1\r\n",
]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("redact", [True, False])
def test_secrets_in_the_file(tmp_path: Path, family: socket.AddressFamily, redact: bool) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family) as server:
        server.bind((host, 0))
        server.listen()
        port = server.getsockname()[1]
        path = tmp_path / "x.pcapng"
        with Capture(interfaces=["lo"], ports=[port], path=path, redact=redact):
            for secret in SECRETS:
                with socket.create_connection((host, port)) as client, server.accept()[0] as peer:
                    client.sendall(secret)
                    assert peer.recv(1000) == secret
            time.sleep(0.2)
    assert path.read_bytes().count(b"hunter2x") == (0 if redact else len(SECRETS))
