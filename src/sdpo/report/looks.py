"""What the page's charts and the PNG files share: one look a step count, axes, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """One line's colour in light and dark, dash and marker: three signals, so that colour is never the only one."""

    light: str
    dark: str
    dash: str  # SVG stroke-dasharray, empty for solid
    marker: str  # matplotlib's letter


# Okabe & Ito's palette, with a brown for its yellow (too faint on white); on dark, lighter ones take their place.
LOOKS = (
    Look("#0072B2", "#56B4E9", "", "o"),
    Look("#D55E00", "#F0833A", "7 3", "s"),
    Look("#009E73", "#2DC79B", "2 2.5", "^"),
    Look("#B2559A", "#CC79A7", "9 3 2 3", "D"),
    Look("#B77C00", "#E69F00", "5 2 1 2 1 2", "v"),
    Look("#4B4F54", "#B9BEC5", "12 4", "P"),
    Look("#4FA3D9", "#A6DBFF", "4 1.5", "<"),
    Look("#7A3B1D", "#D9A58C", "10 2 2 2 2 2", ">"),
)


def look(index: int) -> Look:
    """The look of the line at `index`; after eight the colours return, with other dashes and markers."""
    colour, shape = LOOKS[index % len(LOOKS)], LOOKS[(index + index // len(LOOKS)) % len(LOOKS)]
    return Look(colour.light, colour.dark, shape.dash, shape.marker)


def css_colours(theme: str) -> str:
    """The CSS variables `--s0`, `--s1`, … of the theme `light` or `dark`."""
    return " ".join(f"--s{i}: {look.light if theme == 'light' else look.dark};" for i, look in enumerate(LOOKS))


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round values that cover [low, high]; the first is ≤ low and the last is ≥ high."""
    if not high > low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Labels of one axis: the same number of decimals, thousands as k, millions as M."""
    top = max(abs(v) for v in values)
    unit, suffix = next(((u, s) for u, s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if top >= 2 * u), (1.0, ""))
    if suffix == "" and top >= 1000:
        return [f"{v:,.0f}" for v in values]
    step = abs(values[1] - values[0]) / unit if len(values) > 1 else 1.0
    decimals = next((d for d in range(7) if abs(round(step, d) - step) < 1e-6 * step), 6)
    return [("0" if abs(v) < 1e-12 else f"{v / unit:.{decimals}f}{suffix}".replace("-", "−")) for v in values]


def magnitude(values: Sequence[float]) -> int:
    """The power of ten to take out of an axis (0 when its values read well as they are)."""
    top = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    if top == 0 or 1e-2 <= top < 1e9:
        return 0
    return math.floor(math.log10(top))


def superscript(power: int) -> str:
    """`-3` → `⁻³`."""
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def time_unit(seconds: float) -> tuple[float, str]:
    """The divisor and name of the unit in which `seconds` reads best."""
    return next(((d, u) for limit, d, u in ((180, 1, "s"), (10800, 60, "min")) if seconds < limit), (3600, "h"))


def duration(seconds: float) -> str:
    """`4000` → `1 h 07 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def decimals_for(errors: Sequence[float], values: Sequence[float]) -> int:
    """Decimals that show two digits of the typical standard error, or four digits of the values without one."""
    usable = sorted(e for e in errors if math.isfinite(e) and e > 0)
    if usable:
        return min(6, max(0, 1 - math.floor(math.log10(usable[len(usable) // 2]))))
    top = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    return 3 if top == 0 else min(6, max(0, 3 - math.floor(math.log10(top))))


def number(value: float, decimals: int, *, sign: bool = False) -> str:
    """A number with a true minus sign; `sign` also writes the plus."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:{'+' if sign else ''}.{decimals}f}".replace("-", "−")


def step_label(steps: int) -> str:
    """`1` → `1 step`."""
    return "1 step" if steps == 1 else f"{steps} steps"
