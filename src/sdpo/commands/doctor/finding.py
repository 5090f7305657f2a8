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
