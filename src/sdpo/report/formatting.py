"""Numbers, durations and step counts as text."""

from __future__ import annotations

import math
from collections.abc import Sequence


def time_unit(seconds: float) -> tuple[float, str]:
    """Return the divisor and the name of the unit that suits a duration: `s`, `min` or `h`."""
    return next(((d, u) for limit, d, u in ((180, 1, "s"), (10800, 60, "min")) if seconds < limit), (3600, "h"))


def duration(seconds: float) -> str:
    """Return a duration as text: `4000` → `1 h 07 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def decimals_for(errors: Sequence[float], values: Sequence[float]) -> int:
    """Return how many decimals to print.

    Args:
        errors: standard errors of the numbers; their median is shown with two significant digits.
        values: the numbers; the largest is shown with four significant digits if no error is finite and positive.
    """
    usable = sorted(e for e in errors if math.isfinite(e) and e > 0)
    if usable:
        return min(6, max(0, 1 - math.floor(math.log10(usable[len(usable) // 2]))))
    top = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    return 3 if top == 0 else min(6, max(0, 3 - math.floor(math.log10(top))))


def number(value: float, decimals: int, *, sign: bool = False) -> str:
    """Return a number with a typographic minus sign; `sign` also writes a plus sign."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:{'+' if sign else ''}.{decimals}f}".replace("-", "−")


def percent(share: float) -> str:
    """Return a share as per cent with two significant digits: `0.476` → `48 %`."""
    value = 100 * share
    return "less than 0.01 %" if value < 0.01 else f"{number(value, decimals_for([value], []))} %"


def step_label(steps: int) -> str:
    """Return a number of sampling steps in words: `1` → `1 step`."""
    return "1 step" if steps == 1 else f"{steps} steps"
