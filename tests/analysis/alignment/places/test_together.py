"""Captures of two places: their clocks, from where each connection is told, and what was lost between."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from sockscope.analysis.alignment.places.between import between
from sockscope.analysis.alignment.places.place import places
from sockscope.findings.run import run_rules
from sockscope.model.tcp import SegmentMark
from tests.analysis.alignment.evidence import Evidence
from tests.analysis.alignment.places.two_places import (
    BEGIN,
    CLIENT,
    DATA,
    MS,
    SECOND,
    SERVER,
    SYN,
    Path,
    Records,
    session,
    tables,
    told,
)
from tests.analysis.wire.dialogue import key

HOUR = 3600 * SECOND


def same_as(captures: dict[str, Records], reference: str) -> None:
    """Of both together is said what is said of the reference alone, and its packets are those that are exported."""
    both, alone = session(captures), session({reference: captures[reference]})
    assert told(both) == told(alone)
    assert np.array_equal(both.packets.records, alone.packets.records)
    assert np.array_equal(both.flow_facts, alone.flow_facts)
    assert [one.rule for one in run_rules(both)[0]] == [one.rule for one in run_rules(alone)[0]]


@pytest.mark.parametrize("ahead_ns", [0, 3 * MS, 3_200 * MS, -5 * HOUR, 90 * 24 * HOUR])
@pytest.mark.parametrize("loss", [0.0, 0.03])
def test_the_clock_is_found_back(ahead_ns: int, loss: float) -> None:
    path = Path(seed=1, loss=loss).connections(30)
    captures = path.both(ahead_ns=ahead_ns)
    both = session(captures)
    (found,) = both.info.alignments
    assert (found.source, found.beside) == (CLIENT, SERVER)
    assert abs(found.offset_ns + ahead_ns) <= found.uncertainty_ns < 25 * MS
    # Three ms may be the path's.
    assert abs(ahead_ns) > 3 * MS or found.offset_ns == 0
    assert both.info.ended_ns - both.info.started_ns < 60 * SECOND
    assert len(both.connections) == 30
    # Exports write one clock, too.
    assert (both.packets.records["time_ns"] == both.packet_ns).all()
    same_as(captures, SERVER)


def test_without_places_every_segment_was_one_sent_again() -> None:
    both = session(Path(seed=1).connections(5).both())
    assert not (both.packet_marks & np.uint16(SegmentMark.RETRANSMISSION)).any()


@pytest.mark.parametrize("ppm", [50.0, -80.0])
def test_a_clock_that_runs_fast(ppm: float) -> None:
    path = Path(seed=2, delay_ns=200_000, spacing_ns=3 * SECOND).connections(400)
    packets, files = tables(path.both(ahead_ns=2 * HOUR, ppm=ppm))
    server, client = places(packets, packets.records["time_ns"].astype(np.int64), files)
    assert (server.name, client.name) == (SERVER, CLIENT)
    pair = between(server, client, server.table.when)
    assert pair is not None
    assert pair.fit is not None
    assert abs(pair.fit.slope * 1e6 + ppm) < 5
    true = BEGIN + (client.table.when - BEGIN - 2 * HOUR) / (1 + ppm / 1e6)
    wrong = client.table.when + pair.fit.offsets(client.table.when) - true
    assert np.abs(wrong).max() <= pair.fit.uncertainty_ns + 1_000 < 5 * MS


@pytest.mark.parametrize("seed", range(4))
def test_what_was_lost_between(seed: int) -> None:
    # What was under way when a capture began or ended is not counted: connections that lose nothing are around.
    path = Path(seed=seed).connections(1, first=998)
    path.loss, path.began = 0.05, path.now
    path.connections(40)
    path.loss, path.began = 0.0, path.now + 2 * SECOND
    path.connection(999)
    (note,) = session(path.both(ahead_ns=HOUR)).info.notes
    to = {name: int(count) for count, name in re.findall(r"(\d+) on the way to (\S+)", note)}
    assert to == {SERVER: path.lost[0], CLIENT: path.lost[1]}
    assert f"{sum(path.lost)} of " in note


def test_nothing_lost() -> None:
    (note,) = session(Path().connections(10).both()).info.notes
    both, lost = note.split("; ")
    assert both == "client.pcap and server.pcap both saw 10 connections, told from server.pcap"
    assert re.fullmatch(r"none of \d+ segments was lost between", lost)


def test_what_was_dropped_by_a_capture_was_not_lost() -> None:
    captures = Path().connections(10).both()
    mine = captures[SERVER]
    data = np.flatnonzero((mine["payload_bytes"] > 0) & (mine["dport"] == 80))
    captures[SERVER] = np.delete(mine, data[3])
    (note,) = session(captures).info.notes
    assert "server.pcap did not capture all" in note
    assert "on the way" not in note
    (note,) = session(captures, whole=(True, False)).info.notes
    assert note.endswith("told from server.pcap")


def test_segments_that_a_network_card_cuts() -> None:
    """The server's host hands over two segments as one, which come as two."""
    captures = Path().connections(10).both()
    mine = captures[SERVER]
    answers = np.flatnonzero((mine["sport"] == 80) & (mine["payload_bytes"] > 0))
    theirs = captures[CLIENT]
    cut = []
    for row in theirs:
        if row["sport"] == 80 and row["payload_bytes"] > 50:
            first, second = row.copy(), row.copy()
            first["payload_bytes"] = 50
            second["seq"] += np.uint32(50)
            second["payload_bytes"] -= 50
            cut += [first, second]
        else:
            cut.append(row)
    captures[CLIENT] = np.array(cut, theirs.dtype)
    assert len(cut) == len(theirs) + len(answers)
    same_as(captures, SERVER)
    assert "none of" in session(captures).info.notes[0]


@pytest.mark.parametrize(("ahead_ns", "within_ns"), [(0, 50 * MS), (7 * HOUR, SECOND)])
def test_one_direction_alone(ahead_ns: int, within_ns: int) -> None:
    captures = Path().connections(20).both(ahead_ns=ahead_ns)
    captures[CLIENT] = captures[CLIENT][captures[CLIENT]["dport"] == 80]
    (found,) = session(captures).info.alignments
    assert "one direction" in found.basis
    assert abs(found.offset_ns + ahead_ns) <= within_ns
    assert ahead_ns or found.offset_ns == 0
    same_as(captures, SERVER)


def test_nothing_in_common() -> None:
    one, other = Path(seed=1).connections(10), Path(seed=2).connections(10, first=100)
    captures = {"a.pcap": one.capture(1), "b.pcap": other.capture(1)}
    both = session(captures)
    assert not both.info.alignments
    (note,) = both.info.notes
    assert "a.pcap and b.pcap have no segments in common" in note or "b.pcap and a.pcap have" in note
    assert told(both) == sorted(told(session({"": captures["a.pcap"]})) + told(session({"": captures["b.pcap"]})))
    apart = {"a.pcap": one.capture(1), "b.pcap": other.capture(1, ahead_ns=HOUR)}
    assert not session(apart).info.notes


def test_a_translated_address_is_another_connection() -> None:
    path = Path().connections(10)
    captures = path.both()
    for side, other in (("src", "dst"), ("dst", "src")):
        here = captures[SERVER][other] == np.array(key("10.0.0.2"))
        captures[SERVER][side][here.all(axis=1)] = key("192.0.2.7")
    both = session(captures)
    assert len(both.connections) == 20
    assert not both.info.alignments
    assert len(both.info.notes) == 1


def pieces(name: str, records: Records, count: int) -> dict[str, Records]:
    return {f"{name}{number}": part for number, part in enumerate(np.array_split(records, count))}


@pytest.mark.parametrize("ahead_ns", [0, 300 * MS, -5 * HOUR])
def test_rotated_captures_of_two_places(ahead_ns: int) -> None:
    path = Path(seed=3, loss=0.02).connections(40)
    captures = path.both(ahead_ns=ahead_ns)
    both = session(pieces("c", captures[CLIENT], 3) | pieces("s", captures[SERVER], 4))
    assert told(both) == told(session({SERVER: captures[SERVER]}))
    (found,) = both.info.alignments
    assert (found.source, found.beside) == ("c0 and 2 more", "s0 and 3 more")
    assert abs(found.offset_ns + ahead_ns) <= found.uncertainty_ns


def test_a_piece_follows_the_one_that_ended_last() -> None:
    """The server's capture goes on when the client's is over: its last piece has nothing in common with that."""
    path = Path(seed=3).connections(40)
    captures = path.both(ahead_ns=-5 * HOUR)
    theirs = captures[CLIENT]
    captures[CLIENT] = theirs[theirs["time_ns"] + 5 * HOUR < captures[SERVER]["time_ns"][-80]]
    captures |= pieces("s", captures.pop(SERVER), 30)
    packets, files = tables(captures)
    found = places(packets, packets.records["time_ns"].astype(np.int64), files)
    assert [one.name for one in found] == [CLIENT, "s0 and 29 more"]


@pytest.mark.parametrize("most", [1, 50, 1_000])
def test_of_many_packets_some_show_which_files_are_of_one_place(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr("sockscope.analysis.alignment.places.place._SAMPLED_ROWS", most)
    captures = Path(seed=3, loss=0.02).connections(100).both(ahead_ns=HOUR)
    same_as(pieces("c", captures[CLIENT], 2) | {SERVER: captures[SERVER]}, SERVER)


def test_pieces_of_one_capture_are_one_place() -> None:
    """Though keep-alives of idle connections are the same in each, and a segment is sent again behind a seam."""
    path = Path(loss=0.1).connections(60)
    for minute in range(6):
        for port in range(30):
            path.port, path.now = 20_000 + port, BEGIN + (minute + 1) * 60 * SECOND + port * MS
            for side in (0, 1):
                path._seen(1, side, int(DATA), 5 + side, 7, 0)
    whole = path.capture(1)
    both = session(pieces("s", whole, 7))
    assert not both.info.notes
    assert told(both) == told(session({SERVER: whole}))


def test_the_same_file_twice() -> None:
    captures = Path(loss=0.03).connections(10).both()
    both = session({"a.pcap": captures[SERVER], "b.pcap": captures[SERVER].copy()})
    assert told(both) == told(session({SERVER: captures[SERVER]}))
    (found,) = both.info.alignments
    assert (found.offset_ns, found.uncertainty_ns <= 1_000) == (0, True)


def test_a_clock_that_was_set() -> None:
    captures = Path().connections(40).both()
    mine = captures[CLIENT]
    mine["time_ns"][len(mine) // 2 :] += 40 * SECOND
    both = session(captures)
    (found,) = both.info.alignments
    assert found.uncertainty_ns == -1
    assert "contradict each other" in both.info.notes[0]
    same_as(captures, SERVER)


def test_who_saw_more_tells() -> None:
    """The server's capture began late: connections whose beginning it lacks are told from the client's."""
    captures = Path(spacing_ns=100 * MS).connections(20).both(ahead_ns=HOUR)
    captures[SERVER] = captures[SERVER][len(captures[SERVER]) // 2 :]
    both = session(captures)
    assert len(both.connections) == 20
    assert all(one.syn_ns is not None for one in both.flows)
    assert "but for" in both.info.notes[0]


def test_three_places() -> None:
    path = Path(loss=0.02).connections(20)
    captures = path.both(ahead_ns=-HOUR)
    middle = captures[SERVER].copy()
    middle["time_ns"] += np.where(middle["dport"] == 80, -5 * MS, 5 * MS) + 7 * SECOND
    both = session(captures | {"between.pcap": middle[np.argsort(middle["time_ns"], kind="stable")]})
    assert told(both) == told(session({SERVER: captures[SERVER]}))
    offsets = {one.source: one for one in both.info.alignments}
    assert abs(offsets[CLIENT].offset_ns - HOUR) <= offsets[CLIENT].uncertainty_ns
    assert abs(offsets["between.pcap"].offset_ns + 7 * SECOND) <= offsets["between.pcap"].uncertainty_ns


def test_the_third_place_tells() -> None:
    """Two that have most in common with one another, and are told from neither."""
    path = Path(loss=0.02).connections(20)
    captures = path.both()
    near = captures[CLIENT].copy()
    near["time_ns"] += np.where(near["dport"] == 80, MS, -MS)
    both = session(captures | {"gate.pcap": near[np.argsort(near["time_ns"], kind="stable")]})
    assert told(both) == told(session({SERVER: captures[SERVER]}))
    assert len(both.info.notes) == 2
    assert all("both saw 20 connections, told from server.pcap;" in note for note in both.info.notes)


@pytest.mark.parametrize("ahead_ns", [0, -HOUR])
def test_beside_a_log_the_servers_own_capture_tells(ahead_ns: int) -> None:
    """Even of what it lacks: the client's is too far from the calls."""
    evidence = Evidence().connections(40)
    mine = evidence.packets(3 * HOUR).records
    theirs = mine.copy()
    theirs["time_ns"] += np.where(theirs["sport"] == 80, 20 * MS, -20 * MS) + ahead_ns
    late = {SERVER: mine[len(mine) // 2 :]}
    packets, files = tables(late | {CLIENT: theirs[np.argsort(theirs["time_ns"], kind="stable")]})
    both, alone = evidence.session(packets=packets, files=files), evidence.session(packets=tables(late)[0])
    assert told(both) == told(alone)
    assert [one.rule for one in run_rules(both)[0]] == [one.rule for one in run_rules(alone)[0]]
    log, path = both.info.alignments
    assert replace(log, source="packets") == alone.info.alignments[0]
    left_out = len(mine[mine["flags"] == SYN]) - sum(one.flow >= 0 for one in both.connections)
    assert any(
        note.startswith(f"{left_out} connections that server.pcap lacks are left out") for note in both.info.notes
    )
    assert (log.source, path.source, path.beside) == (SERVER, CLIENT, SERVER)
    assert both.info.apart_ns == alone.info.apart_ns
    assert log.uncertainty_ns < MS
    assert abs(path.offset_ns + ahead_ns) <= path.uncertainty_ns < 25 * MS


def test_two_interfaces_of_the_traced_host() -> None:
    """Each has connections of its own, to the same server."""
    evidence = Evidence().connections(40)
    whole = evidence.packets(HOUR)
    odd = (whole.records["sport"] + whole.records["dport"]) % 2 == 1
    packets, files = tables({"eth0.pcap": whole.records[odd], "eth1.pcap": whole.records[~odd]})
    both, alone = evidence.session(packets=packets, files=files), evidence.session(packets=whole)
    assert [each[:6] for each in told(both)] == [each[:6] for each in told(alone)]
    assert sum(one.flow >= 0 and one.open_file >= 0 for one in both.connections) == 40
    (note,) = both.info.notes
    assert "no segments in common" in note


def test_datagrams_count_once() -> None:
    path = Path().connections(5)
    for size in range(10):
        path.datagram(size % 2, 100 + size)
    captures = path.both(ahead_ns=SECOND)
    both = session(captures)
    sizes = both.packets.records["payload_bytes"][both.packets.records["protocol"] == 17]
    assert sorted(sizes.tolist()) == list(range(100, 110))


def ends(records: Records) -> set[frozenset[tuple[bytes, int]]]:
    return {
        frozenset(((row["src"].tobytes(), int(row["sport"])), (row["dst"].tobytes(), int(row["dport"]))))
        for row in records
    }


@settings(deadline=None, max_examples=50)
@given(some.integers(0, 2**32), some.integers(2, 5), some.integers(1, 6))
def test_any_packets(seed: int, files: int, variety: int) -> None:
    """Whatever they say, no connection is lost, and no packet is there twice."""
    random = np.random.default_rng(seed)
    captures = {}
    for name in range(files):
        records = Path(seed=variety).connections(2).capture(name % 2)
        for column in ("seq", "ack", "sport", "flags", "payload_bytes"):
            odd = random.random(len(records)) < random.choice([0, 0.1, 1])
            values = random.integers(0, 4**variety, len(records)).astype(records[column].dtype)
            records[column] = np.where(odd, values, records[column])
        records["time_ns"] += random.integers(-(10**variety), 10**variety, len(records)) * 10**4
        captures[str(name)] = records[np.argsort(records["time_ns"], kind="stable")]
    for number, records in enumerate(captures.values()):
        records["payload_offset"] = np.arange(len(records)) + number * 10**6
    both = session(captures)
    assert ends(both.packets.records) == set().union(*map(ends, captures.values()))
    kept = both.packets.records["payload_offset"]
    assert len(np.unique(kept)) == len(kept)
    assert (np.diff(both.packet_ns) >= 0).all()


def test_ipv6_beside_ipv4() -> None:
    captures = Path(loss=0.02).connections(20).both(ahead_ns=HOUR)
    for records in captures.values():
        odd = (records["sport"] + records["dport"]) % 2 == 1
        for side in ("src", "dst"):
            address = records[side][odd]
            address[:, :12] = np.frombuffer(bytes.fromhex("20010db80000000000000000"), np.uint8)
            records[side][odd] = address
    same_as(captures, SERVER)
