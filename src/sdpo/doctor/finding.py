"""A line of `sdpo doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "WARN", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: its name.
        status: `FAIL` would ruin a run, `WARN` may.
        text: the finding, and what to do unless it is `ok`.
    """

    check: str
    status: Status
    text: str


def gigabytes(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
