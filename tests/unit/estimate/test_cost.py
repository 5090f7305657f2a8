"""The cost and the batches that a dry run shows."""

from __future__ import annotations

import pytest
from helpers.command_line import Run, failed

from sdpo import Config
from sdpo.commands.doctor.batches import check_batches
from sdpo.estimate.cost import describe_batches, describe_cost
from sdpo.prompts import load_prompts


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
    assert f"{forward} network evaluations without and {backward} with gradient, {steps}" in describe_cost(config)
    assert f"{steps} an epoch" in describe_batches(config, 1)
    assert steps in next(check_batches(config, load_prompts(config.prompts.train))).text


def test_batches_over_processes(sdpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    words = sdpo("train", "aesthetic-4gpu", "--dry-run").stdout
    assert "# batches: 128 groups an epoch = 2 × 64; 64 a step over 4 processes = 16 each" in words
    assert "in micro-batches of 4 (gradients accumulated over 4 calls); 100 optimizer steps an epoch" in words
    monkeypatch.setenv("WORLD_SIZE", "3")
    failed(sdpo("train", "aesthetic", "--dry-run"), "use train.batch_size=63 with sample.prompts_per_epoch=126")
    failed(sdpo("train", "aesthetic", "train.batch_size=60", "--dry-run"), "Nearest: train.batch_size=32 or 64")
