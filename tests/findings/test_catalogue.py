"""The catalogue: every rule is documented, has its fixture, and runs after those it yields to."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from sockscope.errors import UsageError
from sockscope.findings.catalogue import catalogue, find, nearest, sections, slugs
from sockscope.findings.contract import HEADINGS, RuleModule
from sockscope.findings.run import in_order, run_rules
from sockscope.fixture import fixtures_folder, load
from sockscope.model.findings import Confidence, Consequence, Finding, Need, Rule, Severity, Skip
from tests.analysis.builders import Script

RULES = catalogue()


@pytest.mark.parametrize("module", RULES, ids=lambda module: module.RULE.slug)
def test_rule_is_whole(module: RuleModule) -> None:
    slug = module.RULE.slug
    assert module.__name__ == f"sockscope.findings.{slug.replace('-', '_')}"  # type: ignore[attr-defined]
    documented = sections(module)
    assert list(documented) == list(HEADINGS)
    assert all(documented.values())
    assert module.RULE.summary
    assert module.RULE.yields_to <= set(slugs()), module.RULE.yields_to - set(slugs())


@pytest.mark.parametrize("module", RULES, ids=lambda module: module.RULE.slug)
def test_rule_has_its_fixture(module: RuleModule) -> None:
    folder = fixtures_folder() / module.RULE.slug
    assert load(module.RULE.slug).summary
    for program in ("faulty", "sound"):
        assert (folder / f"{program}.py").is_file() or (folder / f"{program}.c").is_file()


def test_sections_are_without_indentation() -> None:
    text = sections(find("close-wait-leak"))["Mend"]
    assert text.startswith("Close the descriptor")
    assert len(text.splitlines()) == 1


def test_sections_keep_lists_and_code() -> None:
    text = """Title.

    Mend:
        Two ways,
        one of them good:

        - close it,
          or
        - not

            close(fd)
    """
    assert sections(cast(RuleModule, SimpleNamespace(__doc__=text))) == {
        "Mend": "Two ways, one of them good:\n\n- close it,\n  or\n- not\n\n    close(fd)"
    }


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("close-wait-leek", "close-wait-leak"),
        ("fin_withheld", "fin-withheld"),
        ("Double-Close", "double-close"),
        ("inherited", "inherited-connection-fd"),
    ],
)
def test_nearest(written: str, meant: str) -> None:
    assert meant in nearest(written)


def test_nothing_is_near_nonsense() -> None:
    assert nearest("zzzz") == []


def test_unknown_slug_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError) as refused:
        run_rules(Script().session(), select=["close-wait-leek"])
    assert "close-wait-leak" in (refused.value.help_text or "")


def rule(
    slug: str,
    *,
    yields_to: frozenset[str] = frozenset(),
    fails: bool = False,
    found: Severity = Severity.WARNING,
    **more: object,
) -> RuleModule:
    """A rule that reports connection 1 unless that is explained."""

    def check(session: object, explained: frozenset[int]) -> Iterator[Finding | Skip]:
        if fails:
            raise ZeroDivisionError("a bug")
        if 1 not in explained:
            yield Finding(
                rule=slug,
                severity=found,
                confidence=Confidence.CERTAIN,
                title=slug,
                tgid=1,
                comm="x",
                explanation="",
                remedy="",
                connections=(1,),
            )

    made = Rule(slug=slug, severity=Severity.ERROR, summary=slug, yields_to=yields_to, **more)  # type: ignore[arg-type]
    return cast(RuleModule, SimpleNamespace(RULE=made, check=check))


def test_a_general_rule_is_silent_where_a_specific_one_speaks() -> None:
    modules = [
        rule("a-general", yields_to=frozenset({"b-specific"})),
        rule("b-specific", yields_to=frozenset({"c-most"})),
        rule("c-most"),
    ]
    findings, skips, ran = run_rules(Script().session(), modules=modules)
    assert [f.rule for f in findings] == ["c-most"]
    assert not skips
    assert [r.slug for r in ran] == ["a-general", "b-specific", "c-most"]


def test_an_ignored_rule_still_explains() -> None:
    modules = [rule("a-general", yields_to=frozenset({"b-specific"})), rule("b-specific")]
    findings, _, ran = run_rules(Script().session(), ignore=["b-specific"], modules=modules)
    assert findings == []
    assert [r.slug for r in ran] == ["a-general"]


def test_one_rule_s_bug_costs_only_that_rule() -> None:
    findings, skips, ran = run_rules(Script().session(), modules=[rule("bad", fails=True), rule("good")])
    assert [f.rule for f in findings] == ["good"]
    assert skips == [Skip(rule="bad", reason="internal error: ZeroDivisionError: a bug")]
    assert [r.slug for r in ran] == ["good"]


def test_what_was_lost_is_said() -> None:
    modules = [
        rule("needs-all"),
        rule("bears-loss", bears_loss=True),
        rule("needs-wire", needs=frozenset({Need.PACKETS})),
    ]
    findings, skips, _ = run_rules(Script(lost={"ring full": 7}).session(), modules=modules)
    assert [f.rule for f in findings] == ["bears-loss"]
    reasons = {skip.rule: skip.reason for skip in skips}
    assert reasons["needs-all"].startswith("7 syscall events were lost")
    assert reasons["needs-wire"] == "no packets were captured"


def test_rules_in_a_circle_are_a_bug() -> None:
    circle = [rule("a", yields_to=frozenset({"b"})), rule("b", yields_to=frozenset({"a"}))]
    with pytest.raises(ValueError, match="yield to each other"):
        in_order(circle, {"a", "b"})


def test_a_hint_silences_only_the_rule_that_names_it() -> None:
    general = rule("general", yields_to=frozenset({"between"}))
    between = rule("between", yields_to=frozenset({"hint"}))
    hint = rule("hint", found=Severity.INFO)
    findings, _, _ = run_rules(Script().session(), modules=[general, between, hint])
    assert [finding.rule for finding in findings] == ["general", "hint"]


def test_a_consequence_is_told_under_its_cause() -> None:
    cause, effect = rule("cause"), rule("effect", follows=frozenset({"cause"}))
    findings, _, ran = run_rules(Script().session(), modules=[effect, cause])
    assert [finding.rule for finding in findings] == ["cause"]
    assert findings[0].consequences == (Consequence(rule="effect", title="effect"),)
    assert [each.slug for each in ran] == ["cause", "effect"]
    alone, _, _ = run_rules(Script().session(), modules=[effect])
    assert [finding.rule for finding in alone] == ["effect"]


def test_a_hint_hides_no_fault() -> None:
    cause = rule("cause", found=Severity.INFO)
    effect = rule("effect", follows=frozenset({"cause"}), found=Severity.ERROR)
    findings, _, _ = run_rules(Script().session(), modules=[cause, effect])
    assert [finding.rule for finding in findings] == ["effect", "cause"]


def test_the_catalogue_has_no_circle() -> None:
    assert len(in_order(RULES, set(slugs()))) == len(RULES)


def test_an_empty_session_has_no_findings() -> None:
    findings, skips, _ = run_rules(Script().session())
    assert findings == []
    assert not [skip for skip in skips if skip.reason.startswith("internal")]
