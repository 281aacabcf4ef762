"""What a machine allows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    OK = "ok"
    LIMITED = "limited"
    MISSING = "missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """One thing sockscope wants of the machine.

    Attributes:
        name: what it is called.
        status: whether it is there.
        detail: what was found.
        meaning: what follows for the user.
        mend: the command that mends it; empty where all is well or nothing can be done.
        needed: without it the main job cannot be done.
    """

    name: str
    status: Status
    detail: str
    meaning: str
    mend: str = ""
    needed: bool = False


def main_job_possible(found: tuple[Capability, ...]) -> bool:
    """Whether everything needed is there, if only in part."""
    return all(c.status is not Status.MISSING for c in found if c.needed)
