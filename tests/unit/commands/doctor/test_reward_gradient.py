"""The check of a reward's gradient at latents finds one that is missing, zero or not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.command_line import Run
from helpers.plane_model import Plane
from torch import Tensor

from sdpo.commands.doctor.probe import Samples
from sdpo.commands.doctor.reward_gradient import check_reward_gradient
from sdpo.method.algorithms import SRG
from sdpo.rewards.base import PlacedReward


class Differentiable:
    """Scores images by a function."""

    differentiable = True

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        self._score = score

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        return self._score(images.flatten(1))


@pytest.mark.parametrize(
    ("score", "status", "text"),
    [
        (lambda pixels: pixels.sum(1), "ok", "has the norm 1.4"),
        (lambda pixels: pixels.sum(1).round(), "WARN", "is 0"),
        (lambda pixels: (0 * pixels).sum(1).sqrt(), "FAIL", "not finite"),
    ],
)
def test_the_gradient_at_the_latents_is_judged(score: Callable[[Tensor], Tensor], status: str, text: str) -> None:
    latents = torch.full((2, 2, 1, 1), 0.5)
    samples = Samples(latents, latents, ["x", "y"], [{}, {}])
    finding = check_reward_gradient(PlacedReward("own", Differentiable(score)), samples, Plane(), SRG())
    assert finding.check == "reward own" and finding.status == status and text in finding.text


def test_runs_by_reward_gradients_have_it_and_others_do_not(sdpo: Run, tiny_overrides: list[str]) -> None:
    settings = [*tiny_overrides, "rewards={colorfulness: 1.0}", "sample.prompts_per_epoch=4", "train.batch_size=4"]
    policy = sdpo("doctor", "emoji", *settings)
    assert policy.returncode == 0 and "its gradient at the latents" not in policy.stdout, policy.stdout + policy.stderr
    climbing = sdpo("doctor", "emoji", *settings, "algorithm=srg")
    assert climbing.returncode == 0 and "its gradient at the latents" in climbing.stdout, climbing.stdout
