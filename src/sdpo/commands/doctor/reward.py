"""The check of a reward: that it scores equal images equally, and tells different ones apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo.commands.doctor.finding import Finding, Status
from sdpo.commands.doctor.probe import Samples
from sdpo.rewards.base import PlacedReward

_NOISE = 0.01  # scores of one image may differ by this share of the range of the samples' scores


@dataclass(frozen=True)
class _Scores:
    """The scores of N samples, and how far repeated scores differ.

    Attributes:
        samples: the scores of the samples, float64 [N].
        blank: the score of a grey image.
        repeated: the largest difference between two scores of one image.
        alone: the largest difference between the scores of an image alone and in a batch.
    """

    samples: Tensor
    blank: float
    repeated: float
    alone: float

    @property
    def range(self) -> float:
        """The difference between the best and the worst sample."""
        return (self.samples.max() - self.samples.min()).item()


def check_reward(reward: PlacedReward, samples: Samples, trained: bool) -> list[Finding]:
    """Check a reward on a few samples; returns one `ok` where nothing is wrong.

    Args:
        reward: the reward, which verifies by itself that its scores are finite and of the right number.
        samples: the N samples.
        trained: whether the run is trained on the reward; a judge may well give all samples one score.

    Raises:
        RewardError: if the reward fails.
    """
    name, scores = f"reward {reward.name}", _score(reward, samples)
    found = list(_differences(name, scores))
    if trained:
        found += _contrast(name, scores)
    low, high = scores.samples.min(), scores.samples.max()
    text = f"samples {low:.4g} … {high:.4g}, a blank image {scores.blank:.4g}; one image, one score"
    return found or [Finding(name, "ok", text)]


def _score(reward: PlacedReward, samples: Samples) -> _Scores:
    """Score the samples twice in one batch, once more, and one by one."""
    images, prompts, metadata, count = samples.images, samples.prompts, samples.metadata, len(samples.images)
    with torch.no_grad(), reward.resident():
        doubled = reward(torch.cat([images, images]), prompts * 2, metadata * 2).double().cpu()
        again = reward(images, prompts, metadata).double().cpu()
        single = [reward(images[i : i + 1], prompts[i : i + 1], metadata[i : i + 1]) for i in range(count)]
        blank = reward(torch.full_like(images[:1], 0.5), prompts[:1], metadata[:1]).item()
    scores = doubled[:count]
    return _Scores(
        samples=scores,
        blank=blank,
        repeated=max((scores - doubled[count:]).abs().max().item(), (scores - again).abs().max().item()),
        alone=(scores - torch.cat(single).double().cpu()).abs().max().item(),
    )


def _differences(name: str, scores: _Scores) -> Iterator[Finding]:
    """Report scores of one image that differ by more than rounding."""
    allowed = _NOISE * scores.range + 1e-5 * scores.samples.abs().max().item() + 1e-9
    for apart, what, advice in (
        (scores.repeated, "scores one image differently when asked twice", "fix its seed, or set its temperature to 0"),
        (scores.alone, "scores an image alone differently than in a batch", "it must not look at the other images"),
    ):
        if apart > allowed:
            status: Status = "FAIL" if apart > 0.5 * scores.range + allowed else "WARN"
            text = f"{what}, by {apart:.2g} where samples differ by {scores.range:.2g}: {advice}"
            yield Finding(name, status, text)


def _contrast(name: str, scores: _Scores) -> Iterator[Finding]:
    """Report a reward that does not tell images apart, or samples from a blank image."""
    samples, blank, best = scores.samples, scores.blank, scores.samples.max().item()
    if scores.range == 0 and blank == samples[0]:
        yield Finding(name, "FAIL", f"gives every image {blank:.4g}, a blank one too: there is nothing to learn")
    elif scores.range == 0:
        yield Finding(name, "WARN", f"gives all {len(samples)} samples {best:.4g}: does it tell images apart?")
    elif blank >= best:
        text = f"likes a blank image ({blank:.4g}) as much as the best sample ({best:.4g})"
        yield Finding(name, "WARN", f"{text}: training can end there. Add a reward that reads the prompt, or stop_when")
