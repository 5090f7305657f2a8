"""The section on over-optimisation: charts of the monitors, and the stopping rules in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from sdpo.report.formatting import step_label
from sdpo.report.reader import Run
from sdpo.report.stats import step_counts
from sdpo.report.svg import Series, line_chart

# The monitor → title and vertical axis.
_TITLES = {
    "diversity": ("Diversity", "pairwise distance"),
    "palette": ("Spread of background colours", "standard deviation"),
    "edge_density": ("Edge density", "share of pixels"),
    "entropy": ("Entropy of brightness", "bits"),
    "kl_to_base": ("Drift from the base model", "KL per latent element, nats"),
}


def monitor_charts(run: Run) -> list[Markup]:
    """Return a chart per monitor with a line per number of steps; none if nothing was measured yet."""
    names = dict.fromkeys(name for evaluation in run.evaluations for name in evaluation.monitors)
    return [_chart(run, name) for name in names]


def _chart(run: Run, name: str) -> Markup:
    series = []
    for style, steps in enumerate(step_counts(run)):
        points = [(e.epoch, e.monitors[name][steps]) for e in run.evaluations if steps in e.monitors.get(name, {})]
        series.append(Series(step_label(steps), [float(x) for x, _ in points], [y for _, y in points], style))
    title, axis = _TITLES.get(name, (name, "value"))
    return line_chart(title, series, "epoch", axis)


def stopping_rules(run: Run) -> list[str]:
    """Return each rule that ends the run."""
    rules = run.config.get("stop_when")
    return [_rule_text(rule) for rule in rules if isinstance(rule, Mapping)] if isinstance(rules, list) else []


def _rule_text(rule: Mapping[str, Any]) -> str:
    side = "below" if rule.get("below") is not None else "above"
    base = " × the base model's" if rule.get("relative_to") else ""
    patience = rule.get("patience") or 1
    times = f", {patience} evaluations in a row" if patience != 1 else ""
    return f"{rule.get('metric')} {side} {rule.get(side)}{base}{times}"
