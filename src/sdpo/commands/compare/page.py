"""The page of a comparison; all text from the runs is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sdpo.commands.compare.measures import Comparison, curve
from sdpo.commands.compare.settings import OF_THE_RUN, setting
from sdpo.commands.compare.table import BASE, Grid, html
from sdpo.config.differences import differences
from sdpo.report.charts import percent_range
from sdpo.report.document import head, missing, render_document, setting_name, trained_weights, wanted_rewards
from sdpo.report.gallery import cut, image_tag
from sdpo.report.looks import duration, step_label
from sdpo.report.reader import COSTS, Evaluation
from sdpo.report.svg import Series, legend, line_chart

_TILES = 6


def render_comparison(comparison: Comparison, grids: Sequence[Grid]) -> str:
    """The whole page as one HTML document that loads nothing from elsewhere."""
    names = [group.name for group in comparison.groups]
    sections = [
        ("Result", f'<div class="tables">{"".join(map(html, grids))}</div>'),
        ("Learning curves", _curves(comparison)),
        ("Samples", _samples(comparison)),
        ("Settings", _settings(comparison)),
        ("Cost and runs", _runs(comparison)),
    ]
    return render_document("Comparison: " + ", ".join(names), _header(comparison, names), sections)


def _header(comparison: Comparison, names: Sequence[str]) -> str:
    config = comparison.groups[0].config
    seeds = dict.fromkeys(seed for group in comparison.groups for seed in group.seeds)
    drawn = sorted({run.evaluations[-1].costs.get("images", 0.0) for g in comparison.groups for run in g.runs})
    facts = {
        "Model": setting_name(config.get("model"), "path"),
        "Rewards": wanted_rewards(config),
        "Trained": trained_weights(config),
        "Seeds": ", ".join(map(str, seeds)),
        "Samples a run": " to ".join(f"{count:,.0f}" for count in dict.fromkeys((drawn[0], drawn[-1]))),
        "Images in a curve's point": f"{comparison.images:,}",
    }
    return head("Comparison", ", ".join(names), facts, comparison.notes)


def _curves(comparison: Comparison) -> str:
    keys = legend([(group.name, i) for i, group in enumerate(comparison.groups)])
    parts = ["<p>Means over seeds; the bands are ± one standard deviation over seeds.</p>"]
    for name in [*comparison.rewards, *comparison.judges]:
        first, *others = (
            _charts(comparison, name, cost) for cost in ("images", "reward_queries", "denoiser_evaluations")
        )
        judged = ": recognised rate" if name in comparison.judges else ""
        parts.append(f'<h3>{escape(name)}{judged}</h3>{keys}<div class="charts">{first}</div>')
        more = "The same against reward queries and network evaluations"
        inside = "".join(f'{keys}<div class="charts">{charts}</div>' for charts in others)
        parts.append(f"<details><summary>{more}</summary>{inside}</details>")
    return "".join(parts)


def _charts(comparison: Comparison, name: str, cost: str) -> str:
    judged = name in comparison.judges
    factor = 100.0 if judged else 1.0
    charts = []
    for steps in comparison.steps:
        series = []
        for i, group in enumerate(comparison.groups):
            c = curve(comparison, group, name, steps)
            lists = (c.costs[cost].tolist(), (factor * c.mean).tolist(), i, (factor * c.spread).tolist())
            series.append(Series(group.name, *lists))
        axis = "recognised, %" if judged else f"mean {name}"
        limits = percent_range(series) if judged else None
        # The first name is drawn last, above the others.
        charts.append(line_chart(step_label(steps), series[::-1], COSTS[cost], axis, limits))
    return "".join(charts)


def _samples(comparison: Comparison) -> str:
    """The same prompts and seeds by the base model and by each group's first run."""
    shown = [(BASE, comparison.groups[0].runs[0].base), *((g.name, g.runs[0].tuned) for g in comparison.groups)]
    evaluations = [(name, evaluation) for name, evaluation in shown if evaluation is not None]
    parts = []
    for steps in comparison.steps:
        rows = [_tiles(name, evaluation, steps) for name, evaluation in evaluations if steps in evaluation.strips]
        if rows:
            prompts = "".join(f'<th scope="col">{escape(p)}</th>' for p in evaluations[0][1].seen.prompts[:_TILES])
            table = f"<table><thead><tr><th></th>{prompts}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
            opened = " open" if steps == comparison.steps[0] else ""
            label = step_label(steps)
            parts.append(
                f'<details{opened}><summary>{label}</summary><div class="scroll sheet">{table}</div></details>'
            )
    if not parts:
        return missing("The runs kept no pictures.")
    seed = comparison.groups[0].seeds[0]
    return f"<p>One noise a column; of each group the run with seed {seed} or its first.</p>" + "".join(parts)


def _tiles(name: str, evaluation: Evaluation, steps: int) -> str:
    """A row of the first pictures of an evaluation."""
    prompts = evaluation.seen.prompts
    images = "".join(
        f"<td>{image_tag(tile, f'{name}, {step_label(steps)}: {prompt}')}</td>"
        for tile, prompt in zip(cut(evaluation.strips[steps], _TILES), prompts, strict=False)
    )
    return f'<tr><th scope="row">{escape(name)}</th>{images}</tr>'


def _settings(comparison: Comparison) -> str:
    """What differs between the groups; of the algorithms, all that not all have alike."""
    configs = [group.config for group in comparison.groups]
    keys = dict.fromkeys(key for config in configs[1:] for key in differences(configs[0], config, OF_THE_RUN))
    keys |= dict.fromkeys(f"algorithm.{key}" for c in configs for key in c.get("algorithm") or {})
    rows = {key: [setting(config, key) for config in configs] for key in sorted(keys)}
    different = {key: values for key, values in rows.items() if len(set(values)) > 1}
    if not different:
        return missing("The settings are the same.")
    heads = "".join(f'<th scope="col">{escape(group.name)}</th>' for group in comparison.groups)
    body = "".join(
        f'<tr><th scope="row">{escape(key)}</th>{"".join(f"<td>{escape(value)}</td>" for value in values)}</tr>'
        for key, values in different.items()
    )
    table = f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return f'<p>What differs, besides the seed.</p><div class="scroll sheet">{table}</div>'


def _runs(comparison: Comparison) -> str:
    """Which runs a name stands for, and what one of them spent, the mean over seeds."""
    body = ""
    for group in comparison.groups:
        spent = {key: costs[-1] for key, costs in curve(comparison, group, comparison.rewards[0], None).costs.items()}
        cells = [duration(spent[key]) if key == "seconds" else f"{spent[key]:,.0f}" for key in COSTS]
        cells.append(", ".join(run.name for run in group.runs))
        tds = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        body += f'<tr><th scope="row">{escape(group.name)}</th>{tds}</tr>'
    heads = "".join(f'<th scope="col">{title}</th>' for title in ("", *COSTS.values(), "directories"))
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    about = "<p>What a run spent, the mean over seeds; time without evaluations, on whatever machine it ran.</p>"
    return f'{about}<div class="scroll sheet">{table}</div>'
