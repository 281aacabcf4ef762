"""A rule imports helpers, never another rule: each is one file that can be read, and removed, alone."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
from pathlib import Path

import pytest

import sockscope.findings.shared
from sockscope.findings.catalogue import catalogue

RULES = {f"sockscope.findings.{module.RULE.slug.replace('-', '_')}" for module in catalogue()}

SHARED = [found.name for found in pkgutil.iter_modules(sockscope.findings.shared.__path__)]


def imported(name: str) -> set[str]:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    found: set[str] = set()
    for node in ast.walk(ast.parse(Path(spec.origin).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_rule_imports_no_other_rule(rule: str) -> None:
    assert not imported(rule) & (RULES - {rule})


@pytest.mark.parametrize("name", SHARED)
def test_what_rules_share_knows_no_rule(name: str) -> None:
    assert not imported(f"sockscope.findings.shared.{name}") & RULES
