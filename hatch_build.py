"""Build hook: compiles the tracers' inner loop with the `ziglang` package, so no system compiler is needed."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("sockscope/sources/syscalls/ptrace")
LIBRARY = "_loop.so"
GLIBC = "2.17"  # manylinux2014: every distribution that has Python 3.11


def compile_loop(root: Path) -> Path:
    """Compile the C files of the ptrace engine into one shared library beside its Python.

    Args:
        root: the checkout or unpacked sdist.

    Returns:
        Path of the library.

    Raises:
        subprocess.CalledProcessError: the compiler refused.
    """
    target = root / FOLDER / LIBRARY
    fresh = target.with_suffix(".so.new")
    sources = sorted((root / FOLDER / "csrc").glob("*.c"))
    subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "cc"),
            *("-target", f"{platform.machine()}-linux-gnu.{GLIBC}"),
            *("-std=gnu11", "-O2", "-g0", "-fPIC", "-shared", "-fno-sanitize=undefined"),
            *("-Wall", "-Wextra", "-Werror", "-fvisibility=default"),
            *("-o", str(fresh)),
            *map(str, sources),
        ],
        check=True,
    )
    # Replaced, not overwritten: a tracer may be running from the old one.
    fresh.replace(target)
    return target


class LoopBuildHook(BuildHookInterface):  # type: ignore[type-arg,misc,unused-ignore]
    """Makes wheels platform wheels that carry the compiled loop."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        # On other systems the offline analysis works; the engine says there that it is for Linux.
        if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
            return
        compile_loop(Path(self.root))
        build_data["artifacts"].append(f"/{FOLDER}/{LIBRARY}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{platform.machine()}"


if __name__ == "__main__":
    print(compile_loop(Path(__file__).parent))
