"""Ticks of a chart's axes and their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round values that cover [low, high]: the first is ≤ low, the last is ≥ high."""
    if not high > low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Return the labels of an axis: equally many decimals, thousands as k, millions as M."""
    top = max(abs(v) for v in values)
    unit, suffix = next(((u, s) for u, s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if top >= 2 * u), (1.0, ""))
    if suffix == "" and top >= 1000:
        return [f"{v:,.0f}" for v in values]
    step = abs(values[1] - values[0]) / unit if len(values) > 1 else 1.0
    decimals = next((d for d in range(7) if abs(round(step, d) - step) < 1e-6 * step), 6)
    return [("0" if abs(v) < 1e-12 else f"{v / unit:.{decimals}f}{suffix}".replace("-", "−")) for v in values]


def magnitude(values: Sequence[float]) -> int:
    """Return the power of ten to divide an axis by; 0 if the values are readable without one."""
    top = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    if top == 0 or 1e-2 <= top < 1e9:
        return 0
    return math.floor(math.log10(top))


def superscript(power: int) -> str:
    """Return an exponent in superscript characters: `-3` → `⁻³`."""
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
