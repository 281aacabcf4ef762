"""sigterm-ignored: who keeps the signal, and who only takes its time."""

from __future__ import annotations

from sockscope.findings.run import run_rules
from sockscope.model.facts import Relation
from sockscope.model.findings import Confidence, Finding, Severity
from tests.analysis.builders import Script
from tests.findings.conftest import MS, Run, S, accept, answer, ask, server

SLUG = "sigterm-ignored"
SIGTERM, SIGKILL, SIGUSR1 = 15, 9, 10
REQUEST = b"GET / HTTP/1.1\r\n\r\n"


def container(*, shell: str = "sh") -> Script:
    """A shell (50) is PID 1 of a pid namespace; the server (100) is its child, and handles SIGTERM."""
    script = server().process(50, comm=shell, exe=f"/bin/{shell}")
    script._processes[0] = type(script._processes[0])(
        tgid=100, ppid=50, tids=(100,), comm="server", exe="/usr/bin/server", cmdline=("server",), netns=1
    )
    return script


def shell_at(script: Script, *times: int, comm: str = "sh", caught: tuple[int, ...] = ()) -> None:
    for at in times:
        script.look(50, at=at, ppid=7, ns_tgid=1, init_tgid=50, comm=comm, caught=caught)


def server_at(script: Script, *times: int, caught: tuple[int, ...] = (SIGTERM,), **more: object) -> None:
    for at in times:
        fields = {"ppid": 50, "ns_tgid": 2, "init_tgid": 50, **more}
        script.look(100, at=at, caught=caught, **fields)  # type: ignore[arg-type]


def stop(script: Script, *, at: int = S, killed: int = 11 * S) -> None:
    """docker stop."""
    script.signal(50, SIGTERM, si_pid=0, at=at)
    script.exit(50, status=SIGKILL, at=killed)
    script.exit(100, status=SIGKILL, at=killed)


def one(found: list[Finding]) -> Finding:
    (finding,) = found
    return finding


def test_a_shell_as_pid_1_keeps_it(run: Run) -> None:
    script = container()
    accept(script, 0, 7)
    ask(script, 0, 7, REQUEST)
    answer(script, 7)
    shell_at(script, 0, 1100 * MS)
    server_at(script, 0, 1100 * MS)
    stop(script)
    finding = one(run(script.ends(12 * S).session(), SLUG))
    assert (finding.severity, finding.confidence) == (Severity.ERROR, Confidence.CERTAIN)
    assert (finding.tgid, finding.connections) == (100, (0,))
    assert "SIGTERM came to sh[50, 1 in its pid namespace] at +1.000 s" in finding.explanation
    assert "server[100, 2 in its pid namespace] below it, which serves, got no signal" in finding.explanation
    assert "server was killed by SIGKILL 10 s later with 1 connection open" in finding.explanation
    assert 'sh -c "exec server' in finding.remedy
    assert finding.evidence[0].text.startswith("sh[50] SIGTERM")
    assert any("SIGTERM is not caught, not ignored" in fact.text for fact in finding.evidence)


def test_it_comes_before_abrupt_shutdown() -> None:
    script = container()
    accept(script, 0, 7)
    ask(script, 0, 7, REQUEST)
    shell_at(script, 0, 1100 * MS)
    server_at(script, 0, 1100 * MS)
    stop(script)
    findings, _, _ = run_rules(script.ends(12 * S).session(), select=[SLUG, "abrupt-shutdown"])
    assert [finding.rule for finding in findings] == [SLUG]


def test_it_still_runs_at_the_end(run: Run) -> None:
    script = container()
    shell_at(script, 0, 1100 * MS)
    server_at(script, 0, 1100 * MS)
    script.signal(50, SIGTERM, at=S)
    finding = one(run(script.ends(6 * S).session(), SLUG))
    assert "server still ran 5.00 s later" in finding.explanation


def test_a_session_that_ends_too_soon(run: Run) -> None:
    script = container()
    shell_at(script, 0, 1100 * MS)
    server_at(script, 0, 1100 * MS)
    script.signal(50, SIGTERM, at=S)
    assert not run(script.ends(1900 * MS).session(), SLUG)


def test_the_server_is_told_by_another_way(run: Run) -> None:
    script = container()
    shell_at(script, 0, 1100 * MS)
    server_at(script, 0, 1100 * MS)
    script.signal(50, SIGTERM, at=S)
    script.signal(100, SIGTERM, at=S + MS)
    assert not run(script.ends(9 * S).session(), SLUG)


def test_the_server_ends_by_itself(run: Run) -> None:
    script = container()
    shell_at(script, 0, 1100 * MS)
    server_at(script, 0, 1100 * MS)
    script.signal(50, SIGTERM, at=S)
    script.exit(100, at=3 * S)
    assert not run(script.ends(9 * S).session(), SLUG)


def test_a_shell_with_a_trap_that_waits(run: Run) -> None:
    script = container(shell="bash")
    shell_at(script, 0, 1100 * MS, comm="bash", caught=(SIGTERM,))
    server_at(script, 0, 1100 * MS)
    stop(script)
    finding = one(run(script.ends(12 * S).session(), SLUG))
    assert finding.confidence is Confidence.LIKELY
    assert "a trap runs only when" in finding.explanation


def test_a_supervisor_that_handles_it_and_takes_its_time(run: Run) -> None:
    script = container(shell="gunicorn")
    shell_at(script, 0, 1100 * MS, comm="gunicorn", caught=(SIGTERM,))
    server_at(script, 0, 1100 * MS)
    script.signal(50, SIGTERM, at=S)
    assert not run(script.ends(12 * S).session(), SLUG, least=Severity.INFO)


def test_the_server_itself_is_pid_1(run: Run) -> None:
    script = server()
    for at in (0, 1100 * MS):
        script.look(100, at=at, ns_tgid=1, init_tgid=100, caught=(SIGUSR1,))
    script.signal(100, SIGTERM, at=S)
    finding = one(run(script.ends(6 * S).session(), SLUG))
    assert finding.title == "SIGTERM is lost: PID 1 has no handler for it"
    assert "docker run --init" in finding.remedy


def test_it_takes_its_time(run: Run) -> None:
    script = server()
    for at in (0, 1100 * MS):
        script.look(100, at=at, ns_tgid=1, init_tgid=100, caught=(SIGTERM,))
    script.signal(100, SIGTERM, at=S)
    assert not run(script.ends(60 * S).session(), SLUG, least=Severity.INFO)


def test_it_fetches_the_signal_itself(run: Run) -> None:
    script = server()
    for at in (0, 1100 * MS):
        script.look(100, at=at, ns_tgid=1, init_tgid=100, blocked=(SIGTERM,), ignored=())
    script.signal(100, SIGTERM, at=S)
    assert not run(script.ends(60 * S).session(), SLUG, least=Severity.INFO)


def ignoring(script: Script, *, before: bool = True) -> Script:
    script.look(100, at=0, ignored=(SIGTERM,) if before else ())
    script.look(100, at=1100 * MS, ignored=(SIGTERM,))
    script.signal(100, SIGTERM, at=S)
    return script


def test_sig_ign(run: Run) -> None:
    finding = one(run(ignoring(server()).ends(6 * S).session(), SLUG))
    assert (finding.severity, finding.confidence) == (Severity.WARNING, Confidence.LIKELY)
    assert "ignores it (SIG_IGN)" in finding.explanation


def test_sig_ign_and_clients_cut_in_the_end(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    ignoring(script).exit(100, status=SIGKILL, at=5 * S)
    assert one(run(script.ends(6 * S).session(), SLUG)).severity is Severity.ERROR


def test_a_handler_that_ignores_the_next(run: Run) -> None:
    assert not run(ignoring(server(), before=False).ends(6 * S).session(), SLUG, least=Severity.INFO)


def test_a_worker_whose_parent_stops_it(run: Run) -> None:
    script = server().process(101, comm="master")
    script._processes[0] = type(script._processes[0])(
        tgid=100, ppid=101, tids=(100,), comm="server", exe="/usr/bin/server", cmdline=("server",), netns=1
    )
    script.look(101, at=0, caught=(SIGTERM,)).look(101, at=1100 * MS, caught=(SIGTERM,))
    script.signal(101, SIGTERM, at=S - MS)
    assert not run(ignoring(script).ends(6 * S).session(), SLUG, least=Severity.INFO)


def test_who_serves_nobody_is_left_alone(run: Run) -> None:
    script = Script().process(100)
    assert not run(ignoring(script).ends(6 * S).session(), SLUG, least=Severity.INFO)


def test_before_it_happens(run: Run) -> None:
    script = server()
    for at in (0, 2 * S):
        script.look(50, at=at, ns_tgid=1, init_tgid=50, comm="sh", relation=Relation.INIT)
    server_at(script, 0, 2 * S)
    session = script.ends(3 * S).session()
    assert not run(session, SLUG)
    finding = one(run(session, SLUG, least=Severity.INFO))
    assert (finding.severity, finding.confidence, finding.tgid) == (Severity.INFO, Confidence.POSSIBLE, 100)
    assert "sh[50, 1 in its pid namespace] is PID 1" in finding.explanation
    assert "docker stop will wait ten seconds" in finding.explanation


def test_after_it_has_happened_unseen(run: Run) -> None:
    """The shell was not traced: its SIGTERM was not seen, only the server's end."""
    script = server()
    for at in (0, 2 * S):
        script.look(50, at=at, ns_tgid=1, init_tgid=50, comm="sh", relation=Relation.INIT)
    server_at(script, 0, 2 * S)
    script.exit(100, status=SIGKILL, at=2100 * MS)
    finding = one(run(script.ends(3 * S).session(), SLUG))
    assert (finding.severity, finding.confidence) == (Severity.WARNING, Confidence.LIKELY)
    assert "killed by SIGKILL at +2.100 s and got no SIGTERM" in finding.explanation


def test_an_init_that_passes_signals_on(run: Run) -> None:
    script = server()
    for at in (0, 2 * S):
        script.look(50, at=at, ns_tgid=1, init_tgid=50, comm="tini", blocked=(SIGTERM,), relation=Relation.INIT)
    server_at(script, 0, 2 * S)
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)


def test_a_program_that_has_just_begun(run: Run) -> None:
    script = server()
    for at in (0, 2 * S):
        script.look(100, at=at, ns_tgid=1, init_tgid=100, caught=() if at == 0 else (SIGTERM,))
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)


def test_without_facts_it_says_so() -> None:
    script = server()
    script.signal(100, SIGTERM, at=S)
    findings, skips, _ = run_rules(script.ends(6 * S).session(), select=[SLUG])
    assert not findings
    assert [skip.rule for skip in skips] == [SLUG]


def test_without_facts_and_without_a_doubt() -> None:
    script = server()
    script.signal(100, SIGTERM, at=S)
    script.exit(100, status=SIGTERM, at=S + MS)
    _, skips, _ = run_rules(script.ends(6 * S).session(), select=[SLUG])
    assert not skips
