"""`sockscope rules [SLUG]`: the catalogue, or one rule explained."""

from __future__ import annotations

from typing import Annotated

import typer

from sockscope.cli.options import complete_slug

EXAMPLES = "Examples: sockscope rules | sockscope rules fin-withheld"


def rules(
    slug: Annotated[
        str | None, typer.Argument(metavar="[SLUG]", help="Explain this one.", autocompletion=complete_slug)
    ] = None,
) -> int:
    """List the rules, or explain one: what it reports, why it matters, evidence, mend, false positives."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sockscope.findings.catalogue import catalogue, find, sections

    console = Console(highlight=False)
    found = catalogue()
    if slug is None:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column()
        for rule in found:
            table.add_row(Text(rule.RULE.slug, "bold"), Text(rule.RULE.severity.label), Text(rule.RULE.summary))
        console.print(table)
        return 0
    rule = find(slug)
    console.print(Text(rule.RULE.slug, "bold"), Text(f"({rule.RULE.severity.label})"), Text(rule.RULE.summary))
    for heading, text in sections(rule).items():
        console.print()
        console.print(Text(heading, "bold"))
        console.print(Text(text))
    return 0
