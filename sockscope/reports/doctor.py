"""What this machine allows, as text, as a table, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sockscope.model.capability import Capability, Status, main_job_possible

if TYPE_CHECKING:
    from rich.table import Table

JSON_SCHEMA = "sockscope-doctor/1"
_STYLES = {Status.OK: "green", Status.LIMITED: "yellow", Status.MISSING: "bold red"}


def verdict(found: Sequence[Capability]) -> str:
    """The closing line."""
    if not main_job_possible(tuple(found)):
        names = ", ".join(c.name for c in found if c.needed and c.status is Status.MISSING)
        return f"sockscope cannot do its main job here: {names}"
    limited = [c.name for c in found if c.status is not Status.OK]
    return f"sockscope works here, with limits: {', '.join(limited)}" if limited else "sockscope works here"


def plain(found: Sequence[Capability]) -> str:
    """One check a line, its mend on the next; ends with a line break."""
    width = max((len(c.name) for c in found), default=0)
    lines = []
    for c in found:
        lines.append(f"{c.status.value:7} {c.name:{width}}  {c.detail}: {c.meaning}")
        if c.mend:
            lines.append(f"{'':7} {'':{width}}  → {c.mend}")
    return "\n".join([*lines, verdict(found), ""])


def table(found: Sequence[Capability]) -> Table:
    """For a terminal."""
    from rich.table import Table
    from rich.text import Text

    out = Table(box=None, pad_edge=False, header_style="bold")
    out.add_column("", no_wrap=True)
    out.add_column("Check", no_wrap=True)
    out.add_column("Found", overflow="fold")
    out.add_column("What it means, and what mends it", overflow="fold")
    for c in found:
        last = Text(c.meaning)
        if c.mend:
            last.append(f"\n→ {c.mend}", style="cyan")
        out.add_row(Text(c.status.value, style=_STYLES[c.status]), Text(c.name), Text(c.detail), last)
    return out


def to_json(found: Sequence[Capability]) -> str:
    """`sockscope-doctor/1`: {"schema", "main_job_possible", "checks": [...]}."""
    checks = [
        {
            "name": c.name,
            "status": c.status.value,
            "detail": c.detail,
            "meaning": c.meaning,
            "mend": c.mend or None,
            "needed": c.needed,
        }
        for c in found
    ]
    whole = {"schema": JSON_SCHEMA, "main_job_possible": main_job_possible(tuple(found)), "checks": checks}
    return json.dumps(whole, indent=2) + "\n"
