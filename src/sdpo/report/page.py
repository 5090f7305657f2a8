"""The page: one function a section, each from a `Run` to HTML; all text from the run is escaped."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from html import escape
from typing import Any

from sdpo.report import guard
from sdpo.report.charts import has_unseen, learning_curves, step_legend, training_charts
from sdpo.report.document import head, missing, render_document, setting_name, trained_weights, wanted_rewards
from sdpo.report.gallery import Rows, gallery, image_tag
from sdpo.report.looks import number, step_label
from sdpo.report.reader import Run, Split
from sdpo.report.stats import SplitName, paired, score_names
from sdpo.report.tables import cost_table, result_table, summary

_LONG_NAME = "Stepwise Diffusion Policy Optimization"


def render_page(run: Run) -> str:
    """The whole page as one HTML document that loads nothing from elsewhere."""
    sections = [
        ("Result", _result(run)),
        ("Before and after", _gallery(run)),
        ("Learning curves", _curves(run)),
        ("Beside the reward", guard.monitors(run)),
        ("Cost", cost_table(run)),
        ("While training", _training(run)),
        ("Use it", _use(run)),
        ("Settings", _settings(run)),
    ]
    return render_document(f"{run.name}: training report", _header(run), sections)


def _header(run: Run) -> str:
    config = run.config
    algorithm = setting_name(config.get("algorithm"), "name")
    facts = {
        "Model": setting_name(config.get("model"), "path"),
        "Rewards": wanted_rewards(config),
        "Algorithm": algorithm.upper() + (f" ({_LONG_NAME})" if algorithm.lower() == "sdpo" else ""),
        "Trained": trained_weights(config),
        "Epochs": _progress(run),
        "Seed": str(config.get("seed", "–")),
    }
    # Spelled out once: beside the algorithm's name, or here where another algorithm was run.
    maker = "" if algorithm.lower() == "sdpo" else f" by sdpo ({_LONG_NAME})"
    return head(f"Training report{maker}", run.name, facts, run.notes)


def _progress(run: Run) -> str:
    planned = run.config.get("epochs")
    if not isinstance(planned, int):
        return str(run.last_epoch)
    why = "stopped by a rule" if run.stopped else "unfinished"
    return f"{run.last_epoch}" if run.last_epoch >= planned else f"{run.last_epoch} of {planned}, {why}"


def _result(run: Run) -> str:
    if not run.base and not run.tuned:
        return missing("This run has not been evaluated yet.")
    before = "the base model" if run.base else "missing: there is no evaluation at epoch 0"
    after = f"epoch {run.tuned.epoch}" if run.tuned else "not there yet"
    both = ""
    if run.base and run.tuned:
        both = " Both drew the same prompts from the same seeds." if paired(run) else " Their prompts or seeds differ."
    lead = f"<p>Before: {before}. After: {after}.{both}</p>"
    parts = [guard.stopped(run), lead, summary(run, score_names(run)), _tables(run, "seen")]
    if has_unseen(run):
        parts.append(f"<h3>Prompts not trained on</h3>{_tables(run, 'unseen')}")
    parts.append(
        '<p class="aside">Gain: mean of the per-image differences; s.e.: their sample standard deviation over √n. '
        "It covers the choice of images, not what another training seed would give.</p>"
    )
    return "".join(parts)


def _tables(run: Run, split: SplitName) -> str:
    return f'<div class="tables">{"".join(result_table(run, name, split) for name in score_names(run, split))}</div>'


def _curves(run: Run) -> str:
    names = score_names(run)
    if not names:
        return missing("There are no learning curves before the first evaluation.")
    parts = []
    for name in names:
        judged = ": recognised rate" if name in run.judges else ""
        first, *others = learning_curves(run, name)
        parts.append(f"<h3>{escape(name)}{judged}</h3>{step_legend(run)}")
        parts.append(f'<div class="charts">{first}</div>')
        more = "The same against reward queries, network evaluations and time"
        parts.append(f'<details><summary>{more}</summary><div class="charts">{"".join(others)}</div></details>')
    if has_unseen(run):
        unseen = "".join(chart for name in score_names(run, "unseen") for chart in learning_curves(run, name, "unseen"))
        parts.append(f'<h3>Prompts not trained on</h3>{step_legend(run)}<div class="charts">{unseen}</div>')
    return "".join(parts)


def _training(run: Run) -> str:
    if not run.metrics:
        return missing("No epoch has finished yet.")
    note = (
        "The loss is a regression to normalised reward differences, which are as large at the end as at the start: it "
        "hovers near its first value and measures no progress. Watch the rewards."
    )
    return (
        f"<details><summary>Rewards and the optimiser's numbers</summary><p>{note}</p>{training_charts(run)}</details>"
    )


def _gallery(run: Run) -> str:
    rows = gallery(run)
    if not rows:
        return missing("There are no samples yet.")
    parts = [f"<p>{_gallery_lead(run)}</p>"]
    for row in rows:
        pairs = (_pair(run, row, i) for i in range(max(len(row.before), len(row.after))))
        parts.append(f'<h3>{step_label(row.steps)}</h3><div class="pairs">{"".join(pairs)}</div>')
    return "".join(parts)


def _gallery_lead(run: Run) -> str:
    if not run.tuned:
        return "The base model's images; there is no later evaluation yet."
    scored = [escape(name) for name in _caption_scores(run)]
    numbers = f" Under them: {' and '.join(scored)}, before → after." if scored else ""
    numbers += " ✓: recognised." if any(name in run.judges for name in _caption_scores(run)) else ""
    same = ", same prompt and seed" if paired(run) else "; the prompts or seeds differ"
    return f"Upper image: the base model. Lower image: epoch {run.tuned.epoch}{same}.{numbers}"


def _caption_scores(run: Run) -> list[str]:
    """The first reward and the first judge: more numbers would bury the image."""
    names = score_names(run)
    rewards, judges = [n for n in names if n not in run.judges], [n for n in names if n in run.judges]
    return rewards[:1] + judges[:1]


def _pair(run: Run, row: Rows, i: int) -> str:
    evaluation = run.tuned or run.base
    split = evaluation.seen if evaluation else Split([], [], {})
    prompt = split.prompts[i] if i < len(split.prompts) else ""
    seed = f", seed {split.seeds[i]}" if i < len(split.seeds) else ""
    images = []
    for tag, tiles in (("base", row.before), ("tuned", row.after)):
        if i < len(tiles):
            image = image_tag(tiles[i], f"{tag}, {step_label(row.steps)}{seed}: {prompt}")
            images.append(f'<div class="tile"><span>{tag}</span>{image}</div>')
    scores = "".join(f"<small>{_change(run, name, row.steps, i)}</small>" for name in _caption_scores(run))
    return f"<figure>{''.join(images)}<figcaption>{escape(prompt)}{scores}</figcaption></figure>"


def _change(run: Run, name: str, steps: int, i: int) -> str:
    shown = []
    for evaluation in (run.base, run.tuned):
        values = evaluation.seen.scores.get(name, {}).get(steps) if evaluation else None
        if values is not None and i < len(values) and math.isfinite(values[i]):
            judged = name in run.judges
            verdict = "✓" if values[i] > 0.5 else "✗"
            shown.append(verdict if judged else number(float(values[i]), 3))
    text = " → ".join(shown)
    return f'<span title="{escape(name)}: recognised or not">{text}</span>' if name in run.judges and shown else text


def _use(run: Run) -> str:
    lora = isinstance(run.config.get("lora"), Mapping)
    folder = "lora" if lora else "model"
    target = json.dumps(f"{run.name}/{folder}")
    model = setting_name(run.config.get("model"), "path")
    code = ["from diffusers import DiffusionPipeline", ""]
    if not lora:
        code += [f"pipe = DiffusionPipeline.from_pretrained({target})"]
    elif model.startswith("("):  # a pipeline that was handed over in Python and does not say where it came from
        code = ["# pipe: the pipeline that was trained", f"pipe.load_lora_weights({target})"]
    else:
        # A bare word names a model that comes with the package; owner/name or a path loads from elsewhere.
        packaged = "/" not in model
        source = f"sdpo.embedded({json.dumps(model)}), safety_checker=None" if packaged else json.dumps(model)
        code = ["import sdpo", *code] if packaged else code
        code += [f"pipe = DiffusionPipeline.from_pretrained({source})", f"pipe.load_lora_weights({target})"]
    sample = run.config.get("sample")
    scale = sample.get("guidance_scale", 1.0) if isinstance(sample, Mapping) else 1.0
    code += [f'image = pipe("a prompt", num_inference_steps=4, guidance_scale={json.dumps(scale)}).images[0]']
    command = f'sdpo sample {shlex.quote(run.name)} "a prompt" --steps 4 --seed 0 --compare -o sample.png'
    there = "" if (run.path / folder).is_dir() else missing(f"{run.name}/{folder} has not been written yet.")
    python = escape("\n".join(code))
    return (
        f"{there}<p>In Python, from the folder that holds the run (<code>sdpo export</code> writes a card with all "
        f"arguments of this model's call):</p><pre><code>{python}</code></pre>"
        f"<p>Or on the command line:</p><pre><code>{escape(command)}</code></pre>"
    )


def _settings(run: Run) -> str:
    config = f"<details><summary>config.yaml</summary><pre><code>{escape(run.config_text)}</code></pre></details>"
    if not run.environment:
        return config + missing("environment.json is not there.")
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>' for key, value in _flat(run.environment)
    )
    table = f'<table class="environment"><tbody>{rows}</tbody></table>'
    return f"{config}<details><summary>Environment</summary>{table}</details>"


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)))
    return found
