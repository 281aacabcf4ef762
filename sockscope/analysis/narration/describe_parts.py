"""What the argument formatters of `describe_calls` and `describe_system` share."""

from __future__ import annotations

from collections.abc import Callable

from sockscope.analysis.narration import describe_values as v
from sockscope.analysis.narration.describe_view import View
from sockscope.model import constants as c

Formatter = Callable[[View, int], str]
"""(event, payload bytes shown) → what stands between the parentheses."""


def joined(*parts: str) -> str:
    return ", ".join(parts)


def ints(count: int) -> Formatter:
    def formatter(view: View, _: int) -> str:
        return joined(*(str(view.int_arg(i)) for i in range(count)))

    return formatter


def ints_and_flags(count: int, names: c.Names) -> Formatter:
    def formatter(view: View, _: int) -> str:
        return joined(*(str(view.int_arg(i)) for i in range(count)), v.flags(view.args[count] & 0xFFFFFFFF, names))

    return formatter
