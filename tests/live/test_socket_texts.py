"""What `ss` and `netstat` print, against our own look at the same sockets; and what it alone can say of a fault."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from sockscope.analysis.build import build_session
from sockscope.fixture import Play, load
from sockscope.model.events import Events
from sockscope.model.findings import Confidence, Severity
from sockscope.model.info import SessionInfo, Target
from sockscope.model.packets import Packets
from sockscope.model.report import Report
from sockscope.model.seed import Seed
from sockscope.model.sockaddr import Family
from sockscope.model.sockets import STAND_IN_INODE
from sockscope.model.tcp import TcpState
from sockscope.pipeline.analyze import make_report
from sockscope.sources.sockets.owners import owners
from sockscope.sources.sockets.sock_diag import ALL_QUERIES, dump
from sockscope.sources.sockets.text.reader import SocketText, read_socket_texts
from tests.live.socket_hosts import eventually, python_process

pytestmark = pytest.mark.live

_CROWD = 2000
_HOST = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (8000, 8000))
kept = []
def serve(family, address, backlog):
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(address)
    made.listen(backlog)
    kept.append(made)
    return made
def pair(listener, address):
    client = socket.create_connection(address)
    kept.append(client)
    server = listener.accept()[0]
    kept.append(server)
    return client, server
four = serve(socket.AF_INET, ("127.0.0.1", 0), 64)
six = serve(socket.AF_INET6, ("::", 0), 64)
full = serve(socket.AF_INET, ("127.0.0.1", 0), 1)
for _ in range({_CROWD} // 2):
    pair(four, four.getsockname())
client, server = pair(four, four.getsockname())           # CLOSE_WAIT at the server, FIN_WAIT2 at the client
client.send(b"x" * 1000)
client.close()
client, server = pair(six, six.getsockname()[:2])
server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
pair(six, ("127.0.0.1", six.getsockname()[1]))            # v4-mapped
client, server = pair(six, six.getsockname()[:2])
server.close(); client.close()                            # TIME_WAIT
client, server = pair(four, four.getsockname())
server.sendall(b"y" * 5000)
for _ in range(2):
    kept.append(socket.create_connection(full.getsockname()))
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); datagrams.bind(("127.0.0.1", 0)); kept.append(datagrams)
kept += socket.socketpair()
named = serve(socket.AF_UNIX, "\\0sockscope text test", 5)
print(os.getpid(), four.getsockname()[1], six.getsockname()[1], full.getsockname()[1], flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Host:
    """A process with sockets in every state, at rest."""

    tgid: int
    ports: tuple[int, ...]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with python_process(_HOST) as (tgid, words):
        ports = tuple(map(int, words[1:]))
        wanted = {int(TcpState.CLOSE_WAIT), int(TcpState.FIN_WAIT2), int(TcpState.TIME_WAIT)}
        assert eventually(lambda: wanted <= set(dump(ports=ports)["state"].tolist()))
        yield Host(tgid=tgid, ports=ports)


def listing(folder: Path, command: Sequence[str]) -> SocketText:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    path = folder / "listing.txt"
    with path.open("w") as out:
        subprocess.run(command, stdout=out, check=True)
    return read_socket_texts([path])


def of_host(rows: npt.NDArray[np.void], host: Host) -> npt.NDArray[np.void]:
    """The host's TCP rows, in an order of their own."""
    mine = (rows["protocol"] == 6) & (np.isin(rows["local_port"], host.ports) | np.isin(rows["peer_port"], host.ports))
    rows = rows[mine]
    return rows[np.lexsort([rows["peer_port"], rows["local_port"], rows["family"]])]


ALWAYS = ("family", "protocol", "state", "local", "peer", "local_port", "peer_port", "recv_q")
DETAILS = ("inode", "uid")
INFO = ("has_info", "cwnd", "total_retrans", "unacked", "bytes_acked", "bytes_received")

VARIANTS = {
    "-tanpeimo": (*ALWAYS, "send_q", *DETAILS, "cookie", "timer", "retransmits", *INFO),
    "-tanpeimoO": (*ALWAYS, "send_q", *DETAILS, "cookie", "timer", "retransmits", *INFO),
    "-tanH": (*ALWAYS, "send_q"),
    "-tane": (*ALWAYS, "send_q", *DETAILS, "cookie"),
    "-tuxanpeim": (*ALWAYS, "send_q", *DETAILS, "cookie", *INFO),
    "-tan": (*ALWAYS, "send_q"),
    "-an": (*ALWAYS, "send_q"),
}


@pytest.mark.parametrize("options", VARIANTS)
def test_a_listing_of_ss_is_what_the_kernel_says(host: Host, tmp_path: Path, options: str) -> None:
    text = listing(tmp_path, ["ss", options])
    assert text.unread_count == 0
    ours, theirs = of_host(dump(), host), of_host(text.sockets.records, host)
    assert len(ours) > _CROWD
    for column in VARIANTS[options]:
        assert np.array_equal(ours[column], theirs[column]), column
    if "i" in options:
        # Printed with six digits.
        assert np.allclose(ours["rtt_us"], theirs["rtt_us"], rtol=1e-5, atol=1)
    if "o" in options:
        running = ours["timer"] != 0
        assert np.allclose(ours["timer_ms"][running], theirs["timer_ms"][running], atol=61_000)


@pytest.mark.parametrize("options", ["-anpe", "-tanpeW", "-tanpeo"])
def test_a_listing_of_netstat_is_what_the_kernel_says(host: Host, tmp_path: Path, options: str) -> None:
    text = listing(tmp_path, ["netstat", options])
    assert text.unread_count == 0
    ours, theirs = of_host(dump(), host), of_host(text.sockets.records, host)
    for column in (*ALWAYS, *DETAILS, *(("timer", "retransmits") if "o" in options else ())):
        assert np.array_equal(ours[column], theirs[column]), column
    assert not text.coverage.has_limits
    assert {tgid for tgid in text.sockets.owners["tgid"].tolist() if tgid == host.tgid}
    assert set(text.sockets.owners["fd"].tolist()) == {-1}


def test_owners_are_those_of_proc(host: Host, tmp_path: Path) -> None:
    text = listing(tmp_path, ["ss", "-tuxanpe"])
    told = text.sockets.owners[text.sockets.owners["tgid"] == host.tgid]
    table, _ = owners([host.tgid])
    assert {tuple(row) for row in told.tolist()} == {tuple(row) for row in table.tolist()}
    assert text.comms[host.tgid].startswith("python")


def test_unix_sockets_and_datagrams(host: Host, tmp_path: Path) -> None:
    text = listing(tmp_path, ["ss", "-uxanpe"])
    rows = text.sockets.records
    inodes = owners([host.tgid])[0]["inode"]
    ours = dump(families=ALL_QUERIES)
    for chosen in (rows["family"] == Family.UNIX, rows["protocol"] == 17):
        mine = rows[chosen & np.isin(rows["inode"], inodes)]
        kernel = ours[np.isin(ours["inode"], mine["inode"]) & (ours["protocol"] != 6)]
        assert len(mine) > 0
        for column in ("family", "type", "state", "peer_inode", "recv_q", "send_q", "path", "local_port"):
            by_inode = [side[column][np.argsort(side["inode"])].tolist() for side in (mine, kernel)]
            assert by_inode[0] == by_inode[1], column
    assert b"@sockscope text test" in rows["path"].tolist()


def test_without_inodes_the_queue_is_told_by_counting(host: Host, tmp_path: Path) -> None:
    full = host.ports[2]
    rows = listing(tmp_path, ["ss", "-tanp"]).sockets.records
    queued = rows[(rows["local_port"] == full) & (rows["state"] == TcpState.ESTABLISHED)]
    assert len(queued) == 2
    assert not queued["inode"].any()
    held = rows[(rows["local_port"] == host.ports[0]) & (rows["state"] == TcpState.ESTABLISHED)]
    assert (held["inode"] >= STAND_IN_INODE).all()
    blind = listing(tmp_path, ["ss", "-tan"])
    queued = blind.sockets.records[blind.sockets.records["local_port"] == full]
    assert (queued["inode"] >= STAND_IN_INODE).all()


# --- what a listing alone can say ---------------------------------------------------------------------------------


COMMANDS = (("ss", "-tanpeimo"), ("ss", "-tanp"), ("ss", "-tan"), ("netstat", "-tanpe"))
_APART_S = 3


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A fixture's sockets, listed twice by each command, with the date before."""

    folder: Path
    port: int

    def report(self, command: Sequence[str], *, dated: bool = True) -> Report:
        """What the two listings say, taken for themselves."""
        files = [self.folder / f"{number} {' '.join(command)}" for number in range(2)]
        if not dated:
            files = [_without_date(path) for path in files]
        text = read_socket_texts(files)
        times = text.sockets.records["time_ns"]
        info = SessionInfo(
            target=Target(ports=(self.port,)),
            started_realtime_ns=int(times.min()),
            started_ns=int(times.min()),
            ended_ns=int(times.max()),
            sockets=text.coverage,
            notes=text.notes,
        )
        session = build_session(
            info=info,
            seed=Seed.empty(),
            events=Events.empty(),
            packets=Packets.empty(),
            sockets=text.sockets,
            facts=text.facts,
        )
        return make_report(session)


def _without_date(path: Path) -> Path:
    bare = path.with_name(f"bare {path.name}")
    bare.write_text(path.read_text().split("\n", 1)[1])
    written = path.stat().st_mtime_ns
    os.utime(bare, ns=(written, written))
    return bare


def _listed(slug: str, program: str, folder: Path) -> Listed:
    with Play(load(slug), program) as play:
        play.need()
        server = play.start_server()
        play.wait_listening(server)
        play.drive(server)
        time.sleep(0.5)
        for number in range(2):
            for command in COMMANDS:
                if shutil.which(command[0]) is None:
                    pytest.skip(f"{command[0]} is not installed")
                with (folder / f"{number} {' '.join(command)}").open("w") as out:
                    subprocess.run(["date", "-Is"], stdout=out, check=True)
                    subprocess.run(command, stdout=out, check=True)
            time.sleep(0 if number else _APART_S)
        return Listed(folder=folder, port=play.port)


@pytest.fixture(scope="module")
def locked_out(tmp_path_factory: pytest.TempPathFactory) -> Listed:
    return _listed("unaccepted-connection", "faulty", tmp_path_factory.mktemp("listed"))


@pytest.fixture(scope="module")
def not_closing(tmp_path_factory: pytest.TempPathFactory) -> Listed:
    return _listed("close-wait-leak", "faulty", tmp_path_factory.mktemp("listed"))


@pytest.fixture(scope="module", params=["unaccepted-connection", "close-wait-leak"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Listed:
    return _listed(request.param, "sound", tmp_path_factory.mktemp("listed"))


@pytest.mark.parametrize("command", [("ss", "-tanpeimo"), ("ss", "-tanp"), ("netstat", "-tanpe")])
def test_connections_nobody_accepts(locked_out: Listed, command: Sequence[str]) -> None:
    report = locked_out.report(command)
    (finding,) = [each for each in report.findings if each.severity > Severity.INFO]
    assert (finding.rule, finding.count) == ("unaccepted-connection", 5)
    assert finding.confidence is not Confidence.CERTAIN
    assert finding.tgid > 0
    assert finding.comm.startswith("python")
    assert (finding.fd is not None) == (command[0] == "ss")


def test_without_inodes_nothing_is_said_of_accepting(locked_out: Listed) -> None:
    report = locked_out.report(("ss", "-tan"))
    assert "unaccepted-connection" not in {finding.rule for finding in report.findings}
    assert not any(row.connection.never_accepted for row in report.connections)
    (skip,) = [each for each in report.skipped if each.rule == "unaccepted-connection"]
    assert "no inodes" in skip.reason


@pytest.mark.parametrize("command", COMMANDS)
def test_connections_in_close_wait(not_closing: Listed, command: Sequence[str]) -> None:
    report = not_closing.report(command)
    (finding,) = report.findings
    assert (finding.rule, finding.count, finding.confidence) == ("missing-fin", 5, Confidence.POSSIBLE)
    assert "close-wait-leak" in {skip.rule for skip in report.skipped}
    assert (finding.tgid > 0) == ("p" in command[1])
    assert finding.comm.startswith("python") == ("p" in command[1])
    owned = [row.connection.owners for row in report.connections]
    assert all(owned) == ("p" in command[1])


@pytest.mark.parametrize("dated", [True, False])
@pytest.mark.parametrize("command", COMMANDS)
def test_of_a_sound_program_nothing_is_said(sound: Listed, command: Sequence[str], dated: bool) -> None:
    report = sound.report(command, dated=dated)
    assert not [finding for finding in report.findings if finding.severity > Severity.INFO]


def test_the_files_times_are_no_durations(locked_out: Listed) -> None:
    report = locked_out.report(("ss", "-tanpeimo"), dated=False)
    assert report.findings
    assert all(finding.confidence is Confidence.POSSIBLE for finding in report.findings)
    assert not report.info.sockets.times_known


def test_addresses_that_netstat_cuts_are_not_read(tmp_path: Path) -> None:
    body = (
        "made = socket.socket(socket.AF_INET6); made.bind(('2001:db8:1234:5678:9abc:def0:1234:5678', 0)); made.listen()"
    )
    folder = tmp_path / "listing.txt"
    script = (
        "ip link set lo up && ip addr add 2001:db8:1234:5678:9abc:def0:1234:5678/128 dev lo && "
        f'(python3 -c "import socket, time; {body}; print(1, flush=True); time.sleep(2)" | (read line; '
        f"netstat -tanW > {folder}.wide; netstat -tan > {folder}))"
    )
    done = subprocess.run(["unshare", "-n", "sh", "-c", script], check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"no network namespace with an address: {done.stderr!r}")
    wide = read_socket_texts([Path(f"{folder}.wide")]).sockets.records
    assert socket.inet_ntop(socket.AF_INET6, wide["local"][0].tobytes()) == "2001:db8:1234:5678:9abc:def0:1234:5678"
    with pytest.raises(Exception, match="-W"):
        read_socket_texts([folder])
