"""From trajectories to dense rewards: decode what the plan asks for, query the rewards, spread over the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdpo.algorithms.base import RewardPlan
from sdpo.backbones import Backbone
from sdpo.dense import query_steps, spread_rewards
from sdpo.rewards import Reward, checked_scores
from sdpo.types import Trajectories


class RewardMix:
    """One or several weighted rewards as one number.

    A single reward passes through times its weight. Several are standardised first, each by the mean and std of all
    its scores so far in the run, so that weights compare rewards of different scales.

    Args:
        rewards: callables by name.
        weights: by the same names.
    """

    def __init__(self, rewards: Mapping[str, Reward], weights: Mapping[str, float]) -> None:
        self.rewards = dict(rewards)
        self.weights = dict(weights)
        # Count, mean and sum of squared deviations (Welford), in float64.
        self._moments = {name: torch.zeros(3, dtype=torch.float64) for name in rewards}

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Raw scores of N images by every reward, float32 [N] each."""
        return {name: checked_scores(name, r, images, prompts, metadata) for name, r in self.rewards.items()}

    def observe(self, scores: Mapping[str, Tensor]) -> None:
        """Take a global batch of raw scores into the running statistics."""
        for name, values in scores.items():
            new = values.detach().double().cpu()
            count, mean, squares = self._moments[name].unbind()
            total = count + len(new)
            shift = new.mean() - mean
            squares = squares + (new - new.mean()).square().sum() + shift.square() * count * len(new) / total
            self._moments[name] = torch.stack([total, mean + shift * len(new) / total, squares])

    def combine(self, scores: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum, [N]."""
        if len(self.rewards) == 1:
            (name,) = self.rewards
            return self.weights[name] * scores[name]
        total = torch.zeros_like(next(iter(scores.values())))
        for name, values in scores.items():
            count, mean, squares = self._moments[name].tolist()
            std = (squares / count) ** 0.5
            total = total + self.weights[name] * (values - mean) / (std + 1e-6)
        return total

    def state_dict(self) -> dict[str, Any]:
        """The running statistics."""
        return {"moments": dict(self._moments)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self._moments = dict(state["moments"])


@dataclass
class Scores:
    """What scoring found.

    Attributes:
        dense: a reward for every step, float32 [B, K, T].
        first: mixed reward of the first step's image where it was queried, [B, K], else None.
        last: mixed reward of the last step's image, [B, K].
        raw: mean raw score of the last step's images, by reward.
        queries: images that were scored.
    """

    dense: Tensor
    first: Tensor | None
    last: Tensor
    raw: dict[str, Tensor]
    queries: int


Gather = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def score(
    trajectories: Trajectories,
    backbone: Backbone,
    mix: RewardMix,
    plan: RewardPlan,
    *,
    decode_batch: int = 32,
    gather: Gather = lambda scores: scores,
) -> Scores:
    """Decode and score the images that the plan asks for, each once, and give every step its reward.

    `anchors` asks for three images a trajectory (fewer where steps coincide) and spreads; `all` asks for every
    step; `final` asks for the last and gives the other steps 0.

    Args:
        trajectories: of this process.
        backbone: decodes.
        mix: the rewards.
        plan: which steps are scored.
        decode_batch: images decoded in one call.
        gather: collects raw scores from all processes, for running statistics.
    """
    x0 = trajectories.x0
    groups, branches, steps = x0.shape[:3]
    if plan == "anchors":
        wanted = query_steps(x0)  # [B, K, 3]
    elif plan == "all":
        wanted = torch.arange(steps, device=x0.device).expand(groups, branches, steps)
    else:
        wanted = torch.full((groups, branches, 1), steps - 1, device=x0.device)
    # Each wanted image as one number, so that coinciding steps are decoded and scored once.
    rows = torch.arange(groups * branches, device=x0.device).reshape(groups, branches, 1)
    unique, where = (rows * steps + wanted).unique(return_inverse=True)
    latents = x0.flatten(0, 2)[unique]
    images = torch.cat([backbone.decode(part) for part in latents.split(decode_batch)])
    owner = (unique // (branches * steps)).tolist()
    raw = mix.score(images, [trajectories.prompts[i] for i in owner], [trajectories.metadata[i] for i in owner])
    mix.observe(gather(raw))
    queried = mix.combine(raw)[where]  # [B, K, Q]
    if plan == "anchors":
        dense = spread_rewards(x0, wanted, queried)
    elif plan == "all":
        dense = queried
    else:
        dense = torch.zeros(groups, branches, steps, device=x0.device)
        dense[..., -1] = queried[..., 0]
    last = where[..., 1] if plan == "anchors" else where[..., -1]
    return Scores(
        dense=dense,
        first=None if plan == "final" else queried[..., 0],
        last=mix.combine(raw)[last],
        raw={name: values[last].mean() for name, values in raw.items()},
        queries=len(unique),
    )
