"""What every rule says alike: evidence made from table rows, times and counts in words, the shared thresholds."""

from __future__ import annotations

from collections.abc import Iterable

from sockscope.analysis.narration.describe import describe
from sockscope.analysis.session import Session
from sockscope.model.findings import Evidence, Source
from sockscope.model.sockaddr import from_key
from sockscope.model.tcp import TcpFlag, TcpState

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

GRACE_NS = NS_PER_S
"""How long a program may take before "has not" counts as "does not": a busy server closes late, and rightly."""

EVIDENCE_LIMIT = 8
"""Facts a finding carries at most: enough to follow the story of its worst connection."""

CONNECTION = "connection"


def since_start(session: Session, time_ns: int) -> str:
    """A moment as reports write it: `+1.204 s` after watching began."""
    return f"{(time_ns - session.info.started_ns) / NS_PER_S:+.3f} s"


def span(duration_ns: int) -> str:
    """A duration with the unit that suits it: `412 µs`, `3.2 ms`, `1.20 s`, `31 s`, `12 min`."""
    if duration_ns < NS_PER_MS:
        return f"{duration_ns / 1000:.0f} µs"
    if duration_ns < NS_PER_S:
        return f"{duration_ns / NS_PER_MS:.1f} ms"
    seconds = duration_ns / NS_PER_S
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """`1 connection`, `5 connections`; `many` where an s does not do."""
    return f"{count} {noun if count == 1 else many or noun + 's'}"


def share(part: int, whole: int, noun: str = CONNECTION) -> str:
    """`49 of 50 connections`; `all 5 connections`; `the only connection`."""
    if whole <= 1:
        return f"the only {noun}"
    if part == whole:
        return f"all {whole} {noun}s"
    return f"{part} of {whole} {noun}s"


def listed(words: Iterable[str], limit: int = 6) -> str:
    """`7`, `7 and 9`, `7, 9 and 4 more`: a list in words, cut after `limit`."""
    every = list(words)
    if len(every) > limit:
        return f"{', '.join(every[: limit - 1])} and {len(every) - limit + 1} more"
    if len(every) < 2:
        return "".join(every)
    return f"{', '.join(every[:-1])} and {every[-1]}"


def who(session: Session, tgid: int, tid: int | None = None) -> str:
    """A process, or a thread of it where it is not the first: `nginx[812]`, `nginx[812/815]`."""
    thread = f"/{tid}" if tid is not None and tid != tgid else ""
    return f"{session.comm(tgid)}[{tgid}{thread}]"


def program(session: Session, tgid: int) -> str:
    """What the process runs: workers of one server share a cause, so findings group by this."""
    process = session.processes.get(tgid)
    return (process.exe or process.comm) if process else str(tgid)


def noted(text: str, note: str) -> str:
    """A fact, and in brackets what it shows."""
    return f"{text}  ({note})" if note else text


def from_event(session: Session, event: int, note: str = "") -> Evidence:
    """A syscall or task event as evidence, in strace's words; `note` says why it matters."""
    row = session.events.records[event]
    actor = who(session, int(row["tgid"]), int(row["tid"]))
    return Evidence(
        source=Source.SYSCALL,
        time_ns=int(session.effective_ns[event]),
        text=noted(f"{actor} {describe(session.events, event)}", note),
        ref=event,
    )


def from_packet(session: Session, row: int, note: str = "") -> Evidence:
    """A packet as evidence: `127.0.0.1:80 > 127.0.0.1:4242 FIN,ACK, 0 bytes`."""
    packet = session.packets.records[row]
    source = from_key(packet["src"].tobytes(), int(packet["sport"]))
    target = from_key(packet["dst"].tobytes(), int(packet["dport"]))
    return Evidence(
        source=Source.PACKET,
        time_ns=int(session.packet_ns[row]),
        text=noted(f"{source} > {target} {flag_names(int(packet['flags']))}, {packet['payload_bytes']} bytes", note),
        ref=row,
    )


def from_socket(session: Session, row: int, note: str = "") -> Evidence:
    """What one snapshot says of a socket: `CLOSE_WAIT 127.0.0.1:80 - 127.0.0.1:4242, recv-q 1, send-q 0`."""
    socket = session.sockets.records[row]
    local = from_key(socket["local"].tobytes(), int(socket["local_port"]))
    peer = from_key(socket["peer"].tobytes(), int(socket["peer_port"]))
    text = f"{state_name(int(socket['state']))} {local} - {peer}, recv-q {socket['recv_q']}, send-q {socket['send_q']}"
    return Evidence(source=Source.SOCKET, time_ns=int(socket["time_ns"]), text=noted(text, note), ref=row)


def from_proc(time_ns: int, text: str) -> Evidence:
    """A fact read from /proc, or made of several events (a descriptor's history)."""
    return Evidence(source=Source.PROC, time_ns=time_ns, text=text)


def flag_names(flags: int) -> str:
    """TCP flags as Wireshark lists them: `FIN,ACK`; `-` for none."""
    return ",".join(flag.name or "" for flag in TcpFlag if flags & flag) or "-"


def state_name(state: int) -> str:
    """A kernel state number by its name; numbers of a newer kernel as they are."""
    return TcpState(state).name if state in TcpState._value2member_map_ else f"state {state}"


def kept(evidence: Iterable[Evidence], limit: int = EVIDENCE_LIMIT) -> tuple[Evidence, ...]:
    """The first (primary) one first, the others in order of time, at most `limit`, none twice."""
    unique = list(dict.fromkeys(evidence))
    return (*unique[:1], *sorted(unique[1:limit], key=lambda fact: fact.time_ns))
