"""One thing that was looked at, here or on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medr3.errors import UserError


@dataclass(frozen=True, slots=True)
class Check:
    """`mend` says what to do where it is not right."""

    name: str
    ok: bool
    found: str
    mend: str

    def __str__(self) -> str:
        return f"{self.name}: {self.found}" + ("" if self.ok else f"; {self.mend}")


def require(checks: Sequence[Check]) -> None:
    """Raises one UserError that names every failure with its mend, a line each."""
    if wrong := [str(check) for check in checks if not check.ok]:
        raise UserError("\n".join(wrong))
