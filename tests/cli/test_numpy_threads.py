"""numpy starts no threads, and what is launched after it does not hear of that."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NAME = "OPENBLAS_NUM_THREADS"
CODE = f"""import os
from sockscope.cli.numpy_threads import load_numpy
load_numpy()
print(len(os.listdir("/proc/self/task")), os.environ.get({NAME!r}))"""


@pytest.mark.parametrize("former", [None, "3"])
def test_the_environment_stays_as_it_was(former: str | None) -> None:
    others = {name: value for name, value in os.environ.items() if name != NAME}
    environment = others if former is None else others | {NAME: former}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["1", str(former)]
