"""reuseaddr-after-bind: the order decides."""

from __future__ import annotations

import pytest

from sockscope.model.calls import Call
from sockscope.model.findings import Severity
from tests.analysis.builders import SOCK_DGRAM, SOCK_STREAM, Script, address
from tests.findings.conftest import Run

SLUG = "reuseaddr-after-bind"
ON = b"\1\0\0\0"


def option(script: Script, value: bytes = ON) -> None:
    script.event(100, 100, Call.setsockopt, 1, 2, fd=3, option=value)


def bind(script: Script, port: int = 8080, ret: int = 0) -> None:
    script.event(100, 100, Call.bind, fd=3, ret=ret, sockaddr=address("127.0.0.1", port))


def begun(kind: int = SOCK_STREAM) -> Script:
    script = Script().process(100)
    script.event(100, 100, Call.socket, 2, kind, ret=3)
    return script


def test_too_late(run: Run) -> None:
    script = begun()
    bind(script)
    option(script)
    script.event(100, 100, Call.listen, 16, fd=3)
    (finding,) = run(script.session(), SLUG)
    assert (finding.severity, finding.fd, finding.tgid) == (Severity.WARNING, 3, 100)


def test_and_it_was_refused(run: Run) -> None:
    script = begun()
    bind(script, ret=-98)
    option(script)
    (finding,) = run(script.session(), SLUG)
    assert finding.severity is Severity.ERROR


@pytest.mark.parametrize("case", ["before", "both", "between", "off", "ephemeral", "datagram"])
def test_sound(run: Run, case: str) -> None:
    script = begun(SOCK_DGRAM if case == "datagram" else SOCK_STREAM)
    if case in ("before", "both"):
        option(script)
    if case == "between":
        bind(script, ret=-98)
        option(script)
    bind(script, 0 if case == "ephemeral" else 8080)
    if case not in ("before", "between"):
        option(script, bytes(4) if case == "off" else ON)
    script.event(100, 100, Call.listen, 16, fd=3)
    assert not run(script.session(), SLUG)
