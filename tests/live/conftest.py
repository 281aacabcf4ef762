"""The plays that the chosen tests look at: begun together, when the first of these tests is reached, and shared."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Generator, Iterator

import pytest

from sockscope.pipeline.options import EngineChoice
from tests.live.engines import bpf_problem
from tests.live.rehearsals import Performance, Rehearsals


def named(item: pytest.Item) -> list[Performance[object]]:
    """The plays that a test names in its parameters."""
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return []
    return [
        case
        for value in item.callspec.params.values()
        for case in (value if isinstance(value, tuple) else (value,))
        if isinstance(case, Performance)
    ]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Last, and one after the other: the rest has the machine for itself, and each play its share of it.
    items.sort(key=lambda item: bool(named(item)))


@pytest.fixture(scope="session")
def rehearsals(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsals]:
    """The plays of all chosen tests, in the tests' order."""
    wanted = [case for item in request.session.items for case in named(item)]
    if bpf_problem() is not None:
        wanted = [case for case in wanted if case.engine is not EngineChoice.BPF]
    with Rehearsals(wanted, tmp_path_factory.mktemp("rehearsals")) as plays:
        yield plays


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A test that fails on one play or two gets them once more, and says so.

    Plays share the machine, and a second without the CPU makes another story of any of them. A fault of ours comes
    again.
    """
    try:
        return (yield)
    except Exception as error:
        plays = named(pyfuncitem)
        if not 1 <= len(plays) <= 2:
            raise
        warnings.warn(f"{pyfuncitem.name}: played again, as it failed: {error}", stacklevel=1)
        rehearsals = pyfuncitem.funcargs["rehearsals"]
        assert isinstance(rehearsals, Rehearsals)
        for case in plays:
            rehearsals.again(case)
        wanted = inspect.signature(pyfuncitem.obj).parameters
        return pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted}) or True
