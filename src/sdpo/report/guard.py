"""The section on over-optimisation: what was measured beside the reward, and what the stopping rules say."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from sdpo.report.charts import step_legend
from sdpo.report.looks import step_label
from sdpo.report.reader import Run
from sdpo.report.stats import step_counts
from sdpo.report.svg import Series, line_chart

_TITLES = {
    "diversity": ("Diversity", "pairwise distance"),
    "edge_density": ("Edge density", "share of pixels"),
    "entropy": ("Entropy of brightness", "bits"),
    "kl_to_base": ("Drift from the base model", "KL a latent element, nats"),
}


def monitors(run: Run) -> str:
    """A small chart of each monitor at each step count, and the rules."""
    names = dict.fromkeys(name for evaluation in run.evaluations for name in evaluation.monitors)
    if not names:
        return '<p class="missing">Nothing was measured beside the reward yet.</p>'
    lead = (
        "A reward can be gamed. Where it rises while diversity, edges or entropy fall far below the base model's, or "
        "while held-out rewards and the judge (among the learning curves) fall, look at the pictures."
    )
    charts = "".join(_chart(run, name) for name in names)
    return f'<p>{lead}</p>{step_legend(run)}<div class="charts small">{charts}</div>{_rules(run)}'


def stopped(run: Run) -> str:
    """Why the run ended before its last epoch, if it did."""
    return f"<p><b>{escape(str(run.stopped['text']))}</b></p>" if run.stopped.get("text") else ""


def _chart(run: Run, name: str) -> str:
    series = []
    for style, steps in enumerate(step_counts(run)):
        points = [(e.epoch, e.monitors[name][steps]) for e in run.evaluations if steps in e.monitors.get(name, {})]
        series.append(Series(step_label(steps), [float(x) for x, _ in points], [y for _, y in points], style))
    title, axis = _TITLES.get(name, (name, "value"))
    return line_chart(title, series, "epoch", axis)


def _rules(run: Run) -> str:
    rules = run.config.get("stop_when")
    if not isinstance(rules, list) or not rules:
        return "<p>This run has no stopping rule (<code>stop_when</code>).</p>"
    items = "".join(f"<li>{escape(_rule(rule))}</li>" for rule in rules if isinstance(rule, Mapping))
    return f"<p>Rules that end the run:</p><ul>{items}</ul>"


def _rule(rule: Mapping[str, Any]) -> str:
    side = "below" if rule.get("below") is not None else "above"
    base = " × the base model's" if rule.get("relative_to") else ""
    patience = rule.get("patience") or 1
    times = f", {patience} evaluations in a row" if patience != 1 else ""
    return f"{rule.get('metric')} {side} {rule.get(side)}{base}{times}"
