"""The page of a comparison: collects what the template `comparison.html.j2` lays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sdpo.commands.compare.allowed_differences import MAY_DIFFER_IN_A_GROUP
from sdpo.commands.compare.comparison import Comparison
from sdpo.commands.compare.groups import RunGroup
from sdpo.commands.compare.measures import group_curve
from sdpo.commands.compare.tables import BASE, ComparisonTable
from sdpo.config.differences import differences
from sdpo.config.plain_yaml import dump_line
from sdpo.evaluation.record import Evaluation
from sdpo.report.charts import ScoreCharts, percent_range
from sdpo.report.config_summary import rewards_text, setting_name, trained_text
from sdpo.report.formatting import duration, step_label
from sdpo.report.gallery import HtmlImage, cut_tiles, html_image
from sdpo.report.reader import COST_LABELS
from sdpo.report.svg import Series, legend, line_chart
from sdpo.report.templating import render_html

_TEMPLATES = Path(__file__).with_name("templates")
_MOST_TILES = 6


@dataclass(frozen=True)
class SampleSheet:
    """Images at one number of steps: a row per model, a column per prompt and seed.

    Attributes:
        label: number of steps in words.
        prompts: the columns' prompts.
        rows: pairs of the model's name and its images.
    """

    label: str
    prompts: list[str]
    rows: list[tuple[str, list[HtmlImage]]]


def render_comparison(comparison: Comparison, tables: Sequence[ComparisonTable]) -> str:
    """Return the whole page as one HTML document that loads nothing from elsewhere."""
    names = [group.name for group in comparison.groups]
    return render_html(
        "comparison.html.j2",
        _TEMPLATES,
        names=names,
        facts=_facts(comparison),
        notes=comparison.notes,
        tables=tables,
        legend=legend([(name, i) for i, name in enumerate(names)]),
        curves=[_score_charts(comparison, name) for name in comparison.scores],
        sheets=_sample_sheets(comparison),
        settings=_different_settings(comparison),
        cost_labels=COST_LABELS.values(),
        spent=[(group.name, _spent(comparison, group)) for group in comparison.groups],
    )


def _facts(comparison: Comparison) -> dict[str, str]:
    config = comparison.groups[0].config
    seeds = dict.fromkeys(seed for group in comparison.groups for seed in group.seeds)
    drawn = sorted({run.evaluations[-1].costs.get("images", 0.0) for g in comparison.groups for run in g.runs})
    return {
        "Model": setting_name(config.get("model"), "path"),
        "Rewards": rewards_text(config),
        "Trained": trained_text(config),
        "Seeds": ", ".join(map(str, seeds)),
        "Samples per run": " to ".join(f"{count:,.0f}" for count in dict.fromkeys((drawn[0], drawn[-1]))),
        "Sampler": ", ".join(dict.fromkeys(run.sampler for group in comparison.groups for run in group.runs)),
        "Images per curve point": f"{comparison.images:,}",
    }


def _score_charts(comparison: Comparison, name: str) -> ScoreCharts:
    first, *others = (_charts(comparison, name, cost) for cost in ("images", "reward_queries", "denoiser_evaluations"))
    return ScoreCharts(name, name in comparison.judges, first, others)


def _charts(comparison: Comparison, name: str, cost: str) -> list[Markup]:
    judged = name in comparison.judges
    factor = 100.0 if judged else 1.0
    charts = []
    for steps in comparison.steps:
        series = []
        for i, group in enumerate(comparison.groups):
            found = group_curve(comparison, group, name, steps)
            xs, ys, deviation = found.costs[cost], factor * found.mean, factor * found.std
            series.append(Series(group.name, xs.tolist(), ys.tolist(), i, deviation.tolist()))
        axis = "recognised, %" if judged else f"mean {name}"
        limits = percent_range(series) if judged else None
        # The first group is drawn last, above the others.
        charts.append(line_chart(step_label(steps), series[::-1], COST_LABELS[cost], axis, limits))
    return charts


def _sample_sheets(comparison: Comparison) -> list[SampleSheet]:
    """Return the images of the base model and of each group's first run, where the runs kept pictures."""
    models = [(BASE, comparison.groups[0].runs[0].base), *((g.name, g.runs[0].tuned) for g in comparison.groups)]
    evaluations = [(name, evaluation) for name, evaluation in models if evaluation is not None]
    prompts = evaluations[0][1].seen.prompts[:_MOST_TILES]
    sheets = []
    for steps in comparison.steps:
        rows = [(name, _images(name, e, steps)) for name, e in evaluations if steps in e.strips]
        if rows:
            sheets.append(SampleSheet(step_label(steps), prompts, rows))
    return sheets


def _images(name: str, evaluation: Evaluation, steps: int) -> list[HtmlImage]:
    tiles = cut_tiles(evaluation.strips[steps], _MOST_TILES)
    pairs = zip(tiles, evaluation.seen.prompts, strict=False)
    return [html_image(tile, f"{name}, {step_label(steps)}: {prompt}") for tile, prompt in pairs]


def _different_settings(comparison: Comparison) -> dict[str, list[str]]:
    """Return the settings that differ between the groups: by key, one value per group."""
    configs = [group.config for group in comparison.groups]
    keys = {key for config in configs[1:] for key in differences(configs[0], config, MAY_DIFFER_IN_A_GROUP)}
    keys |= {f"algorithm.{key}" for c in configs for key in c.get("algorithm") or {}}
    rows = {key: [_setting_text(config, key) for config in configs] for key in sorted(keys)}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _setting_text(config: Mapping[str, Any], key: str) -> str:
    """Return the value of a setting `section.key` as YAML on one line; `–` if there is none."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return "–"
        value = value[part]
    return dump_line(value)


def _spent(comparison: Comparison, group: RunGroup) -> list[str]:
    """Return what a run of a group spent, the mean over seeds by cost, and then the names of the group's runs."""
    costs = group_curve(comparison, group, comparison.rewards[0], None).costs
    totals = {key: costs[key][-1] for key in COST_LABELS}
    shown = [duration(total) if key == "seconds" else f"{total:,.0f}" for key, total in totals.items()]
    return [*shown, ", ".join(run.name for run in group.runs)]
