"""What a dry run says of memory and batches, against the loaded model where there is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.command_line import Run
from helpers.pipelines import PIPELINES

from sdpo.assembly import build
from sdpo.commands.doctor.machine import batches
from sdpo.config.schema import Config
from sdpo.estimate.memory import describe, estimate
from sdpo.estimate.model_sizes import PUBLISHED, latent_shape, model_size, peek
from sdpo.prompts import load_prompts

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", PIPELINES)
def test_files_tell_what_the_loaded_model_has(pipeline_path: Callable[[str], Path], name: str) -> None:
    lora = {"rank": 3, "targets": ["to_q", "to_k", "conv1"]} if name == "StableDiffusionPipeline" else {"rank": 3}
    model = {"path": str(pipeline_path(name)), "height": 64, "width": 32}
    config = Config.load("emoji", model=model, lora={"alpha": 4, "targets": None} | lora)
    size = model_size(config)
    assert size is not None
    backbone = build.build_backbone(config, CPU)
    count = lambda *modules: sum(  # noqa: E731
        {t.data_ptr(): t.numel() for m in modules for t in m.state_dict().values()}.values()
    )
    assert size.network == count(backbone.network_module)
    assert size.text == count(*backbone.text_modules())
    assert math.prod(latent_shape(size)) == math.prod(backbone.latent_shape)
    assert size.embeds_guidance == (backbone.guidance == "embedded")
    assert peek(str(pipeline_path(name))).ends_random(None) == backbone.denoiser(4, 1.0).ends_random
    build.prepare_training(backbone, config)
    assert 3 * size.lora == sum(p.numel() for p in backbone.trainable_parameters().values())


def test_every_term_of_sd_turbo() -> None:
    config = Config.load("aesthetic-1gpu")
    found = estimate(config)
    assert found is not None
    assert found.parts == {
        "network": 2 * 865_910_724,
        "LoRA": 4 * 4 * 207_488,
        "text encoders": 2 * 340_387_840,
        "decoder": 2 * 83_653_863,
    }
    assert found.memory.training == 4 * 207_488 * (4 + 8)
    latent = 2 * 4 * 64 * 64 * 4  # of a pair, in bytes
    assert found.memory.trajectories == (128 * 51 + 2 * (3 * 50 + 1)) * latent
    assert found.activations == 2 * 660_000_000 and found.rewards == 1_715_000_000
    assert found.update == found.memory.total - found.parts["text encoders"] + 2 * found.activations
    assert found.decoding == 4 * 4 * 256 * 512 * 512 * 2
    assert found.peak < 8e9

    changed = config.model_copy(update={"train": config.train.model_copy(update={"micro_batch": 4, "ema_decay": 0.9})})
    more = estimate(changed, processes=2)
    assert more is not None and more.update - more.memory.total == found.update - found.memory.total + 2 * (
        found.activations
    )
    assert more.memory.training == 4 * 207_488 * (4 + 8 + 4)
    everything = estimate(config.model_copy(update={"lora": None, "model": config.model}))
    assert everything is not None and everything.memory.training == 865_910_724 * (4 + 8 + 4)
    assert everything.parts["network"] == 4 * 865_910_724


def test_every_reward_that_an_evaluation_asks_takes_its_memory() -> None:
    alone, beside = (estimate(Config.load("pickscore", evaluate={"held_out": held})) for held in ([], ["aesthetic"]))
    assert alone is not None and beside is not None
    assert beside.rewards - alone.rewards == 1_715_000_000 and beside.scoring - alone.scoring == 1_715_000_000


@pytest.mark.parametrize(
    ("name", "forward", "backward", "updates"),
    [
        ("lcm-aesthetic", 1024, 768, 6),
        ("sana-sprint-pickscore", 1024, 768, 6),
        ("flux-schnell-hpsv2", 512, 384, 6),
        ("sdxl-turbo-pickscore", 1024, 1024, 8),
    ],
)
def test_the_cost_of_published_models_knows_their_schedule_and_guidance(
    name: str, forward: int, backward: int, updates: int
) -> None:
    config, steps = Config.load(name), f"{updates} optimizer steps"
    assert f"{forward} network evaluations without and {backward} with gradient, {steps}" in build.cost(config)
    assert f"{steps} an epoch" in build.batch_arithmetic(config, 1)
    assert steps in next(batches(config, load_prompts(config.prompts.train))).text


def test_small_parts_are_not_told_as_none() -> None:
    assert "LoRA 8.22 MB" in describe(Config.load("emoji"))


def test_published_sizes_are_those_of_the_presets() -> None:
    paths = {Config.load(name).model.path for name in ("aesthetic", "sdxl-turbo-pickscore", "lcm-aesthetic")}
    assert paths <= set(PUBLISHED)


def test_what_is_not_known_is_said(sdpo: Run) -> None:
    result = sdpo("train", "emoji", "model.path=somebody/some-model", "--dry-run")
    assert result.returncode == 0 and "# memory: not known for somebody/some-model" in result.stdout


def test_batch_arithmetic(sdpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    words = sdpo("train", "aesthetic-4gpu", "--dry-run").stdout
    assert "# batches: 128 groups an epoch = 2 × 64; 64 a step over 4 processes = 16 each" in words
    assert "in micro-batches of 4 (gradients gathered over 4 calls); 100 optimizer steps an epoch" in words
    monkeypatch.setenv("WORLD_SIZE", "3")
    result = sdpo("train", "aesthetic", "--dry-run")
    assert result.returncode == 2 and "use train.batch_size=63 with sample.prompts_per_epoch=126" in result.stderr
    result = sdpo("train", "aesthetic", "train.batch_size=60", "--dry-run")
    assert result.returncode == 2 and "Nearest: train.batch_size=32 or 64" in result.stderr
