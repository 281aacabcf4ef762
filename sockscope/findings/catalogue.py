"""Which rules there are: every module of this package that declares a `RULE`, found by name, listed nowhere."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from types import ModuleType
from typing import cast

import sockscope.findings
from sockscope.errors import UsageError
from sockscope.findings.contract import HEADINGS, RuleModule
from sockscope.model.findings import Rule


def _as_rule(module: ModuleType) -> RuleModule | None:
    """The module, if it is a rule; the room's helpers (this file among them) are not."""
    return cast(RuleModule, module) if isinstance(getattr(module, "RULE", None), Rule) else None


def catalogue() -> list[RuleModule]:
    """Every rule module, by slug."""
    names = (found.name for found in pkgutil.iter_modules(sockscope.findings.__path__))
    modules = (_as_rule(importlib.import_module(f"{sockscope.findings.__name__}.{name}")) for name in names)
    return sorted((module for module in modules if module is not None), key=lambda module: module.RULE.slug)


def slugs() -> list[str]:
    """Every rule's slug, sorted."""
    return [module.RULE.slug for module in catalogue()]


def nearest(slug: str) -> list[str]:
    """Slugs that someone who wrote `slug` may have meant, likeliest first; empty where none is near."""
    written = slug.strip().lower().replace("_", "-")
    known = slugs()
    close = difflib.get_close_matches(written, known, n=3, cutoff=0.55)
    parts = [name for name in known if len(written) > 2 and written in name and name not in close]
    return (close + parts)[:3]


def find(slug: str) -> RuleModule:
    """The rule of that slug.

    Raises:
        UsageError: there is none; the help names the nearest.
    """
    for module in catalogue():
        if module.RULE.slug == slug:
            return module
    near = nearest(slug)
    raise UsageError(
        f"unknown rule {slug!r}",
        help_text=f"did you mean {' or '.join(near)}?" if near else "sockscope rules lists them",
    )


def sections(module: RuleModule) -> dict[str, str]:
    """A rule's documentation: heading → text, in the order of `HEADINGS`; a heading it lacks is left out.

    The docstring holds each heading on a line of its own, with a colon, and its text indented under it.
    A paragraph comes back as one line, for the reader's own width; lists and code (indented) as they are.
    """
    known = "|".join(map(re.escape, HEADINGS))
    parts = re.split(rf"^({known}):[ ]*$", inspect.cleandoc(module.__doc__ or ""), flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {name: _unwrapped(inspect.cleandoc("\n" + found[name]).strip()) for name in HEADINGS if name in found}


def _unwrapped(text: str) -> str:
    """Paragraphs without the line breaks of the source."""
    paragraphs = re.split(r"\n[ ]*\n", text)
    kept = (re.search(r"^([ ]{2,}|[-*] |\d+\. )", part, re.MULTILINE) for part in paragraphs)
    return "\n\n".join(
        part if as_it_is else " ".join(part.split("\n")) for part, as_it_is in zip(paragraphs, kept, strict=True)
    )
