"""The recipes of docs/recipes.md, run as they stand on what the page's first command makes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```", (ROOT / "docs" / "recipes.md").read_text(), re.DOTALL | re.MULTILINE)
FIRST, RECIPES = BLOCKS[0][1], BLOCKS[1:]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("recipes")
    words = shlex.split(FIRST)
    assert words[:2] == ["sudo", "sockscope"]
    subprocess.run(
        [sys.executable, "-m", "sockscope", *words[2:]], cwd=made, env=ENVIRONMENT, check=True, capture_output=True
    )
    return made


def test_there_are_recipes() -> None:
    kinds = [kind for kind, _ in RECIPES]
    assert kinds.count("python") >= 5
    assert kinds.count("sh") >= 3


@pytest.mark.parametrize(("kind", "text"), RECIPES, ids=[f"{at}-{kind}" for at, (kind, _) in enumerate(RECIPES)])
def test_a_recipe(kind: str, text: str, folder: Path) -> None:
    command = [sys.executable, "-c", text] if kind == "python" else ["sh", "-c", text]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 1, done.stdout
    assert "0 rows" not in done.stdout
    assert "Empty DataFrame" not in done.stdout
