"""Python processes of our own, beside the one that the user started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import sockscope

NO_THREADS: Mapping[str, str] = MappingProxyType({"OPENBLAS_NUM_THREADS": "1"})
"""numpy's linear algebra, which nobody here needs, would start a thread a CPU, and have it spin for a while."""


def environment() -> dict[str, str]:
    """Of a process that is to import the same sockscope, by `python -P -m`, from whatever folder."""
    package = str(Path(sockscope.__file__).parents[1])
    inherited = os.environ.get("PYTHONPATH")
    path = f"{package}{os.pathsep}{inherited}" if inherited else package
    return os.environ | {"PYTHONPATH": path, **NO_THREADS}
