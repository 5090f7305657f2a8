"""The page of one run: collects what the template `report.html.j2` lays out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sdpo.report.charts import score_charts, step_legend, training_charts, unseen_chart
from sdpo.report.config_summary import rewards_text, setting_name, trained_text
from sdpo.report.image_pairs import captioned_scores, image_pairs
from sdpo.report.over_optimisation import monitor_charts, stopping_rules
from sdpo.report.reader import Run
from sdpo.report.stats import SplitName, different_images, score_names
from sdpo.report.tables import ResultTable, cost_rows, result_table, significant_changes
from sdpo.report.templating import render_html
from sdpo.report.usage import usage
from sdpo.report.warnings import collapse_warnings

_LONG_NAME = "Stepwise Diffusion Policy Optimization"
_LONG_NAMES = {"sdpo": _LONG_NAME, "srg": "stepwise reward gradients"}


def render_page(run: Run) -> str:
    """Return the whole page as one HTML document that loads nothing from elsewhere."""
    return render_html(
        "report.html.j2",
        run=run,
        kicker=_kicker(run),
        facts=_facts(run),
        warnings=collapse_warnings(run),
        different=different_images(run),
        changes=significant_changes(run, score_names(run)),
        tables=_result_tables(run, "seen"),
        unseen_tables=_result_tables(run, "unseen"),
        training_tables=_result_tables(run, "training"),
        start_tables=[result_table(run, n, "seen", run.start) for n in score_names(run)] if run.start else [],
        pairs=image_pairs(run),
        captioned=captioned_scores(run),
        legend=step_legend(run),
        curves=[score_charts(run, name) for name in score_names(run)],
        unseen_curves=[unseen_chart(run, name) for name in score_names(run, "unseen")],
        monitors=monitor_charts(run),
        rules=stopping_rules(run),
        costs=cost_rows(run),
        training=training_charts(run),
        training_sampler=_training_sampler(run),
        usage=usage(run),
        environment=_flat(run.environment),
    )


def _algorithm(run: Run) -> str:
    return setting_name(run.config.get("algorithm"), "name")


def _kicker(run: Run) -> str:
    """Return the line above the title. It spells the method out unless the algorithm's name does."""
    return "Training report" if _algorithm(run) in _LONG_NAMES else f"Training report by sdpo ({_LONG_NAME})"


def _title(algorithm: str) -> str:
    """Return the algorithm's name for a reader: an acronym in capitals, or the dotted path of the user's own class."""
    if ":" in algorithm:
        return algorithm
    return algorithm.upper() + (f" ({_LONG_NAMES[algorithm]})" if algorithm in _LONG_NAMES else "")


def _facts(run: Run) -> dict[str, str]:
    config, algorithm = run.config, _algorithm(run)
    return {
        "Model": setting_name(config.get("model"), "path"),
        "Rewards": rewards_text(config),
        "Algorithm": _title(algorithm),
        "Trained": trained_text(config),
        "Epochs": _progress(run),
        "Seed": str(config.get("seed", "–")),
    }


def _progress(run: Run) -> str:
    planned = run.config.get("epochs")
    if not isinstance(planned, int) or run.last_epoch >= planned:
        return str(run.last_epoch)
    return f"{run.last_epoch} of {planned}, {'stopped by a rule' if run.stopped else 'unfinished'}"


def _result_tables(run: Run, split: SplitName) -> list[ResultTable]:
    return [result_table(run, name, split) for name in score_names(run, split)]


def _training_sampler(run: Run) -> str:
    """Return the training sampler in words; empty where no evaluation used it beside another one."""
    found = [e.training_sampler for e in run.evaluations if e.training_sampler is not None]
    return found[-1].conditions.text if found else ""


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested values as text by their dotted keys."""
    found: dict[str, str] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return found
