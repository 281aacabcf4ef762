"""Lines made in bulk read as if made one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sockscope.reports import text_columns as text
from sockscope.reports.escape import safe

TEXTS = st.text(max_size=12).map(safe)
ROW = st.tuples(
    st.sampled_from([0, 1, 9, 10, 65535, 2**32, 2**63 - 1]) | st.integers(0, 2**63 - 1), TEXTS, TEXTS, st.booleans()
)


def one_by_one(rows: list[tuple[int, str, str, bool]], widths: tuple[int, int]) -> str:
    lines = []
    for number, name, rest, short in rows:
        first = ("*" if number == 0 else str(number)).rjust(widths[0]) + ":"
        lines.append(first + (name if short else name.ljust(widths[1]) + " ") + rest + "\n")
    return "".join(lines)


@given(st.lists(ROW, min_size=1, max_size=40), st.integers(0, 8))
def test_lines_are_what_padding_one_by_one_gives(rows: list[tuple[int, str, str, bool]], at_most: int) -> None:
    numbers = text.numbers(np.array([row[0] for row in rows], np.uint64), zero="*")
    names = text.coded([row[1] for row in rows], np.arange(len(rows)))
    rest = text.replaced(text.constant("never seen", len(rows)), {n: row[2] for n, row in enumerate(rows)})
    short = np.array([row[3] for row in rows])
    widths = numbers.width("Title"), names.width("T", at_most)
    got = text.lines(
        [
            text.Place(column=numbers, width=widths[0], right=True, behind=":"),
            text.Place(column=names, width=widths[1], behind=" ", unless=short),
            text.Place(column=rest),
        ]
    )
    assert got == one_by_one(rows, widths)


def test_more_rows_than_a_block_holds() -> None:
    values = np.arange(200_000)
    assert text.lines([text.Place(column=text.numbers(values))]) == "".join(f"{n}\n" for n in values.tolist())


def test_joined_columns_keep_what_was_put_in() -> None:
    left = text.replaced(text.constant("a", 3), {1: "ä\u20ac", 2: ""})
    got = text.joined(left, text.constant("!", 3))
    assert got.lengths.tolist() == [2, 3, 1]
    assert text.lines([text.Place(column=got, width=4, right=True)]) == "  a!\n ä\u20ac!\n   !\n"
