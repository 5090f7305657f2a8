"""Python that loads an export and draws an image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdpo.backbones import check_path
from sdpo.commands.model_card.exported import Exported
from sdpo.config.schema import Config


def snippet(config: Config, exported: Exported) -> str:
    """Return a program that loads the export and draws an image.

    Args:
        config: the run's configuration.
        exported: the folder's contents.
    """
    lora, dtype = exported.weight_name is not None, _dtype(exported.dtype or config.model.dtype or "float32")
    return "\n".join(
        [
            "import torch",
            *_imports(config, lora),
            "",
            'device = "cuda" if torch.cuda.is_available() else "cpu"',
            f"pipeline = DiffusionPipeline.from_pretrained({_source(config, exported)}, dtype={dtype})",
            *(_lora_lines(config, exported) if lora else []),
            "image = pipeline.to(device)(",
            f"    prompt={exported.prompt!r}, num_inference_steps={exported.steps}{_keywords(exported.arguments)},",
            "    generator=torch.Generator().manual_seed(0),",
            ").images[0]",
            'image.save("image.png")',
            "",
        ]
    )


def _imports(config: Config, lora: bool) -> list[str]:
    scheduler = config.model.scheduler or {}
    names = ["DiffusionPipeline", *([scheduler["name"]] if lora and "name" in scheduler else [])]
    embedded = ["from sdpo import embedded"] if lora and _is_embedded(config) else []
    return [f"from diffusers import {', '.join(names)}", *embedded]


def _is_embedded(config: Config) -> bool:
    """Whether the model comes with this package."""
    folder = check_path(config.model.path)
    return folder is not None and folder != Path(config.model.path)


def _source(config: Config, exported: Exported) -> str:
    """Return the arguments that load the pipeline: the base model's for a LoRA, else the export's own."""
    if exported.weight_name is None:
        return repr(exported.address)
    model = config.model
    path = f"embedded({model.path!r})" if _is_embedded(config) else repr(model.path)
    revision = {"revision": model.revision} if model.revision != "main" else {}
    variant = {"variant": model.variant} if model.variant else {}
    return path + _keywords(revision | variant)


def _dtype(name: str) -> str:
    return f"torch.{name}" + (' if device == "cuda" else torch.float32' if name == "float16" else "")


def _lora_lines(config: Config, exported: Exported) -> list[str]:
    """Return the lines that set the run's scheduler, fuse the LoRA it started from, and load the exported one."""
    lines, scheduler, fused = [], config.model.scheduler, config.model.fuse_lora
    if scheduler:
        kind = scheduler.get("name") or "type(pipeline.scheduler)"
        changes = _keywords({k: v for k, v in scheduler.items() if k != "name"})
        lines.append(f"pipeline.scheduler = {kind}.from_config(pipeline.scheduler.config{changes})")
    if fused:
        lines += [
            f"pipeline.load_lora_weights({fused.path!r}, weight_name={fused.weight_name!r})",
            f"pipeline.fuse_lora(lora_scale={fused.scale!r})",
            "pipeline.unload_lora_weights()",
        ]
    lines.append(f"pipeline.load_lora_weights({exported.address!r}, weight_name={exported.weight_name!r})")
    return lines


def _keywords(arguments: Mapping[str, Any]) -> str:
    """Return keyword arguments as source text, each after a comma."""
    return "".join(f", {key}={value!r}" for key, value in arguments.items())
