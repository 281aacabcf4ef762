"""Makes a page for every rule from its docstring, so that the docs cannot drift from the code."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from sockscope.findings.catalogue import catalogue, sections


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add `rules/index.md` and `rules/<slug>.md`."""
    index = ["# Rules", "", "| rule | severity | the fault |", "|---|---|---|"]
    for rule in catalogue():
        slug = rule.RULE.slug
        index.append(f"| [{slug}]({slug}.md) | {rule.RULE.severity.label} | {rule.RULE.summary} |")
        page = [f"# {slug}", "", f"*{rule.RULE.severity.label}*: {rule.RULE.summary}", ""]
        for heading, text in sections(rule).items():
            page += [f"## {heading}", "", text, ""]
        page += ["## See it", "", f"```sh\nsockscope demo {slug}\n```", ""]
        files.append(File.generated(config, f"rules/{slug}.md", content="\n".join(page)))
    files.append(File.generated(config, "rules/index.md", content="\n".join(index) + "\n"))
    return files
