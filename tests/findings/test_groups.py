"""What each rule says it takes of a log, against what it needs and what it looks at."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

import pytest

from sockscope.findings.catalogue import catalogue
from sockscope.findings.contract import RuleModule
from sockscope.findings.run import missing
from sockscope.model.calls import FIRST_TASK_EVENT, GROUP_OF, USUAL_GROUPS, Call, CallGroup
from sockscope.model.findings import Need
from sockscope.model.info import PacketCoverage, SessionInfo, SocketCoverage, SyscallCoverage, Target

N, D, X = CallGroup.NETWORK, CallGroup.DESCRIPTORS, CallGroup.TRANSFERS
W, T, M = CallGroup.WAITS, CallGroup.TASKS, CallGroup.MEMORY
USUAL = USUAL_GROUPS
FOLLOWED = USUAL_GROUPS | {T}
"""It judges that something was not done: another thread or a child may have done it."""

TAKES: dict[str, frozenset[CallGroup]] = {
    "abortive-linger": frozenset({N, D, X}),
    "abrupt-shutdown": FOLLOWED,
    "accept-result-misused": FOLLOWED,
    "accept-stall": USUAL,
    "backlog-overflow": frozenset(),
    "bind-address-in-use": frozenset({N}),
    "blocking-call-in-event-loop": FOLLOWED,
    "close-wait-leak": FOLLOWED,
    "connect-not-completed": FOLLOWED,
    "datagram-truncated": frozenset({N, X}),
    "descriptor-exhaustion": USUAL,
    "double-close": FOLLOWED | {M},
    "eagain-dropped": FOLLOWED,
    "edge-triggered-listener-not-drained": FOLLOWED,
    "edge-triggered-read-not-drained": FOLLOWED,
    "event-loop-spin": FOLLOWED,
    "fd-leak": FOLLOWED,
    "fin-withheld": FOLLOWED,
    "fragmented-response": frozenset({N, X}),
    "ghost-epoll-event": FOLLOWED,
    "idle-without-keepalive": FOLLOWED,
    "inherited-connection-fd": FOLLOWED,
    "inherited-listener": FOLLOWED,
    "io-uring-blind-spot": frozenset({D}),
    "missing-fin": frozenset(),
    "nagle-delayed-ack": frozenset({N, X}),
    "passed-fd-leak": FOLLOWED,
    "reset-on-close": frozenset({N, D, X, T}),
    "retransmissions": frozenset(),
    "reuseaddr-after-bind": frozenset({N}),
    "select-fd-overflow": USUAL,
    "shared-memory-bypass": USUAL | {M},
    "short-write-dropped": FOLLOWED,
    "sigpipe-death": frozenset({N, X}),
    "sigterm-ignored": frozenset({T}),
    "slow-reader": USUAL,
    "slow-request": USUAL,
    "stale-semaphore": frozenset({M}),
    "thundering-herd": frozenset({N, W}),
    "unaccepted-connection": frozenset(),
    "unanswered-request": FOLLOWED,
    "unchecked-error": FOLLOWED,
    "uneven-workers": USUAL,
    "use-after-close": FOLLOWED | {M},
    "write-after-peer-close": frozenset({N, D, X}),
    "zombie-children": frozenset({T}),
}

IN_ORDER_ALONE = {
    "bind-address-in-use",
    "double-close",
    "io-uring-blind-spot",
    "reuseaddr-after-bind",
    "unchecked-error",
    "use-after-close",
}
"""They judge by what came before what, not by how long anything took."""

RULES = pytest.mark.parametrize("module", catalogue(), ids=lambda module: module.RULE.slug)


def calls_named(module: ModuleType) -> set[Call]:
    """Every `Call.x` in a module's source that is a syscall."""
    found = {
        Call[node.attr]
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Call"
    }
    return {call for call in found if call < FIRST_TASK_EVENT}


def _info(syscalls: SyscallCoverage) -> SessionInfo:
    """All else is there."""
    return SessionInfo(
        target=Target(),
        started_realtime_ns=0,
        started_ns=0,
        ended_ns=1,
        syscalls=syscalls,
        packets=PacketCoverage(available=True),
        sockets=SocketCoverage(snapshot_count=1),
    )


def test_the_table_names_every_rule() -> None:
    assert TAKES.keys() == {module.RULE.slug for module in catalogue()}
    assert TAKES.keys() >= IN_ORDER_ALONE


@RULES
def test_groups_and_times_are_as_the_table_says(module: RuleModule) -> None:
    rule = module.RULE
    assert rule.groups == TAKES[rule.slug]
    assert rule.times == (rule.slug not in IN_ORDER_ALONE)


@RULES
def test_groups_go_with_the_need_of_syscalls(module: RuleModule) -> None:
    rule = module.RULE
    assert bool(rule.groups) == (Need.SYSCALLS in rule.needs)


@RULES
def test_calls_that_a_rule_looks_at_are_among_its_groups(module: RuleModule) -> None:
    rule = module.RULE
    if Need.SYSCALLS in rule.needs:
        assert isinstance(module, ModuleType)
        assert {GROUP_OF[call] for call in calls_named(module)} <= rule.groups


@RULES
def test_a_filtered_log_is_said(module: RuleModule) -> None:
    rule = module.RULE
    for group in CallGroup:
        info = _info(SyscallCoverage(engine="strace", missing_groups=(group,)))
        assert bool(missing(rule, info)) == (group in rule.groups)


@RULES
def test_a_log_without_times_is_said(module: RuleModule) -> None:
    rule = module.RULE
    info = _info(SyscallCoverage(engine="strace", resolution_ns=0))
    assert bool(missing(rule, info)) == (rule.times and Need.SYSCALLS in rule.needs)
