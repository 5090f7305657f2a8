"""The model card of an export: README.md in the hub's format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.backbones import check_path
from sdpo.config import plain_yaml
from sdpo.config.schema import Config
from sdpo.report.looks import decimals_for, number, step_label
from sdpo.report.reader import COSTS, Run
from sdpo.report.stats import SplitName, compare, score_names


@dataclass(frozen=True)
class Exported:
    """What is in the folder that the card goes into.

    Attributes:
        name: its title.
        address: how `from_pretrained` or `load_lora_weights` finds it: a hub name or a path.
        weight_name: the LoRA's file, or None for a whole pipeline.
        weights: which ones, in words.
        as_evaluated: whether the run's evaluations are of weights of that kind.
        epoch: of the weights.
        steps: that the example takes.
        arguments: of the pipeline's call besides prompt, number of steps, and generator.
    """

    name: str
    address: str
    weight_name: str | None
    weights: str
    as_evaluated: bool
    epoch: int
    steps: int
    arguments: Mapping[str, Any]


def render_card(run: Run, config: Config, exported: Exported) -> str:
    """The card's text.

    Args:
        run: what was measured, up to the exported epoch.
        config: of the run.
        exported: the folder's contents.
    """
    rewards = ", ".join(f"`{name}` × {weight:g}" for name, weight in config.rewards.items())
    trained = (
        "all weights" if config.lora is None else f"a LoRA of rank {config.lora.rank}, alpha {config.lora.alpha:g}"
    )
    settings = (
        f"algorithm {config.algorithm['name']}, {config.sample.num_steps} sampling steps, {_length(run, exported)}"
    )
    judge = f" The judge `{config.evaluate.judge}` was not trained on." if config.evaluate.judge else ""
    return (
        "\n\n".join(
            [
                f"---\n{_front_matter(config, exported)}---",
                f"# {exported.name}",
                f"`{config.model.path}` aligned with the reward {rewards} by [sdpo](https://arxiv.org/abs/2411.11727): "
                f"{trained}, {settings}. Weights: {exported.weights}.",
                "## How to use",
                f"```python\n{snippet(run, config, exported)}```",
                *_comfyui(exported),
                "## Before and after",
                _evaluated(run, exported),
                *_tables(run),
                f"Mean scores on fixed prompts and seeds, paired image by image; ± is one standard error.{judge}",
                "![learning curves](curves.png)",
                "![samples before and after](samples.png)",
                "## How it was trained",
                "`sdpo train config.yaml` with this config:",
                f"```yaml\n{_config(config)}```",
                "## Limits",
                "A reward is a model of what people like, with likes of its own: a higher score is no proof of better "
                "images, and prompts unlike those of the training may lose. Numbers of steps that no table has "
                "were not evaluated. What the base model may be used for, and its biases, hold here too.",
            ]
        )
        + "\n"
    )


def _length(run: Run, exported: Exported) -> str:
    """Epochs and what they cost, as far as the run wrote it down."""
    row: Mapping[str, Any] = next((r for r in reversed(run.metrics) if r["epoch"] == exported.epoch), {})
    costs = [f"{row[key]:,} {COSTS[key]}" for key in ("images", "reward_queries") if key in row]
    return ", ".join([f"{exported.epoch} epoch{'s' * (exported.epoch != 1)}", *costs])


def snippet(run: Run, config: Config, exported: Exported) -> str:
    """Python that loads the export and draws an image; it runs as it stands."""
    model, lora = config.model, exported.weight_name is not None
    hub = {"revision": model.revision} if model.revision != "main" else {}
    options = "".join(f", {k}={v!r}" for k, v in (hub | ({"variant": model.variant} if model.variant else {})).items())
    base, embedded = repr(model.path), _local(config) is not None and _local(config) != Path(model.path)
    source = (f"embedded({base})" if embedded else base) + options if lora else repr(exported.address)
    dtype = f"torch.{model.dtype}"
    if model.dtype == "float16":
        dtype += ' if device == "cuda" else torch.float32'
    scheduler = model.scheduler or {}
    changes = "".join(f", {k}={v!r}" for k, v in scheduler.items() if k != "name")
    kind = scheduler.get("name") or "type(pipeline.scheduler)"
    fused = model.fuse_lora
    prompt = next((e.seen.prompts[0] for e in run.evaluations if e.seen.prompts), "a photo of a cat")
    arguments = "".join(f", {k}={v!r}" for k, v in exported.arguments.items())
    lines = [
        "import torch",
        f"from diffusers import DiffusionPipeline{', ' + scheduler['name'] if lora and 'name' in scheduler else ''}",
        *(["from sdpo import embedded"] if lora and embedded else []),
        "",
        'device = "cuda" if torch.cuda.is_available() else "cpu"',
        f"pipeline = DiffusionPipeline.from_pretrained({source}, dtype={dtype})",
    ]
    if lora and scheduler:
        lines.append(f"pipeline.scheduler = {kind}.from_config(pipeline.scheduler.config{changes})")
    if lora and fused:
        lines += [
            f"pipeline.load_lora_weights({fused.path!r}, weight_name={fused.weight_name!r})",
            f"pipeline.fuse_lora(lora_scale={fused.scale!r})",
            "pipeline.unload_lora_weights()",
        ]
    if lora:
        lines.append(f"pipeline.load_lora_weights({exported.address!r}, weight_name={exported.weight_name!r})")
    lines += [
        "image = pipeline.to(device)(",
        f"    prompt={prompt!r}, num_inference_steps={exported.steps}{arguments},",
        "    generator=torch.Generator().manual_seed(0),",
        ").images[0]",
        'image.save("image.png")',
    ]
    return "\n".join(lines) + "\n"


def _local(config: Config) -> Path | None:
    return check_path(config.model.path)


def _front_matter(config: Config, exported: Exported) -> str:
    on_hub = _local(config) is None
    kind = "lora" if config.lora is not None else "full-fine-tuning"
    relation = "adapter" if exported.weight_name is not None else "finetune"
    fields: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if on_hub:
        fields |= {"base_model": config.model.path, "base_model_relation": relation}
    tags = ["text-to-image", "diffusers", kind, "sdpo", "reinforcement-learning", "alignment", *config.rewards]
    fields["tags"] = tags + (["comfyui"] if _is_comfyui(exported) else [])
    return plain_yaml.dump(fields)


def _is_comfyui(exported: Exported) -> bool:
    return exported.weight_name not in (None, "pytorch_lora_weights.safetensors")


def _comfyui(exported: Exported) -> list[str]:
    if not _is_comfyui(exported):
        return []
    return [
        f"In ComfyUI: put `{exported.weight_name}` into `models/loras` and add it with the node LoraLoaderModelOnly."
    ]


def _evaluated(run: Run, exported: Exported) -> str:
    if run.base is None or run.tuned is None:
        return "This run was not evaluated before and after training."
    epoch = run.tuned.epoch
    other = (
        ""
        if epoch == exported.epoch and exported.as_evaluated
        else (f" These are the scores of epoch {epoch}'s evaluated weights, not of exactly the ones exported here.")
    )
    return f"Scores of the base model and of the tuned one after epoch {epoch}.{other}"


def _tables(run: Run) -> list[str]:
    if run.base is None or run.tuned is None:
        return []
    splits: list[tuple[SplitName, str]] = [("seen", "training prompts"), ("unseen", "unseen prompts")]
    found = []
    for split, words in splits:
        for name in score_names(run, split):
            rows = compare(run, name, split)
            errors = [r.gain.standard_error for r in rows if r.gain]
            places = decimals_for(errors, [v for r in rows for v in (r.before, r.after) if v is not None])
            lines = [f"| `{name}`, {words} | before | after | gain |", "|---|---|---|---|"]
            for r in rows:
                if r.before is None or r.after is None:
                    continue
                gain = "not paired" if r.gain is None else number(r.gain.mean, places, sign=True)
                if r.gain is not None and r.gain.images > 1:
                    gain += f" ± {number(r.gain.standard_error, places)}"
                before, after = number(r.before, places), number(r.after, places)
                lines.append(f"| {step_label(r.steps)} | {before} | {after} | {gain} |")
            if len(lines) > 2:
                found.append("\n".join(lines))
    return found


def _config(config: Config) -> str:
    return config.model_copy(update={"output_dir": None, "device": "auto", "trackers": []}).to_yaml()
