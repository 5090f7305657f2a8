"""A finding: a line of `sdpo doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "WARN", "FAIL"]
"""`FAIL` will spoil a run, `WARN` may spoil it."""


@dataclass(frozen=True)
class Finding:
    """The outcome of a check.

    Attributes:
        check: name of the check.
        status: how bad the finding is.
        text: the finding and, unless it is `ok`, what to do.
    """

    check: str
    status: Status
    text: str
