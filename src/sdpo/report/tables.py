"""The tables of the page: what training changed, and what it cost."""

from __future__ import annotations

from html import escape

from sdpo.report.looks import decimals_for, duration, number, step_label
from sdpo.report.reader import COSTS, Run
from sdpo.report.stats import Comparison, Gain, SplitName, compare


def result_table(run: Run, name: str, split: SplitName = "seen") -> str:
    """Before, after and paired gain of one reward or judge at each step count."""
    rows = compare(run, name, split)
    judged = name in run.judges
    factor, unit, gain_unit = (100.0, " %", " pp") if judged else (1.0, "", "")
    errors = [factor * r.gain.standard_error for r in rows if r.gain]
    values = [factor * v for r in rows for v in (r.before, r.after) if v is not None]
    decimals = decimals_for(errors, values)
    if judged:
        decimals = min(decimals, 1)

    def value(score: float | None) -> str:
        return "–" if score is None else escape(number(factor * score, decimals)) + unit

    body = "".join(
        f'<tr><th scope="row">{step_label(r.steps)}</th><td>{value(r.before)}</td><td>{value(r.after)}</td>'
        f"<td>{_gain(r, factor, decimals, gain_unit)}</td></tr>"
        for r in rows
    )
    images = max((r.gain.images for r in rows if r.gain), default=0)
    count = f" <small>{images:,} images</small>" if images else ""
    what = "recognised rate" if judged else "mean reward"
    return (
        f"<table><caption><b>{escape(name)}</b> {what}{count}</caption>"
        '<thead><tr><th scope="col">Steps</th><th scope="col">Before</th><th scope="col">After</th>'
        f'<th scope="col">Gain ± s.e.</th></tr></thead><tbody>{body}</tbody></table>'
    )


def _gain(row: Comparison, factor: float, decimals: int, unit: str) -> str:
    if row.gain is None:
        return "–" if row.before is None or row.after is None else "not paired"
    mean, error = factor * row.gain.mean, factor * row.gain.standard_error
    spread = f" ± {number(error, decimals)}" if row.gain.images > 1 else ""
    text = f"{number(mean, decimals, sign=True)}{spread}{unit}"
    remark = "" if row.gain.clear else "<small>within 2 s.e.</small>"
    if not row.gain.telling:
        remark = "<small>too few images to tell</small>"
    if mean == 0 == error:
        text, remark = f"{number(0.0, decimals)}{unit}", "<small>no score changed</small>"
    return f'<span class="{gain_class(row.gain)}">{text}</span>{remark}'


def gain_class(gain: Gain) -> str:
    """The CSS class of a gain: its sign, or `even` where two standard errors cover zero."""
    if not gain.clear:
        return "even"
    return "up" if gain.mean > 0 else "down"


def summary(run: Run, names: list[str]) -> str:
    """One sentence a score: at how many step counts it clearly rose or fell."""
    parts = []
    for name in names:
        gains = [r.gain for r in compare(run, name) if r.gain and r.gain.telling]
        if gains:
            up = sum(g.clear and g.mean > 0 for g in gains)
            down = sum(g.clear and g.mean < 0 for g in gains)
            fell = f" and fell at {down}" if down else ""
            parts.append(f"<b>{escape(name)}</b> rose at {up} of {len(gains)} step counts{fell}")
    if not parts:
        return ""
    return f"<p>By more than two standard errors: {'; '.join(parts)}.</p>"


def cost_table(run: Run) -> str:
    """What the run spent: in total, an epoch and a sample."""
    if not run.metrics:
        return '<p class="missing">No epoch has finished yet.</p>'
    last, epochs = run.metrics[-1], max(1, run.last_epoch)
    images = last.get("images")
    rows = []
    for key, words in COSTS.items():
        total = last.get(key)
        if not isinstance(total, (int, float)):
            rows.append(f'<tr><th scope="row">{words}</th><td>–</td><td>–</td><td>–</td></tr>')
            continue
        each = f"{total / images:,.3g}" if isinstance(images, (int, float)) and images else "–"
        if key == "seconds":
            cells = (duration(total), _seconds(total / epochs), "–" if each == "–" else f"{each} s")
        else:
            cells = (f"{total:,.0f}", f"{total / epochs:,.4g}", each)
        tds = "".join(f"<td>{c}</td>" for c in cells)
        rows.append(f'<tr><th scope="row">{words}</th>{tds}</tr>')
    titles = (f"After epoch {run.last_epoch}", "Total", "An epoch", "A sample")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return f'<table class="cost"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _seconds(value: float) -> str:
    return duration(value) if value >= 90 else f"{value:.3g} s"
