"""Owners looked up by inode."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sockscope.model.sockets import OWNER_DTYPE, first_owners

NEAR = st.integers(0, 60)
FAR = st.integers(0, 2**64 - 1)


@given(
    held=st.lists(NEAR, max_size=30) | st.lists(FAR, max_size=30) | st.lists(NEAR | FAR, max_size=30),
    asked=st.lists(NEAR | FAR, max_size=30),
    again=st.integers(0, 30),
)
def test_the_first_owner_is_found_dense_or_not(held: list[int], asked: list[int], again: int) -> None:
    owners = np.zeros(len(held), OWNER_DTYPE)
    owners["inode"] = sorted(held)
    inodes = asked + held[:again]
    expected = [sorted(held).index(inode) if inode in held else len(held) for inode in inodes]
    assert first_owners(owners, np.array(inodes, np.uint64)).tolist() == expected
