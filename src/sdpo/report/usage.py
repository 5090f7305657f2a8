"""Code and a command that draw an image with a run's result."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from sdpo.report.config_summary import setting_name
from sdpo.report.reader import Run


@dataclass(frozen=True)
class Usage:
    """How to use a run's result, from the folder that holds the run's directory.

    Attributes:
        result: the result's folder, below the run's name.
        written: whether that folder exists.
        python: lines of Python.
        command: a command line.
    """

    result: str
    written: bool
    python: str
    command: str


def usage(run: Run) -> Usage:
    """Return how to use a run's result."""
    lora = isinstance(run.config.get("lora"), Mapping)
    folder = run.directory.lora if lora else run.directory.model
    result = f"{run.name}/{folder.name}"
    sample = run.config.get("sample")
    scale = sample.get("guidance_scale") if isinstance(sample, Mapping) else None
    scale = 1.0 if scale is None else scale
    call = f'image = pipe("a prompt", num_inference_steps=4, guidance_scale={json.dumps(scale)}).images[0]'
    model = setting_name(run.config.get("model"), "path")
    code = [*(_load_lora(model, result) if lora else _load_pipeline(result)), call]
    command = f'sdpo sample {shlex.quote(run.name)} "a prompt" --steps 4 --seed 0 --compare -o sample.png'
    return Usage(result, folder.is_dir(), "\n".join(code), command)


def _load_pipeline(result: str) -> list[str]:
    return [
        "from diffusers import DiffusionPipeline",
        "",
        f"pipe = DiffusionPipeline.from_pretrained({json.dumps(result)})",
    ]


def _load_lora(model: str, result: str) -> list[str]:
    load = f"pipe.load_lora_weights({json.dumps(result)})"
    if model.startswith("("):  # the pipeline was passed in Python and does not say where it came from
        return ["# pipe: the pipeline that was trained", load]
    # A bare word names a model that comes with the package; owner/name and paths load from elsewhere.
    packaged = "/" not in model
    source = f"sdpo.embedded({json.dumps(model)}), safety_checker=None" if packaged else json.dumps(model)
    imports = [*(["import sdpo"] if packaged else []), "from diffusers import DiffusionPipeline", ""]
    return [*imports, f"pipe = DiffusionPipeline.from_pretrained({source})", load]
