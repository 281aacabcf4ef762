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
BPF_OBJECTS = (
    (Path("sockscope/sources/syscalls/bpf/csrc/trace.bpf.c"), Path("sockscope/sources/syscalls/bpf/_trace.bpf.o")),
    (Path("sockscope/sources/sockets/bpf/owners.bpf.c"), Path("sockscope/sources/sockets/bpf/_owners.bpf.o")),
)
"""Programs for the kernel: the file that includes all others of its folder, and its object."""
TARGET_ARCHES = {"x86_64": "x86", "aarch64": "arm64"}
"""What libbpf's world calls a machine: the registers of a syscall lie elsewhere on each."""
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


def compile_bpf(source: Path, target: Path, machine: str) -> None:
    """Compile a kernel program, with the BTF that lets libbpf fit it to the running kernel (CO-RE).

    Args:
        source: the C file.
        target: path of the object.
        machine: whose kernel will run it, as `platform.machine()` names it.

    Raises:
        subprocess.CalledProcessError: the compiler refused.
    """
    fresh = target.with_suffix(".o.new")
    subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "cc"),
            # v3: atomics with results and 32-bit registers (Linux 5.12).
            *("-target", "bpfel-freestanding", "-mcpu=v3", "-std=gnu11", "-O2", "-g"),
            *("-fno-unwind-tables", "-fno-sanitize=undefined", f"-D__TARGET_ARCH_{TARGET_ARCHES[machine]}"),
            *("-Wall", "-Wextra", "-Werror", "-c", "-o", str(fresh), str(source)),
        ],
        check=True,
    )
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
        for source, target in BPF_OBJECTS:
            compile_bpf(Path(self.root) / source, Path(self.root) / target, platform.machine())
            build_data["artifacts"].append(f"/{target}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{platform.machine()}"


if __name__ == "__main__":
    root = Path(__file__).parent
    for library in LIBRARIES:
        compile_library(root / library)
        print(library)
    for source, target in BPF_OBJECTS:
        compile_bpf(root / source, root / target, platform.machine())
        print(target)
