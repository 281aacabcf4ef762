"""Socket states, owners and the sampler on real sockets."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from sockscope.errors import CannotObserveError
from sockscope.model.sockaddr import Family
from sockscope.model.sockets import OWNER_DTYPE
from sockscope.model.tcp import TcpState
from sockscope.sources.sockets.listeners import descendants, listening_ports, tgids_of_port
from sockscope.sources.sockets.netns import in_netns, netns_of
from sockscope.sources.sockets.owners import owners
from sockscope.sources.sockets.sampler import Sampler
from sockscope.sources.sockets.sock_diag import ALL_QUERIES, UDP_QUERIES, UNIX_QUERIES, Query, dump, state_mask
from tests.live.socket_hosts import eventually, forked, listener, python_process

pytestmark = pytest.mark.live


def states_at(port: int) -> list[int]:
    return sorted(dump(ports=[port], local_ports_only=True)["state"].tolist())


def test_close_wait_held_and_close_wait_never_accepted() -> None:
    with listener() as server:
        port = server.getsockname()[1]
        held_client = socket.create_connection(server.getsockname())
        held, _ = server.accept()
        waiting_client = socket.create_connection(server.getsockname())
        held_client.send(b"hello")
        held_client.close()
        waiting_client.close()
        wanted = [TcpState.CLOSE_WAIT, TcpState.CLOSE_WAIT, TcpState.LISTEN]
        assert eventually(lambda: states_at(port) == sorted(wanted))
        rows = dump(ports=[port], local_ports_only=True)
        left = rows[rows["state"] == TcpState.CLOSE_WAIT]
        inode = os.fstat(held.fileno()).st_ino
        assert sorted(left["inode"].tolist()) == [0, inode]
        # The FIN counts as one byte.
        assert left["recv_q"][left["inode"] == inode].tolist() == [6]
        (listening,) = rows[rows["state"] == TcpState.LISTEN]
        assert (listening["recv_q"], listening["send_q"]) == (1, 8)
        table, unreadable = owners([os.getpid()], np.array([inode], np.uint64))
        assert table.tolist() == [(inode, os.getpid(), held.fileno())]
        assert unreadable == 0
        held.close()


def test_the_cookie_survives_the_accept() -> None:
    with listener() as server:
        port = server.getsockname()[1]
        with socket.create_connection(server.getsockname()):
            before = dump(ports=[port], local_ports_only=True, states=state_mask([TcpState.ESTABLISHED]))
            accepted, _ = server.accept()
            with accepted:
                after = dump(ports=[port], local_ports_only=True, states=state_mask([TcpState.ESTABLISHED]))
                assert before["cookie"].tolist() == after["cookie"].tolist()
                assert before["inode"].tolist() == [0]
                assert after["inode"].tolist() == [os.fstat(accepted.fileno()).st_ino]
                assert after["netns"].tolist() == [netns_of()]
                assert after["has_info"].tolist() == [1]


def test_ports_filter_at_either_end_also_with_many_ports() -> None:
    with listener() as server, socket.create_connection(server.getsockname()) as client:
        port, other = server.getsockname()[1], client.getsockname()[1]
        both = dump(ports=[port])
        assert {port, other} <= set(both["local_port"].tolist())
        own = dump(ports=[port], local_ports_only=True)
        assert set(own["local_port"].tolist()) == {port}
        # So many ranges that the kernel is not asked to filter.
        many = dump(ports={port, *range(2, 2000, 2)}, local_ports_only=True)
        assert set(own["cookie"].tolist()) <= set(many["cookie"].tolist())
        assert len(dump(ports=[])) == 0


def test_time_wait_has_no_inode_and_v6_is_seen() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(server.getsockname()[:2])
        accepted, _ = server.accept()
        client.close()
        accepted.close()
        assert eventually(lambda: TcpState.TIME_WAIT in dump(ports=[port])["state"])
        rows = dump(families=[Query.TCP6], ports=[port], states=state_mask([TcpState.TIME_WAIT]))
        assert rows["inode"].tolist() == [0]
        assert rows["has_info"].tolist() == [0]
        assert bytes(rows["local"][0]) == socket.inet_pton(socket.AF_INET6, "::1")


def test_more_sockets_than_one_datagram_holds() -> None:
    with listener(backlog=600) as server:
        port = server.getsockname()[1]
        clients = [socket.create_connection(server.getsockname()) for _ in range(400)]
        rows = dump(ports=[port], local_ports_only=True)
        assert sorted(rows["peer_port"][rows["peer_port"] != 0].tolist()) == sorted(
            client.getsockname()[1] for client in clients
        )
        for client in clients:
            client.close()


def test_udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        port = receiver.getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x" * 10, receiver.getsockname())
        (row,) = dump(families=UDP_QUERIES, ports=[port], local_ports_only=True)
        assert (row["protocol"], row["family"], row["state"]) == (17, Family.INET, TcpState.CLOSE)
        assert row["recv_q"] > 0


def test_unix_names_peers_and_queues(tmp_path: Path) -> None:
    path = str(tmp_path / "a.sock")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as abstract:
        server.bind(path)
        server.listen(5)
        abstract.bind(f"\0sockscope-test-{os.getpid()}")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            rows = dump(families=UNIX_QUERIES)
            inode = {name: os.fstat(s.fileno()).st_ino for name, s in (("server", server), ("client", client))}
            (listening,) = rows[rows["inode"] == inode["server"]]
            assert listening["path"].decode() == path
            assert (listening["state"], listening["recv_q"]) == (TcpState.LISTEN, 1)
            assert f"@sockscope-test-{os.getpid()}".encode() in rows["path"].tolist()
            accepted, _ = server.accept()
            with accepted:
                # The peer has an inode only now.
                rows = dump(families=UNIX_QUERIES)
                (connected,) = rows[rows["inode"] == inode["client"]]
                assert connected["peer_inode"] == os.fstat(accepted.fileno()).st_ino
                assert connected["type"] == socket.SOCK_STREAM


def test_owners_of_a_shared_socket_are_all_who_share_it() -> None:
    with listener() as server, forked() as child:
        inode = os.fstat(server.fileno()).st_ino
        table, _ = owners(inodes=np.array([inode], np.uint64))
        assert table.dtype == OWNER_DTYPE
        assert sorted(table["tgid"].tolist()) == sorted([os.getpid(), child])
        alone, _ = owners([child], workers=0)
        assert set(alone["tgid"].tolist()) == {child}
        assert inode in alone["inode"].tolist()


def test_who_serves_a_port_and_what_a_process_serves() -> None:
    body = "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"
    fork = "s = socket.create_server(('127.0.0.1', 0)); k = os.fork()\nif k: print(s.getsockname()[1], k, flush=True)"
    with python_process(body) as (pid, (port,)), python_process(fork) as (parent, (shared, child)):
        assert tgids_of_port(int(port)) == [pid]
        assert listening_ports([pid]) == [int(port)]
        assert sorted(tgids_of_port(int(shared))) == sorted([parent, int(child)])
        assert descendants([parent]) == [parent, int(child)]
        os.kill(int(child), 9)
    assert tgids_of_port(int(port)) == []
    assert os.getpid() not in descendants([os.getppid()])


def test_another_network_namespace() -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("no network namespace can be made here")
    # Its loopback is down, but a listener on any address works.
    body = "s = socket.create_server(('', 0)); print(s.getsockname()[1], os.getpid(), flush=True)"
    with python_process(body, prefix=("unshare", "-n")) as (_, (port, name)):
        pid, wanted = int(name), int(port)
        here = netns_of()
        rows = in_netns(pid, lambda: dump(ports=[wanted], local_ports_only=True))
        assert rows["netns"].tolist() == [netns_of(pid)]
        assert netns_of() == here != netns_of(pid)
        assert tgids_of_port(wanted) == [pid]
        assert listening_ports([pid]) == [wanted]
        sampler = Sampler(ports=[wanted], tgids=[pid], netns_pid=pid)
        sampler.start()
        found = sampler.stop()
        assert found.records["local_port"].tolist() == [wanted]
        assert found.owners["tgid"].tolist() == [pid]


def test_a_namespace_that_is_gone() -> None:
    with python_process("print('ready', flush=True)") as (pid, _):
        pass
    sampler = Sampler(ports=[1], netns_pid=pid)
    sampler.start()
    assert len(sampler.stop()) == 0
    with pytest.raises(CannotObserveError):
        in_netns(pid, lambda: _entered(pid))


def _entered(pid: int) -> None:
    from sockscope.sources.sockets.netns import enter_netns

    enter_netns(pid)


def states_in(snapshots: list[npt.NDArray[np.void]], cookie: int) -> list[int]:
    """A socket's state in each snapshot that shows it."""
    return [int(s) for rows in snapshots for s in rows["state"][rows["cookie"] == cookie]]


def test_the_sampler_follows_the_target_through_its_states() -> None:
    before = threading.active_count()
    with listener() as server, listener() as elsewhere:
        port = server.getsockname()[1]
        sampler = Sampler(ports=[port], tgids=[], period_s=0.05)
        sampler.start()
        snapshots: list[npt.NDArray[np.void]] = []

        def seen() -> list[int]:
            snapshots.extend(sampler.drain())
            return states_in(snapshots, cookie)

        with socket.create_connection(server.getsockname()), socket.create_connection(elsewhere.getsockname()):
            accepted, _ = server.accept()
            established = dump(ports=[port], local_ports_only=True, states=state_mask([TcpState.ESTABLISHED]))
            cookie = int(established["cookie"][0])
            assert eventually(lambda: seen()[-1:] == [TcpState.ESTABLISHED])
        assert eventually(lambda: seen()[-1:] == [TcpState.CLOSE_WAIT])
        final = sampler.stop()
        snapshots.extend(sampler.drain())
        numbers = [int(rows["snapshot"][0]) for rows in snapshots]
        assert numbers == list(range(len(snapshots)))
        assert sampler.snapshot_count == len(snapshots) + 1
        assert set(np.concatenate(snapshots)["local_port"].tolist()) == {port}
        assert final.owners[final.owners["fd"] == accepted.fileno()]["tgid"].tolist() == [os.getpid()]
        accepted.close()
    assert threading.active_count() == before


def test_the_sampler_sees_what_the_target_connects_to_and_its_unix_sockets() -> None:
    body = """
c = socket.create_connection(('127.0.0.1', PORT))
pair = socket.socketpair()
print(c.getsockname()[1], os.fstat(pair[0].fileno()).st_ino, flush=True)
"""
    with (
        listener() as server,
        python_process(body.replace("PORT", str(server.getsockname()[1]))) as (pid, (port, inode)),
    ):
        sampler = Sampler(ports=[], tgids=[pid])
        sampler.start()
        found = sampler.stop().records
        assert int(port) in found["local_port"].tolist()
        assert int(inode) in found["inode"].tolist()
        assert server.getsockname()[1] not in found["local_port"].tolist()


def test_all_tables_at_once() -> None:
    rows = dump(families=ALL_QUERIES, time_ns=5, snapshot=9)
    assert set(rows["time_ns"].tolist()) <= {5}
    assert set(rows["snapshot"].tolist()) <= {9}
