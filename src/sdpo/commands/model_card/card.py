"""The text of a model card: collects what the template `model_card.md.j2` lays out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sdpo.backbones import check_path
from sdpo.commands.model_card.exported import Exported
from sdpo.commands.model_card.license import base_license
from sdpo.commands.model_card.snippet import snippet
from sdpo.config import plain_yaml
from sdpo.config.schema import Config
from sdpo.report.formatting import decimals_for, number, percent, step_label
from sdpo.report.reader import COST_LABELS, Run
from sdpo.report.stats import BeforeAfter, SplitName, before_and_after, score_names
from sdpo.report.warnings import collapse_warnings

_SPLITS: Mapping[SplitName, str] = {
    "seen": "training prompts",
    "unseen": "unseen prompts",
    "training": "training prompts, training sampler",
}


@dataclass(frozen=True)
class ScoreTable:
    """A score of the base and of the tuned model.

    Attributes:
        name: the score's name.
        prompts: which prompts, in words.
        rows: number of steps, score before, score after, gain.
    """

    name: str
    prompts: str
    rows: list[tuple[str, str, str, str]]


def render_card(run: Run, config: Config, exported: Exported) -> str:
    """Return the card's text.

    Args:
        run: the run, without metrics and evaluations after the exported epoch.
        config: the run's configuration.
        exported: the folder's contents.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": _code_span, "fenced": _fenced}
    return environment.get_template("model_card.md.j2").render(
        front_matter=plain_yaml.dump(_front_matter(config, exported)),
        run=run,
        config=config,
        exported=exported,
        costs=_costs(run, exported),
        snippet=snippet(config, exported),
        rounding=None if exported.rounding is None else percent(exported.rounding),
        warnings=collapse_warnings(run),
        tables=_tables(run, config) if run.base and run.tuned else [],
        settings=config.model_copy(update={"output_dir": None, "device": "auto", "trackers": []}).to_yaml(),
    )


def _front_matter(config: Config, exported: Exported) -> dict[str, Any]:
    """Return the metadata that the hub reads."""
    fields: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    fields |= base_license(config.model.path)
    is_lora = exported.weight_name is not None
    if check_path(config.model.path) is None:
        fields |= {"base_model": config.model.path, "base_model_relation": "adapter" if is_lora else "finetune"}
    kind = "full-fine-tuning" if config.lora is None else "lora"
    tags = ["text-to-image", "diffusers", kind, "sdpo", "reinforcement-learning", "alignment", *config.rewards]
    tags += ["template:diffusion-lora"] * is_lora + ["comfyui"] * exported.for_comfyui
    if exported.images:
        fields["widget"] = [{"text": prompt, "output": {"url": file}} for prompt, file in exported.images]
    return {**fields, **({"instance_prompt": None} if is_lora else {}), "tags": tags}


def _costs(run: Run, exported: Exported) -> list[str]:
    """Return what the run had spent at the exported epoch, as far as the metrics say."""
    row: Mapping[str, Any] = next((r for r in reversed(run.metrics) if r["epoch"] == exported.epoch), {})
    return [f"{row[key]:,} {COST_LABELS[key]}" for key in ("images", "reward_queries") if key in row]


def _tables(run: Run, config: Config) -> list[ScoreTable]:
    found = []
    for split, words in _SPLITS.items():
        prompts = words if config.evaluate.prompts is None else words.replace("training prompts", "evaluated prompts")
        for name in score_names(run, split):
            rows = before_and_after(run, name, split)
            errors = [r.gain.standard_error for r in rows if r.gain]
            decimals = decimals_for(errors, [v for r in rows for v in (r.before, r.after) if v is not None])
            cells = [_cells(row, decimals) for row in rows]
            table = ScoreTable(name, prompts, [row for row in cells if row is not None])
            if table.rows:
                found.append(table)
    return found


def _cells(row: BeforeAfter, decimals: int) -> tuple[str, str, str, str] | None:
    """Return a row as text, or None if a score is missing."""
    if row.before is None or row.after is None:
        return None
    gain = "not paired"
    if row.gain is not None:
        gain = number(row.gain.mean, decimals, sign=True)
        if row.gain.images > 1:
            gain += f" ± {number(row.gain.standard_error, decimals)}"
    return step_label(row.steps), number(row.before, decimals), number(row.after, decimals), gain


def _code_span(text: str) -> str:
    """Return text as code within a line, whatever backticks it holds."""
    ticks = _longer_than_any(text, 1)
    space = " " if "`" in text else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def _fenced(text: str, language: str) -> str:
    """Return lines of text as a block of code, whatever backticks they hold."""
    ticks = _longer_than_any(text, 3)
    return f"{ticks}{language}\n{text}{ticks}"


def _longer_than_any(text: str, least: int) -> str:
    """Return at least `least` backticks, and more than stand in a row anywhere in the text."""
    return "`" * max([least, *(len(run) + 1 for run in re.findall("`+", text))])
