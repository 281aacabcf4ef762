"""Makes a page for every rule from its docstring, its fixture and its precedence, so that the docs cannot drift."""

from __future__ import annotations

from collections.abc import Iterable

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from sockscope.findings.catalogue import catalogue, sections
from sockscope.findings.contract import RuleModule
from sockscope.fixture import fixtures_folder

PRECEDENCE = """# One cause, one finding

Where one fault shows in several ways, one rule speaks. Two orders decide which:

- **per connection**: a specific rule silences a general one on the connections that it explains;
- **per process**: where one fault of a process brings on another, the second is told under the first, as what
  *follows from it*.

Both hold whatever `--select` and `--ignore` say: leaving a rule out does not turn its connections into another's.

| rule | is silent where one of these explains the connection | is told under one of these, in the same process |
|---|---|---|
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add `rules/index.md`, `rules/precedence.md` and `rules/<slug>.md`."""
    rules = catalogue()
    index = ["# Rules", "", "[Which rule speaks where several could](precedence.md).", ""]
    index += ["| rule | severity | the fault |", "|---|---|---|"]
    precedence = [PRECEDENCE.rstrip("\n")]
    for rule in rules:
        slug = rule.RULE.slug
        index.append(f"| {_link(slug)} | {rule.RULE.severity.label} | {rule.RULE.summary} |")
        if rule.RULE.yields_to or rule.RULE.follows:
            precedence.append(f"| {_link(slug)} | {_links(rule.RULE.yields_to)} | {_links(rule.RULE.follows)} |")
        files.append(File.generated(config, f"rules/{slug}.md", content=_page(rule, rules)))
    files.append(File.generated(config, "rules/index.md", content="\n".join(index) + "\n"))
    files.append(File.generated(config, "rules/precedence.md", content="\n".join(precedence) + "\n"))
    return files


def _page(module: RuleModule, rules: Iterable[RuleModule]) -> str:
    rule = module.RULE
    page = [f"# {rule.slug}", "", f"*{rule.severity.label}*: {rule.summary}", ""]
    for heading, text in sections(module).items():
        page += [f"## {heading}", "", text, ""]
    others = [
        ("Silent where one of these explains the connection", rule.yields_to),
        ("Told under one of these, in the same process", rule.follows),
        ("Speaks before", {each.RULE.slug for each in rules if rule.slug in each.RULE.yields_to | each.RULE.follows}),
    ]
    if any(slugs for _, slugs in others):
        page += ["## Beside other rules", "", *(f"- {words}: {_links(slugs)}" for words, slugs in others if slugs), ""]
    page += ["## See it", "", "A server with the fault, and the closest one without it:", ""]
    page += [f"```sh\nsudo sockscope demo {rule.slug}\nsudo sockscope demo {rule.slug} --sound\n```", ""]
    said = fixtures_folder() / rule.slug / "excerpt.txt"
    if said.is_file():
        page += ["The first says:", "", f"```text\n{said.read_text(encoding='utf-8').rstrip()}\n```", ""]
    return "\n".join(page)


def _link(slug: str) -> str:
    return f"[{slug}]({slug}.md)"


def _links(slugs: Iterable[str]) -> str:
    return ", ".join(map(_link, sorted(slugs)))
