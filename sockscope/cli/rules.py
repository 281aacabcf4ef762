"""`sockscope rules [SLUG]`: the catalogue, or one rule explained."""

from __future__ import annotations

from typing import Annotated

import typer

from sockscope.cli.options import complete_slug

EXAMPLES = (
    "sockscope rules",
    "sockscope rules fin-withheld",
)


def rules(
    slug: Annotated[
        str | None, typer.Argument(metavar="[SLUG]", help="Explain this one.", autocompletion=complete_slug)
    ] = None,
) -> int:
    """List the rules, or explain one: what it reports, why it matters, evidence, mend, false positives."""
    from rich.console import Console
    from rich.text import Text

    from sockscope.cli.listing import print_groups
    from sockscope.findings.catalogue import catalogue, find, sections
    from sockscope.model.findings import Severity
    from sockscope.reports.trimmed import Trimmed

    console = Console(highlight=False)
    if slug is None:
        found = [rule.RULE for rule in catalogue()]
        print_groups(
            (
                (severity.label, [(rule.slug, rule.summary) for rule in found if rule.severity is severity])
                for severity in sorted(Severity, reverse=True)
            ),
            console=console,
        )
        if console.is_terminal:
            console.print(Text("\nsockscope rules SLUG explains one, sudo sockscope demo SLUG shows it.", "dim"))
        return 0
    rule = find(slug)
    title = Text(rule.RULE.slug, "bold cyan").append(f" ({rule.RULE.severity.label}) {rule.RULE.summary}", "not bold")
    console.print(Trimmed(title))
    for heading, text in sections(rule).items():
        console.print()
        console.print(Text(heading, "bold"))
        console.print(Trimmed(Text(text)))
    console.print()
    console.print(Text("See it", "bold"))
    console.print(Trimmed(Text(f"sudo sockscope demo {rule.RULE.slug}")))
    return 0
