"""What a rule module is: `RULE` and `check`, under a docstring with the fixed headings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from sockscope.analysis.session import Session
from sockscope.model.findings import Finding, Rule, Skip


class RuleModule(Protocol):
    """One file of `findings/` (its name is the slug with underscores)."""

    RULE: Rule
    __doc__: str | None

    def check(self, session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
        """Yield findings, or a Skip where what it needs is missing for reasons only it can see.

        Args:
            session: the joined session.
            explained: connection ids that rules in `RULE.yields_to` have reported; stay silent on them.
        """
        ...


HEADINGS = (
    "What it reports",
    "Why it matters",
    "Evidence",
    "Example",
    "Mend",
    "False positives",
    "References",
)
