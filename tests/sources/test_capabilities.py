from __future__ import annotations

import pytest

from sockscope.model.capability import Capability, Status, main_job_possible
from sockscope.sources.capabilities import bpf, kernel, privileges, tracing
from sockscope.sources.syscalls.bpf import layout


def test_the_mask_is_read_from_status() -> None:
    assert privileges.effective_capabilities("Name:\tx\nCapEff:\t0000000000080000\n") == 1 << privileges.Cap.SYS_PTRACE
    assert privileges.effective_capabilities("") == 0


@pytest.mark.parametrize(
    ("scope", "privileged", "status"),
    [
        ("0", False, Status.OK),
        ("1", False, Status.LIMITED),
        ("1", True, Status.OK),
        ("2", False, Status.MISSING),
        ("2", True, Status.OK),
        ("3", True, Status.MISSING),
    ],
)
def test_yama(monkeypatch: pytest.MonkeyPatch, scope: str, privileged: bool, status: Status) -> None:
    monkeypatch.setattr(tracing, "has", lambda cap: privileged)
    found = tracing.check_yama(scope)
    assert found.status is status
    assert (found.mend != "") == (status is not Status.OK)


def test_io_uring() -> None:
    assert kernel.check_io_uring("2").detail == "disabled for all"
    assert "not a system call" in kernel.check_io_uring("0").meaning


def test_optional_facts_of_bpf() -> None:
    every = {name for names in layout.OPTIONAL_PROGRAMS.values() for name in names}
    for check, facts in ((bpf.check_tcp, bpf.TCP_FACTS), (bpf.check_uring, bpf.URING_FACTS)):
        assert set().union(*facts.values()) <= every
        assert check(every).status is Status.OK
        nothing = check(())
        assert nothing.status is Status.LIMITED
        assert not nothing.needed
        assert all(fact in nothing.detail for fact in facts)
    assert bpf.check_uring({"io_uring_submit_sqe", "io_uring_complete"}).status is Status.OK
    some = bpf.check_tcp({"inet_sock_set_state", "tcp_retransmit_skb"})
    assert some.detail == "this kernel has no tracepoint for resets sent, resets received"


def test_the_reason_and_mend_of_bpf_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("btf_problem", "libbpf_problem", "privilege_problem", "unavailable"):
        monkeypatch.setattr(bpf, name, lambda: ("no", "do this"))
    for check in (bpf.check_types, bpf.check_library, bpf.check_privilege, bpf.check_programs):
        found = check()
        assert (found.status, found.detail, found.mend, found.needed) == (Status.LIMITED, "no", "do this", False)
        assert "ptrace" in found.meaning


def test_the_main_job_needs_only_what_is_needed() -> None:
    def one(status: Status, needed: bool) -> Capability:
        return Capability(name="x", status=status, detail="", meaning="", needed=needed)

    assert main_job_possible((one(Status.MISSING, False), one(Status.LIMITED, True)))
    assert not main_job_possible((one(Status.OK, True), one(Status.MISSING, True)))
