"""strace, tcpdump and ss by hand lead to what a live session of the same run leads to: connections and findings."""

from __future__ import annotations

import os
import shutil

import pytest

from sockscope import fixture
from sockscope.model.findings import Severity
from sockscope.pipeline.options import EngineChoice
from tests.live.by_hand import Both, LaunchedByHand, PlayByHand, ServerByHand
from tests.live.engines import need
from tests.live.rehearsals import Rehearsals

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("strace", "tcpdump", "ss"))), reason="needs strace, tcpdump and iproute2"
    ),
]

NOT_TO_BE_SEEN = {
    "backlog-overflow": "ListenOverflows is in /proc alone",
    "sigterm-ignored": "which signals a process catches is in /proc alone",
    "zombie-children": "that a child is a zombie is in /proc alone",
    "shared-memory-bypass": "who maps a segment is in /proc alone",
    "stale-semaphore": "the value of a semaphore is in /proc alone",
}
"""Rules whose evidence none of the three tools has."""

ELSE_BEFORE = {
    "edge-triggered-listener-not-drained": (
        {"unaccepted-connection"},
        "the listener was registered before strace came: EPOLLET is in /proc/PID/fdinfo alone",
    ),
    "inherited-listener": (
        {"bind-address-in-use"},
        "the listener was opened before strace came: whether it is closed on exec is in /proc/PID/fdinfo alone",
    ),
    "thundering-herd": (
        set(),
        "the listener was registered before strace came: what an epoll watches is in /proc/PID/fdinfo alone",
    ),
    "uneven-workers": (set(), "the workers were there before strace came: that their listener is one is in kcmp alone"),
}
"""Rules whose evidence lies before the attach, where a live session asks /proc: what is found instead, and why."""

TRACED_TWICE = {"slow-request", "accept-stall"}
"""Silent where the machine was slow just then, which it is under strace."""

WHOLE = "SOCKSCOPE_BY_HAND" in os.environ
TOLD = frozenset(
    (
        "close-wait-leak",
        "fin-withheld",
        "edge-triggered-listener-not-drained",
        "double-close",
        "inherited-connection-fd",
        "datagram-truncated",
        "nagle-delayed-ack",
    )
)
"""Of those that are played each time: told by what outlasts the log, by what the log lacks, by packets, by one call."""
SILENT = frozenset(("close-wait-leak", "double-close"))
SERVERS = ("nginx", "redis", "gunicorn", "haproxy")


def plays(program: str, some: frozenset[str]) -> list[PlayByHand]:
    """Those that are seen when attached late; all of them where SOCKSCOPE_BY_HAND is set."""
    every = [slug for slug in fixture.slugs() if "attach" in fixture.load(slug).modes]
    known = [slug for slug in every if EngineChoice.BPF in fixture.load(slug).engines]
    return [PlayByHand(slug=slug, program=program) for slug in known if WHOLE or slug in some]


def heavy(both: Both) -> tuple[set[str], set[str]]:
    live, by_hand = (
        {finding.rule for finding in told.findings if finding.severity > Severity.INFO}
        for told in (both.live, both.by_hand)
    )
    return live, by_hand


@pytest.mark.parametrize("case", plays("faulty", TOLD), ids=str)
def test_the_same_is_found_by_hand(case: PlayByHand, rehearsals: Rehearsals) -> None:
    need(case.engine)
    both = rehearsals.outcome(case)
    assert both.by_hand.connections == both.live.connections
    assert not any("not understood" in note for note in both.by_hand.notes), both.by_hand.notes
    live, by_hand = heavy(both)
    if case.slug in NOT_TO_BE_SEEN:
        assert by_hand <= live
    elif case.slug in ELSE_BEFORE:
        # Whether somebody waited in the queue for long enough to be told is a matter of the moment.
        assert by_hand | {"unaccepted-connection"} == ELSE_BEFORE[case.slug][0] | {"unaccepted-connection"}
    elif case.slug not in TRACED_TWICE:
        said = {finding.rule for finding in both.by_hand.findings}
        assert case.slug in said, (both.by_hand.skipped, both.by_hand.notes)
        assert by_hand == live


@pytest.mark.parametrize("case", plays("sound", SILENT), ids=str)
def test_a_sound_twin_is_sound_by_hand(case: PlayByHand, rehearsals: Rehearsals) -> None:
    need(case.engine)
    both = rehearsals.outcome(case)
    assert both.by_hand.connections == both.live.connections
    assert heavy(both) == (set(), set())


@pytest.mark.server
@pytest.mark.parametrize("case", [ServerByHand(name=name) for name in SERVERS], ids=str)
def test_a_real_server_is_the_same_by_hand(case: ServerByHand, rehearsals: Rehearsals) -> None:
    need(case.engine)
    both = rehearsals.outcome(case)
    assert both.live.connections
    assert both.by_hand.connections == both.live.connections
    assert heavy(both) == (set(), set())


@pytest.mark.parametrize("case", plays("faulty", frozenset(["close-wait-leak"])), ids=str)
def test_clocks_of_one_machine_are_one(case: PlayByHand, rehearsals: Rehearsals) -> None:
    need(case.engine)
    both = rehearsals.outcome(case)
    if not both.live.connections:
        pytest.skip("its clients do not come by TCP")
    packets = both.by_hand.alignments[0]
    assert packets.offset_ns == 0
    assert 0 <= packets.uncertainty_ns < 100_000_000


LAUNCHED = ("reuseaddr-after-bind", "bind-address-in-use", "unchecked-error")
"""What happens before anybody can attach."""


def launched(program: str) -> list[LaunchedByHand]:
    return [LaunchedByHand(slug=slug, program=program) for slug in LAUNCHED]


@pytest.mark.parametrize("case", launched("faulty"), ids=str)
def test_a_log_from_the_first_call_on(case: LaunchedByHand, rehearsals: Rehearsals) -> None:
    told = rehearsals.outcome(case)
    assert case.slug in {finding.rule for finding in told.findings}, (told.skipped, told.notes)


@pytest.mark.parametrize("case", launched("sound"), ids=str)
def test_a_sound_log_from_the_first_call_on(case: LaunchedByHand, rehearsals: Rehearsals) -> None:
    told = rehearsals.outcome(case)
    assert not [finding for finding in told.findings if finding.severity > Severity.INFO]
