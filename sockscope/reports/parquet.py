"""Every table of a session as a Parquet file: for DuckDB, pandas, polars, and whatever else reads them.

Columns are the model's (`model/events.py`, `packets.py`, `sockets.py`, `exchanges.py`), with names in place of
numbers, addresses as text, and the connection that each row belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sockscope.model.calls import Call
from sockscope.model.columns import pieces
from sockscope.model.events import is_seeded
from sockscope.model.report import Report
from sockscope.model.sockaddr import from_key
from sockscope.model.tables import SessionTables
from sockscope.model.tcp import TcpState
from sockscope.reports.export_file import private_file

if TYPE_CHECKING:
    import pyarrow as pa


def write_parquet(report: Report, tables: SessionTables, folder: Path) -> None:
    """Write `connections`, `findings`, `evidence`, `events`, `packets`, `sockets` and `exchanges`, mode 0600.

    All times are CLOCK_MONOTONIC ns, and also (`time`) the moment on the wall clock.

    Args:
        folder: made if missing.

    Raises:
        OSError: the folder cannot be made.
        UsageError: a file cannot be written.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    shift = report.info.started_realtime_ns - report.info.started_ns
    _write(folder / "connections.parquet", [_connections(report, shift)])
    _write(folder / "findings.parquet", [_findings(report)])
    _write(folder / "evidence.parquet", [_evidence(report, shift)])
    _write(folder / "exchanges.parquet", [_exchanges(tables)])
    _write(folder / "events.parquet", _events(tables, shift))
    _write(folder / "packets.parquet", _packets(tables, shift))
    _write(folder / "sockets.parquet", _sockets(tables, shift))


def _write(path: Path, parts: Iterator[pa.Table] | Sequence[pa.Table]) -> None:
    import pyarrow.parquet as pq

    writer = None
    with private_file(path) as file:
        try:
            for part in parts:
                if writer is None:
                    writer = pq.ParquetWriter(file, part.schema, compression="zstd")
                writer.write_table(part)
        finally:
            if writer is not None:
                writer.close()


def _moment(times: npt.NDArray[np.int64], shift: int) -> pa.Array:
    import pyarrow as pa

    known = times >= 0
    return pa.array(np.where(known, times + shift, 0), mask=~known, type=pa.timestamp("ns", tz="UTC"))


def _known(values: npt.NDArray[np.signedinteger]) -> pa.Array:
    """-1 as null."""
    import pyarrow as pa

    return pa.array(values, mask=values < 0)


def _texts(values: Iterable[str | None]) -> pa.Array:
    """Strings; lone surrogates (a manifest may hold them) by backslashes, as UTF-8 has none."""
    import pyarrow as pa

    return pa.array(
        [None if text is None else text.encode("utf-8", "backslashreplace") for text in values], pa.string()
    )


def _named(codes: npt.NDArray[np.integer], names: dict[int, str]) -> pa.Array:
    """Numbers as a dictionary of names."""
    import pyarrow as pa

    distinct, at = np.unique(codes, return_inverse=True)
    texts = [names.get(int(code), str(code)) for code in distinct.tolist()]
    return pa.DictionaryArray.from_arrays(pa.array(at.reshape(-1), pa.int32()), pa.array(texts, pa.string()))


_CALLS = {int(call): call.name for call in Call}
_STATES = {int(state): state.name for state in TcpState}


def _hosts(packed: npt.NDArray[np.uint8]) -> pa.Array:
    """Shape (n, 16) keys as a dictionary of addresses in text."""
    import pyarrow as pa

    keys = np.ascontiguousarray(packed).view("V16").reshape(-1)
    distinct, at = np.unique(keys, return_inverse=True)
    texts = [from_key(key.tobytes(), 0).host for key in distinct]
    return pa.DictionaryArray.from_arrays(pa.array(at.reshape(-1), pa.int32()), pa.array(texts, pa.string()))


def _events(tables: SessionTables, shift: int) -> Iterator[pa.Table]:
    import pyarrow as pa

    for span in pieces(len(tables.events)):
        # What only tells an address was never called.
        kept = np.flatnonzero(~is_seeded(tables.events.records[span])) + span.start
        rows = tables.events.records[kept]
        entered, left = rows["enter_ns"], rows["exit_ns"]
        began = np.where(entered >= 0, entered, left)
        both = (entered >= 0) & (left >= 0)
        args = rows["args"]
        yield pa.table(
            {
                "event": kept,
                "time": _moment(began, shift),
                "enter_ns": _known(entered),
                "exit_ns": _known(left),
                "duration_ns": pa.array(left - entered, mask=~both),
                "tgid": rows["tgid"],
                "tid": rows["tid"],
                "call": _named(rows["call"], _CALLS),
                "result": rows["ret"],
                **{f"arg{at}": args[:, at] for at in range(6)},
                "flags": rows["flags"],
                "connection": _known(tables.event_connection[kept]),
            }
        )


def _packets(tables: SessionTables, shift: int) -> Iterator[pa.Table]:
    import pyarrow as pa

    for span in pieces(len(tables.packets)):
        rows = tables.packets.records[span]
        yield pa.table(
            {
                "packet": np.arange(span.start, span.stop, dtype=np.int64),
                "time": _moment(tables.packet_ns[span], shift),
                "time_ns": tables.packet_ns[span],
                "source": _hosts(rows["src"]),
                "source_port": rows["sport"],
                "destination": _hosts(rows["dst"]),
                "destination_port": rows["dport"],
                "from_target": tables.local_is_source[span],
                **{name: rows[name] for name in ("protocol", "flags", "seq", "ack", "window")},
                **{name: rows[name] for name in ("payload_bytes", "wire_bytes")},
                "marks": tables.packet_marks[span],
                "connection": _known(tables.packet_connection[span]),
            }
        )


def _sockets(tables: SessionTables, shift: int) -> Iterator[pa.Table]:
    import pyarrow as pa

    plain = ("snapshot", "family", "protocol", "inode", "cookie", "uid", "recv_q", "send_q", "retransmits")
    told = ("rtt_us", "cwnd", "total_retrans", "unacked", "bytes_acked", "bytes_received")
    for span in pieces(len(tables.sockets)):
        rows = tables.sockets.records[span]
        silent = rows["has_info"] == 0
        yield pa.table(
            {
                "time": _moment(rows["time_ns"], shift),
                "time_ns": rows["time_ns"],
                **{name: rows[name] for name in plain},
                "state": _named(rows["state"], _STATES),
                "local": _hosts(rows["local"]),
                "local_port": rows["local_port"],
                "peer": _hosts(rows["peer"]),
                "peer_port": rows["peer_port"],
                **{name: pa.array(rows[name], mask=silent) for name in told},
                "connection": _known(tables.socket_connection[span]),
            }
        )


def _exchanges(tables: SessionTables) -> pa.Table:
    import pyarrow as pa

    rows = tables.exchanges
    names = rows.dtype.names or ()
    return pa.table(
        {
            name: _known(rows[name]) if rows.dtype[name].kind == "i" else np.ascontiguousarray(rows[name])
            for name in names
        }
    )


def _connections(report: Report, shift: int) -> pa.Table:
    import pyarrow as pa

    rows = report.connections
    all_ = [row.connection for row in rows]
    first = np.array([one.first_ns for one in all_], np.int64)
    return pa.table(
        {
            "connection": np.array([one.id for one in all_], np.int64),
            "time": _moment(first, shift),
            "first_ns": first,
            "last_ns": np.array([one.last_ns for one in all_], np.int64),
            "protocol": _texts([one.protocol.value for one in all_]),
            "role": _texts([one.role.value for one in all_]),
            "local": _texts([None if one.local is None else str(one.local) for one in all_]),
            "peer": _texts([None if one.peer is None else str(one.peer) for one in all_]),
            "state": _texts([one.state.name for one in all_]),
            "read_bytes": np.array([one.read_bytes for one in all_], np.int64),
            "written_bytes": np.array([one.written_bytes for one in all_], np.int64),
            "never_accepted": np.array([one.never_accepted for one in all_], np.bool_),
            "event_count": np.array([row.event_count for row in rows], np.int64),
            "packet_count": np.array([row.packet_count for row in rows], np.int64),
            "tgids": pa.array([list(row.processes) for row in rows], pa.list_(pa.int32())),
            "summary": _texts([row.summary for row in rows]),
            "wire": _texts([row.wire for row in rows]),
            "findings": pa.array(
                [[report.findings[at].rule for at in row.finding_indexes] for row in rows], pa.list_(pa.string())
            ),
        }
    )


def _findings(report: Report) -> pa.Table:
    import pyarrow as pa

    found = report.findings
    texts = ("rule", "title", "comm", "explanation", "remedy")
    return pa.table(
        {
            "finding": np.arange(len(found), dtype=np.int64),
            **{name: _texts([getattr(one, name) for one in found]) for name in texts},
            "severity": _texts([one.severity.label for one in found]),
            "confidence": _texts([one.confidence.value for one in found]),
            "tgid": pa.array([one.tgid for one in found], pa.int32()),
            "fd": pa.array([one.fd for one in found], pa.int32()),
            "count": pa.array([one.count for one in found], pa.int64()),
            "connections": pa.array([list(one.connections) for one in found], pa.list_(pa.int64())),
        }
    )


def _evidence(report: Report, shift: int) -> pa.Table:
    import pyarrow as pa

    facts = [(at, fact) for at, one in enumerate(report.findings) for fact in one.evidence]
    times = np.array([fact.time_ns for _, fact in facts], np.int64)
    return pa.table(
        {
            "finding": np.array([at for at, _ in facts], np.int64),
            "time": _moment(times, shift),
            "time_ns": times,
            "source": _texts([fact.source.value for _, fact in facts]),
            "text": _texts([fact.text for _, fact in facts]),
        }
    )
