"""Real servers from the package registries, each started on a free port, and real clients."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
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

WSGI_APP = """
def application(environ, start_response):
    page = b"<p>hello</p>" * 10
    start_response("200 OK", [("Content-Length", str(len(page))), ("Connection", "close")])
    return [page]
"""

NODE_APP = """
const server = require("http").createServer((request, response) => response.end("<p>hello</p>"));
server.listen(Number(process.argv[2]), "127.0.0.1");
process.on("SIGTERM", () => { server.close(); server.closeIdleConnections(); });
"""

AS_POSTGRES = ("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups")


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
    speaks: str = "http"
    reload: signal.Signals | None = None
    """Asks it to take up its configuration without losing a client."""
    renews: bool = True
    """To reload is to replace its children, where it has any."""
    stop: signal.Signals = signal.SIGTERM
    """Asks it to end what it has begun, and then to end."""
    drains: bool = True
    """Whether it does."""


@contextmanager
def ground() -> Iterator[Path]:
    """A folder for a server whose workers drop root: pytest's own folders let nobody else in."""
    with tempfile.TemporaryDirectory(prefix="sockscope-server-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


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
    return Server(
        name="nginx", command=("nginx", "-c", f"{folder}/nginx.conf", "-e", f"{folder}/error.log"), port=port,
        folder=folder, reload=signal.SIGHUP, stop=signal.SIGQUIT,
    )  # fmt: skip


def redis(folder: Path) -> Server:
    port = free_port()
    command = ("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder))
    return Server(name="redis", command=command, port=port, folder=folder, speaks="redis", drains=False)


def gunicorn(folder: Path) -> Server:
    port = free_port()
    (folder / "app.py").write_text(FLASK_APP)
    command = (
        sys.executable, "-m", "gunicorn", "--workers", "2", "--bind", f"127.0.0.1:{port}", "--log-level", "error",
        "--chdir", str(folder), "app:app",
    )  # fmt: skip
    return Server(name="gunicorn", command=command, port=port, folder=folder, reload=signal.SIGHUP)


def flask(folder: Path) -> Server:
    port = free_port()
    (folder / "app.py").write_text(FLASK_APP)
    command = (sys.executable, "-m", "flask", "--app", str(folder / "app.py"), "run", "--port", str(port))
    return Server(name="flask", command=command, port=port, folder=folder, stop=signal.SIGINT, drains=False)


def http_server(folder: Path) -> Server:
    port = free_port()
    (folder / "index.html").write_text("<p>hello</p>")
    command = (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder))
    return Server(name="http.server", command=command, port=port, folder=folder, stop=signal.SIGINT, drains=False)


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
    # A master and a worker: reloading takes a new worker.
    command = ("haproxy", "-W", "-db", "-f", str(folder / "haproxy.cfg"))
    return Server(
        name="haproxy", command=command, port=port, folder=folder, behind=(behind,), reload=signal.SIGUSR2,
        stop=signal.SIGUSR1,
    )  # fmt: skip


def apache(folder: Path, model: str) -> Server:
    """`model`: the processing module, prefork or event."""
    port = free_port()
    (folder / "index.html").write_text("<p>hello</p>")
    (folder / "httpd.conf").write_text(
        textwrap.dedent(f"""
        ServerRoot {folder}
        ServerName localhost
        Listen 127.0.0.1:{port}
        PidFile {folder}/httpd.pid
        DefaultRuntimeDir {folder}
        ErrorLog {folder}/error.log
        LoadModule mpm_{model}_module /usr/lib/apache2/modules/mod_mpm_{model}.so
        LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
        LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so
        User www-data
        Group www-data
        StartServers {8 if model == "prefork" else 2}
        DocumentRoot {folder}
        KeepAlive On
        KeepAliveTimeout 5
        """)
    )
    command = ("apache2", "-d", str(folder), "-f", str(folder / "httpd.conf"), "-DNO_DETACH")
    return Server(
        name=f"apache-{model}", command=command, port=port, folder=folder, reload=signal.SIGUSR1, stop=signal.SIGWINCH,
    )  # fmt: skip


def lighttpd(folder: Path) -> Server:
    port = free_port()
    (folder / "index.html").write_text("<p>hello</p>")
    (folder / "lighttpd.conf").write_text(
        textwrap.dedent(f"""
        server.document-root = "{folder}"
        server.bind = "127.0.0.1"
        server.port = {port}
        index-file.names = ("index.html")
        server.errorlog = "{folder}/error.log"
        """)
    )
    return Server(
        name="lighttpd", command=("lighttpd", "-D", "-f", str(folder / "lighttpd.conf")), port=port, folder=folder,
        reload=signal.SIGUSR1, stop=signal.SIGINT,
    )  # fmt: skip


def uwsgi(folder: Path) -> Server:
    port = free_port()
    (folder / "page.py").write_text(WSGI_APP)
    command = (
        "uwsgi-core", "--plugin", "python3", "--master", "--processes", "2", "--http-socket", f"127.0.0.1:{port}",
        "--chdir", str(folder), "--module", "page", "--need-app", "--disable-logging", "--die-on-term",
        "--hook-master-start", "unix_signal:15 gracefully_kill_them_all",
    )  # fmt: skip
    return Server(name="uwsgi", command=command, port=port, folder=folder, reload=signal.SIGHUP)


def node(folder: Path) -> Server:
    port = free_port()
    (folder / "server.js").write_text(NODE_APP)
    return Server(name="node", command=("node", str(folder / "server.js"), str(port)), port=port, folder=folder)


def postgres(folder: Path) -> Server:
    """Its programs are in a folder of their own, and refuse to be root."""
    port = free_port()
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("postgresql-is-not-installed"))
    data = folder / "data"
    shutil.chown(folder, "postgres", "postgres")
    make = (*AS_POSTGRES, str(programs / "initdb"), "--no-sync", "--no-locale", "--auth=trust", "--pgdata", str(data))
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL, cwd="/")
    command = (
        *AS_POSTGRES, str(programs / "postgres"), "-D", str(data), "-p", str(port), "-c", "listen_addresses=127.0.0.1",
        "-c", f"unix_socket_directories={data}", "-c", "fsync=off", "-c", "shared_buffers=16MB",
    )  # fmt: skip
    return Server(
        name="postgres", command=command, port=port, folder=folder, speaks="postgres", reload=signal.SIGHUP,
        renews=False,
    )  # fmt: skip


SERVERS: dict[str, Callable[[Path], Server]] = {
    "nginx": nginx,
    "redis": redis,
    "gunicorn": gunicorn,
    "flask": flask,
    "http.server": http_server,
    "haproxy": haproxy,
    "apache-prefork": partial(apache, model="prefork"),
    "apache-event": partial(apache, model="event"),
    "lighttpd": lighttpd,
    "uwsgi": uwsgi,
    "node": node,
    "postgres": postgres,
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


def pgbench(server: Server, *arguments: str) -> tuple[str, ...]:
    """The command that asks PostgreSQL `select`, and again a few ms later."""
    script = server.folder / "select.sql"
    script.write_text("select count(*) from pg_class;\n\\sleep 4 ms\n")
    return (
        str(max(Path("/usr/lib/postgresql").glob("*/bin/pgbench"))), "--host", "127.0.0.1", "--port", str(server.port),
        "--username", "postgres", "--no-vacuum", "--file", str(script), *arguments, "postgres",
    )  # fmt: skip


def count_connections(port: int, count: int) -> None:
    """Exactly `count` connections that send a request and read the answer to its end."""
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
            while client.recv(65536):
                pass
