"""Servers under load, each with a figure of how much it served."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from sockscope.fixture import free_port

NGINX = """
worker_processes {workers}; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
    access_log off; keepalive_requests 1000000000;
    server {{ listen 127.0.0.1:{port}{reuseport}; location / {{ return 200 "hello"; }} }}
}}
"""
APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A server that runs.

    Attributes:
        pids: its processes.
        rate: puts it under load for about so many seconds; requests a second.
    """

    pids: tuple[int, ...]
    rate: Callable[[float], float]


def wrk(port: int, *headers: str) -> Callable[[float], float]:
    """One thread, 16 connections."""

    def rate(seconds: float) -> float:
        options = [word for header in headers for word in ("-H", header)]
        said = subprocess.run(
            ["wrk", "-t1", "-c16", f"-d{max(1, round(seconds))}s", *options, f"http://127.0.0.1:{port}/"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        if "Non-2xx" in said or ("Socket errors" in said and "connect 0" not in said):
            raise RuntimeError(said)
        return float(next(line for line in said.splitlines() if line.startswith("Requests/sec")).split()[1])

    return rate


def redis_benchmark(port: int) -> Callable[[float], float]:
    """GET without pipelining. It counts requests, not seconds: a short run first tells how many fit."""

    def run(count: int) -> float:
        said = subprocess.run(
            ["redis-benchmark", "-p", str(port), "-P", "1", "-c", "16", "-n", str(count), "-t", "get", "-q"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return float(re.findall(r"GET: ([0-9.]+) requests per second", said)[-1])

    return lambda seconds: run(int(run(1000) * seconds) + 1)


@contextmanager
def started(command: list[str], processes: int) -> Iterator[tuple[int, ...]]:
    """A server and so many processes of it in all: their pids."""
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        found: list[int] = []
        while len(found) < processes:
            time.sleep(0.1)
            if first.poll() is not None:
                raise RuntimeError(f"{command} ended at once")
            found = [first.pid, *(child.pid for child in psutil.Process(first.pid).children(recursive=True))]
        time.sleep(0.5)
        yield tuple(found)
    finally:
        first.terminate()
        first.wait()


@contextmanager
def nginx(workers: int, *headers: str) -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        reuseport = " reuseport" if workers > 1 else ""
        (Path(folder) / "conf").write_text(NGINX.format(workers=workers, folder=folder, port=port, reuseport=reuseport))
        with started(["nginx", "-c", f"{folder}/conf", "-p", folder], 1 + workers) as pids:
            yield Served(pids=pids, rate=wrk(port, *headers))


@contextmanager
def redis() -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        line = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        with started(line, 1) as pids:
            yield Served(pids=pids, rate=redis_benchmark(port))


@contextmanager
def gunicorn() -> Iterator[Served]:
    """One sync worker: a connection a request."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        (Path(folder) / "app.py").write_text(APP)
        line = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--chdir", folder, "app:app"]
        with started(line, 2) as pids:
            yield Served(pids=pids, rate=wrk(port))


LOADS: dict[str, Callable[[], AbstractContextManager[Served]]] = {
    "nginx, 1 worker, keep-alive": lambda: nginx(1),
    "nginx, 2 workers, keep-alive": lambda: nginx(2),
    "nginx, 1 worker, a connection a request": lambda: nginx(1, "Connection: close"),
    "redis, GET, no pipelining": redis,
    "gunicorn, 1 sync worker": gunicorn,
}
