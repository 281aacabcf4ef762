"""What a thread did between two moments, asked of few of its events: as if asked of all of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared import meanwhile as module
from sockscope.findings.shared.meanwhile import meanwhile
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from tests.analysis.builders import START_NS, Script
from tests.findings.conftest import server

CALLS = (Call.recvfrom, Call.sendto, Call.close, Call.epoll_wait, Call.accept4, Call.wait4, Call.task_signal)
STEPS = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(CALLS), st.integers(0, 6), st.booleans()), max_size=12)
MOMENTS = st.integers(-3, 60)


def thread_of(steps: list[tuple[int, Call, int, bool]], *, late: bool, cut: bool) -> Session:
    """One thread's calls: (pause before, call, how long it took, through an io_uring); the first may have no entry."""
    script, at = server(), 1
    for number, (pause, call, took, ringed) in enumerate(steps):
        at += pause
        flags = EventFlag.URING if ringed else EventFlag(0)
        if late and not number:
            flags |= EventFlag.NO_ENTRY
        if cut and number == len(steps) - 1 and call is not Call.task_signal:
            flags |= EventFlag.ENTERED_ONLY
        script.event(100, 100, call, fd=9, ret=1, at=at, took=took, flags=flags)
        # What an io_uring does goes on beside the thread.
        at += 0 if ringed or call is Call.task_signal else took
    return script.session()


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, late=st.booleans(), cut=st.booleans(), began=MOMENTS, lasted=st.integers(1, 40))
def test_events_around_are_enough(
    steps: list[tuple[int, Call, int, bool]], late: bool, cut: bool, began: int, lasted: int
) -> None:
    session = thread_of(steps, late=late, cut=cut)
    moments = START_NS + began, START_NS + began + lasted
    told = meanwhile(session, 100, *moments)

    def whole_life(_: Session, life: Ids, *__: int) -> Ids:
        return life

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_around", whole_life)
        assert meanwhile(session, 100, *moments) == told


def test_a_number_used_again_is_of_the_process_that_has_it_then() -> None:
    script = Script().process(100).process(200)
    script.event(100, 300, Call.recvfrom, fd=9, ret=1, at=0, took=10)
    script.event(200, 300, Call.recvfrom, fd=9, ret=1, at=1000, took=500)
    session = script.session()
    assert meanwhile(session, 300, START_NS + 1100, START_NS + 1200).tgid == 200
    assert meanwhile(session, 300, START_NS, START_NS + 20).tgid == 100
