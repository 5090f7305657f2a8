"""Checks of a reward: that it says the same of the same image, and something about images at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sdpo.commands.doctor.finding import Finding, Status
from sdpo.rewards import PlacedReward

_NOISE = 0.01  # of the samples' spread, that scores of one image may differ by


def sanity(
    reward: PlacedReward, images: Tensor, prompts: list[str], metadata: list[Any], trained: bool
) -> list[Finding]:
    """What is wrong with a reward on a few samples; one `ok` where nothing is.

    Args:
        reward: finite scores of the right number are its own duty.
        images: samples [N, 3, H, W].
        prompts: of each.
        metadata: of each.
        trained: whether the run trains on it; a judge may well say the same of all samples.

    Raises:
        RewardError: if it fails.
    """
    count = len(images)
    with torch.no_grad(), reward.resident():
        doubled = reward(torch.cat([images, images]), prompts * 2, metadata * 2).double().cpu()
        again = reward(images, prompts, metadata).double().cpu()
        single = [reward(images[i : i + 1], prompts[i : i + 1], metadata[i : i + 1]) for i in range(count)]
        blank = reward(torch.full_like(images[:1], 0.5), prompts[:1], metadata[:1]).item()
    scores, name = doubled[:count], f"reward {reward.name}"
    spread = (scores.max() - scores.min()).item()
    repeated = max((scores - doubled[count:]).abs().max().item(), (scores - again).abs().max().item())
    alone = (scores - torch.cat(single).double().cpu()).abs().max().item()
    found = list(_differences(name, repeated, alone, spread, scores.abs().max().item()))
    if trained:
        found += _contrast(name, scores, spread, blank)
    text = f"samples {scores.min():.4g} … {scores.max():.4g}, a blank image {blank:.4g}; one image, one score"
    return found or [Finding(name, "ok", text)]


def _differences(name: str, repeated: float, alone: float, spread: float, size: float) -> Iterator[Finding]:
    """Scores of one image that differ: by little is rounding, by the samples' spread is no reward."""
    allowed = _NOISE * spread + 1e-5 * size + 1e-9
    for apart, what, advice in (
        (repeated, "scores one image differently when asked twice", "fix its seed, or set its temperature to 0"),
        (alone, "scores an image alone differently than in a batch", "it must not look at the other images"),
    ):
        if apart > allowed:
            status: Status = "FAIL" if apart > 0.5 * spread + allowed else "WARN"
            yield Finding(name, status, f"{what}, by {apart:.2g} where samples spread over {spread:.2g}: {advice}")


def _contrast(name: str, scores: Tensor, spread: float, blank: float) -> Iterator[Finding]:
    """Whether it tells images apart, and samples from nothing."""
    if spread == 0 and blank == scores[0]:
        yield Finding(name, "FAIL", f"gives every image {blank:.4g}, a blank one too: there is nothing to learn")
    elif spread == 0:
        yield Finding(name, "WARN", f"gives all {len(scores)} samples {scores[0]:.4g}: does it tell images apart?")
    elif blank >= scores.max():
        text = f"likes a blank image ({blank:.4g}) as much as the best sample ({scores.max():.4g})"
        yield Finding(name, "WARN", f"{text}: training can end there. Add a reward that reads the prompt, or stop_when")
