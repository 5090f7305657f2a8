"""Runs of the families: their overrides on the command line, and the same pipelines as diffusers loads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from diffusers import LCMScheduler
from PIL import Image

from helpers.flow_pipelines import FLOW_PIPELINES, SIDE
from helpers.pipelines import load_pipeline
from sdpo.backbones import PipelineBackbone, wrap_pipeline

Pipelines = Callable[[str], Path]
SD_LCM = "StableDiffusionPipeline on LCM"
GUIDANCE = {"SanaSprintPipeline": 4.5, "StableDiffusionXLPipeline": 2.0, "LatentConsistencyModelPipeline": 8.5}
UNSEEN = ["a fox on the moon", "two cats"]


def overrides(pipelines: Pipelines, name: str) -> list[str]:
    eta, guidance = 0.7 if name in FLOW_PIPELINES else 1.0, GUIDANCE.get(name, 1.0)
    return [
        # float32 on a GPU too: half precision skips steps of networks this small, and its kernels add in any order.
        f"model={{path: {pipelines(name.split()[0])}, height: {SIDE}, width: {SIDE}, dtype: float32}}",
        *(["model.scheduler={name: LCMScheduler}"] if name == SD_LCM else []),
        "epochs=2",
        f"prompts={{train: [cat, dog, a fox], unseen: {UNSEEN}}}",
        "rewards={colorfulness: 1.0}",
        f"sample={{num_steps: 3, prompts_per_epoch: 4, eta: {eta}, guidance_scale: {guidance}}}",
        "train={batch_size: 2, learning_rate: 1.0e-2}",
        "evaluate={every: 0, steps: [1, 4], images_per_prompt: 1, judge: null}",
        "lora={rank: 2, alpha: 4}",
        "algorithm={name: sdpo}",
    ]


def loaded(path: Path, name: str) -> PipelineBackbone:
    """The pipeline as diffusers loads it."""
    pipeline = load_pipeline(path)
    if name == SD_LCM:
        pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    return wrap_pipeline(pipeline, size=(SIDE, SIDE))


def image_of(backbone: PipelineBackbone, name: str) -> np.ndarray:
    (image,) = backbone.generate(["cat"], 2, [3], GUIDANCE.get(name, 1.0))
    return np.asarray(image, int)


def on_disk(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), int)
