"""Two network namespaces and between them a path that loses, delays, doubles, reorders: a TUN device in each.

The kernel here need not have netem: a thread of the test hands the packets over, and decides what happens to each.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x400454CA, 0x1, 0x1000, 0x4000
_TUNSETOFFLOAD, _TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6 = 0x400454D0, 0x1, 0x2, 0x4
_LONGEST_PACKET = 65536 + 10  # with virtio's header, where segmentation is left to the other end
CLIENT, SERVER = "10.231.7.1", "10.231.7.2"
CLIENT_6, SERVER_6 = "fd00:231::1", "fd00:231::2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What happens to packets on the way, each direction alike.

    Attributes:
        delay_s: one way.
        loss, duplicates, reordering: shares of all packets.
        reordering_s: by how much more a reordered packet is delayed.
        jitter_s: up to how much more each packet is delayed, each by itself.
        bytes_s: how much goes through in a second, each way; 0: no bound.
        queued_s: what would wait for longer than that to get through is lost.
        seed: the same seed, the same choices.
    """

    delay_s: float = 0.0
    loss: float = 0.0
    duplicates: float = 0.0
    reordering: float = 0.0
    reordering_s: float = 0.001
    jitter_s: float = 0.0
    bytes_s: int = 0
    queued_s: float = 0.05
    seed: int = 1

    def fate(self, choice: random.Random) -> Sequence[float]:
        """The delays after which copies of one packet arrive; none: it is lost."""
        if choice.random() < self.loss:
            return ()
        delay = self.delay_s + (self.reordering_s if choice.random() < self.reordering else 0.0)
        delay += self.jitter_s * choice.random() if self.jitter_s else 0.0
        return (delay, delay + 0.0002) if choice.random() < self.duplicates else (delay,)


class Network:
    """Its ends by name: run programs in them, capture at them.

    Args:
        path: the weather on the way. name: what its ends' names begin with.
        offload: the kernels hand over segments far above the MTU, as to a network card that cuts them itself.
        settings: sysctl → value, below net.ipv4, of both ends.
    """

    def __init__(self, path: Weather, name: str, *, offload: bool, settings: Mapping[str, str]) -> None:
        self.client, self.server = f"{name}c", f"{name}s"
        self._path, self._offload, self._settings = path, offload, settings
        self._stop = threading.Event()
        self._devices: list[int] = []
        self._thread = threading.Thread(target=self._carry)

    def open(self) -> None:
        ends = ((self.client, CLIENT, CLIENT_6), (self.server, SERVER, SERVER_6))
        for (space, own, own_6), (_, other, _) in zip(ends, ends[::-1], strict=True):
            _run("ip", "netns", "add", space)
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            self._devices.append(device)
            kind = _IFF_TUN | _IFF_NO_PI | (_IFF_VNET_HDR if self._offload else 0)
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", space.encode(), kind))
            if self._offload:
                fcntl.ioctl(device, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6)
            _run("ip", "link", "set", space, "netns", space)
            inside = ("ip", "-n", space)
            _run(*inside, "addr", "add", own, "peer", other, "dev", space)
            _run(*inside, "addr", "add", f"{own_6}/64", "dev", space, "nodad")
            _run(*inside, "link", "set", space, "up")
            _run(*inside, "link", "set", "lo", "up")
            for name, value in self._settings.items():
                _run("ip", "netns", "exec", space, "sysctl", "-q", "-w", f"net.ipv4.{name}={value}")
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for device in self._devices:
            os.close(device)
        for space in (self.client, self.server):
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)

    def _carry(self) -> None:
        choice = random.Random(self._path.seed)
        waiting: list[tuple[float, int, int, bytes]] = []
        number, free_at = 0, dict.fromkeys(self._devices, 0.0)
        while not self._stop.is_set():
            pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 0.05
            ready, _, _ = select.select(self._devices, [], [], min(pause, 0.05))
            for device in ready:
                try:
                    packet = os.read(device, _LONGEST_PACKET)
                except BlockingIOError:
                    continue
                now = time.monotonic()
                if self._path.bytes_s:
                    if free_at[device] > now + self._path.queued_s:
                        continue
                    now = free_at[device] = max(now, free_at[device]) + len(packet) / self._path.bytes_s
                for delay in self._path.fate(choice):
                    number += 1
                    to = self._devices[1 - self._devices.index(device)]
                    heapq.heappush(waiting, (now + delay, number, to, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, to, packet = heapq.heappop(waiting)
                os.write(to, packet)


@contextmanager
def network(
    path: Weather, name: str = "sswire", *, offload: bool = False, settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Network]:
    """Both ends up, the path between them at work."""
    made = Network(path, name, offload=offload, settings=settings)
    try:
        made.open()
        yield made
    finally:
        made.close()


@contextmanager
def captured(space: str, interface: str, file: Path) -> Iterator[None]:
    """tcpdump at one interface, TCP alone, until everything before the end is in the file."""
    arguments = ["ip", "netns", "exec", space, "tcpdump", "-i", interface, "-U", "-n", "-s", "160", "-w", str(file)]
    tcpdump = subprocess.Popen([*arguments, "--immediate-mode", "tcp"], stderr=subprocess.PIPE, text=True)
    assert tcpdump.stderr is not None
    with ExitStack() as stack:
        stack.callback(tcpdump.stderr.close)
        while "listening on" not in tcpdump.stderr.readline():
            assert tcpdump.poll() is None, "tcpdump does not run"
        try:
            yield
            time.sleep(0.3)
        finally:
            tcpdump.terminate()
            said = tcpdump.stderr.read()
            tcpdump.wait()
        assert "0 packets dropped by kernel" in said, said


def _run(*arguments: str) -> None:
    subprocess.run(arguments, check=True, capture_output=True)
