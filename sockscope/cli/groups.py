"""Options that come in groups: a command names the group, and gets all its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints


def with_groups(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """The command as typer shall see it: each parameter whose type is a dataclass becomes an option a field, after
    the command's own.

    The fields carry `typer.Option` in their types (Annotated), as parameters do. The command itself gets the
    dataclass, filled in.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    of_groups: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind))
            continue
        groups[name] = kind
        options = get_type_hints(kind, include_extras=True)
        of_groups += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=options[field.name],
            )
            for field in fields(kind)
        ]

    @wraps(command)
    def expanded(**given: object) -> int | None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        return command(**given)

    shown = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*parameters, *of_groups)]
    vars(expanded)["__signature__"] = inspect.Signature(shown)
    expanded.__annotations__ = {p.name: p.annotation for p in shown}
    return expanded
