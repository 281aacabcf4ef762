"""Build hook: compiles the C folders with the `ziglang` package, so no system compiler is needed."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARIES = (
    Path("sockscope/sources/syscalls/ptrace/_loop.so"),
    Path("sockscope/sources/sockets/_fd_scan.so"),
)
"""Each is made of the C files in `csrc/` beside it."""
GLIBC = "2.17"  # manylinux2014: every distribution that has Python 3.11


def compile_library(target: Path) -> None:
    """Compile the C files beside a shared library into it.

    Args:
        target: path of the library, in the checkout or unpacked sdist.

    Raises:
        subprocess.CalledProcessError: the compiler refused.
    """
    fresh = target.with_suffix(".so.new")
    sources = sorted((target.parent / "csrc").glob("*.c"))
    subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "cc"),
            *("-target", f"{platform.machine()}-linux-gnu.{GLIBC}"),
            *("-std=gnu11", "-O2", "-g0", "-fPIC", "-shared", "-pthread", "-fno-sanitize=undefined"),
            *("-Wall", "-Wextra", "-Werror", "-fvisibility=default"),
            *("-o", str(fresh)),
            *map(str, sources),
        ],
        check=True,
    )
    # Replaced, not overwritten: a tracer may be running from the old one.
    fresh.replace(target)


class LibrariesBuildHook(BuildHookInterface):  # type: ignore[type-arg,misc,unused-ignore]
    """Makes wheels platform wheels that carry the compiled libraries."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        # On other systems the offline analysis works; the engine says there that it is for Linux.
        if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
            return
        for library in LIBRARIES:
            compile_library(Path(self.root) / library)
            build_data["artifacts"].append(f"/{library}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{platform.machine()}"


if __name__ == "__main__":
    for library in LIBRARIES:
        compile_library(Path(__file__).parent / library)
        print(library)
