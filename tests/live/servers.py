"""Real servers from the package registries, each started on a free port, and real clients."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from sockscope.fixture import free_port

FLASK_APP = """
from flask import Flask
app = Flask(__name__)

@app.get("/")
def index():
    return "<p>hello</p>" * 10
"""


@dataclass(frozen=True, kw_only=True)
class Server:
    """How to start one, and on which port it serves."""

    name: str
    command: tuple[str, ...]
    port: int
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    behind: tuple[Server, ...] = ()
    """Servers that must run first (haproxy's backend)."""


def nginx(folder: Path, workers: int = 2) -> Server:
    port = free_port()
    (folder / "nginx.conf").write_text(
        textwrap.dedent(f"""
        daemon off;
        worker_processes {workers};
        pid {folder}/nginx.pid;
        error_log {folder}/error.log;
        events {{ worker_connections 512; }}
        http {{
            access_log off;
            client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fcgi;
            uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
            keepalive_requests 1000000;
            server {{ listen 127.0.0.1:{port}; location / {{ return 200 "hello\\n"; }} }}
        }}
        """)
    )
    # The workers drop root; they must still reach their folder.
    folder.chmod(0o755)
    return Server(
        name="nginx", command=("nginx", "-c", f"{folder}/nginx.conf", "-e", f"{folder}/error.log"), port=port,
        folder=folder,
    )  # fmt: skip


def redis(folder: Path) -> Server:
    port = free_port()
    command = ("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder))
    return Server(name="redis", command=command, port=port, folder=folder)


def gunicorn(folder: Path) -> Server:
    port = free_port()
    (folder / "app.py").write_text(FLASK_APP)
    command = (
        sys.executable, "-m", "gunicorn", "--workers", "2", "--bind", f"127.0.0.1:{port}", "--log-level", "error",
        "--chdir", str(folder), "app:app",
    )  # fmt: skip
    return Server(name="gunicorn", command=command, port=port, folder=folder)


def flask(folder: Path) -> Server:
    port = free_port()
    (folder / "app.py").write_text(FLASK_APP)
    command = (sys.executable, "-m", "flask", "--app", str(folder / "app.py"), "run", "--port", str(port))
    return Server(name="flask", command=command, port=port, folder=folder)


def http_server(folder: Path) -> Server:
    port = free_port()
    (folder / "index.html").write_text("<p>hello</p>")
    command = (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder))
    return Server(name="http.server", command=command, port=port, folder=folder)


def haproxy(folder: Path) -> Server:
    behind = nginx(folder, workers=1)
    port = free_port()
    (folder / "haproxy.cfg").write_text(
        textwrap.dedent(f"""
        global
            maxconn 500
        defaults
            mode http
            timeout connect 5s
            timeout client 10s
            timeout server 10s
        frontend in
            bind 127.0.0.1:{port}
            default_backend out
        backend out
            server one 127.0.0.1:{behind.port}
        """)
    )
    command = ("haproxy", "-db", "-f", str(folder / "haproxy.cfg"))
    return Server(name="haproxy", command=command, port=port, folder=folder, behind=(behind,))


SERVERS: dict[str, Callable[[Path], Server]] = {
    "nginx": nginx,
    "redis": redis,
    "gunicorn": gunicorn,
    "flask": flask,
    "http.server": http_server,
    "haproxy": haproxy,
}


def wait_until_serving(port: int, timeout_s: float = 15.0) -> None:
    """Until somebody listens (read from /proc: no connection is made)."""
    wanted = f":{port:04X}"
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(wanted) and fields[3] == "0A":
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on {port}")


@contextmanager
def running(server: Server) -> Iterator[int]:
    """Start the server (and what it stands before); its pid once it serves and its workers stand."""
    if shutil.which(server.command[0]) is None:
        raise FileNotFoundError(f"{server.command[0]} is not installed: tools/test.sh installs it")
    started: list[subprocess.Popen[bytes]] = []
    try:
        for each in (*server.behind, server):
            with (each.folder / f"{each.name}.out").open("wb") as out:
                started.append(
                    subprocess.Popen(each.command, stdout=out, stderr=out, env={**os.environ, **each.environment})
                )
            wait_until_serving(each.port)
        time.sleep(0.4)
        yield started[-1].pid
    finally:
        for process in reversed(started):
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL, to what we started and its children."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    try:
        process.wait(8)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)
    for member in family:
        if member.is_running() and member.pid != process.pid:
            member.send_signal(signal.SIGKILL)


def curl_many(port: int, count: int, paths: Sequence[str] = ("/",)) -> list[int]:
    """`count` connections one after the other, by curl; the status of each answer."""
    codes = []
    for i in range(count):
        done = subprocess.run(
            ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{port}{paths[i % len(paths)]}"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        codes.append(int(done.stdout or 0))
    return codes


def wrk(port: int, seconds: float = 2, connections: int = 8, *, close: bool = False) -> str:
    """Load by wrk; its report."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s"]
    if close:
        command += ["-H", "Connection: close"]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/"], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def redis_benchmark(port: int, connections: int = 10, requests: int = 5000) -> str:
    done = subprocess.run(
        ["redis-benchmark", "-p", str(port), "-c", str(connections), "-n", str(requests), "-t", "set,get", "-q"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def count_connections(port: int, count: int) -> None:
    """Exactly `count` connections that send a request and read the answer to its end."""
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
            while client.recv(65536):
                pass
