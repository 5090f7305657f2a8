"""An algorithm, a credit rule, a reward plan and a normaliser outside the package; docs/extend.md explains them.

From this folder:

    sdpo train emoji algorithm=own_algorithm:WeightedRatio \
        'algorithm.credit={name: own_algorithm:NextSteps, horizon: 2}' \
        algorithm.reward_plan=own_algorithm:EverySecond advantage.normalizer=own_algorithm:RunningMoments \
        sample.num_steps=4 --output-dir runs/own
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sdpo import Algorithm, Credit, LossOutput, Normalizer, RewardPlan, StepBatch


@dataclass(frozen=True)
class WeightedRatio(Algorithm[StepBatch]):
    """A clipped ratio whose branches are weighted by their advantages: softmax(A / temperature) over a group.

    Attributes:
        clip_range: the ratio is clipped to 1 ± this value.
        temperature: a high temperature gives all branches the same weight.
    """

    clip_range: float = 0.02
    temperature: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError("algorithm.temperature must be positive")

    def loss(self, batch: StepBatch) -> LossOutput:
        """Mean of −w min(A r, A clip(r)) with r = exp(ℓ(θ) − ℓ(old))."""
        ratio = (batch.log_prob - batch.old_log_prob).exp()  # [B, K]
        clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        gain = torch.minimum(batch.advantage * ratio, batch.advantage * clipped)
        weight = ratio.shape[1] * torch.softmax(batch.advantage / self.temperature, dim=1)
        use = batch.mask[:, None]  # deterministic steps do not count
        loss = -(weight * gain * use).mean()
        clip_fraction = ((clipped != ratio) * use).mean()
        return LossOutput(loss, {"loss": loss.detach(), "clip_fraction": clip_fraction.detach()})


@dataclass(frozen=True)
class NextSteps(Credit):
    """The return of a step is the discounted sum of the next `horizon` rewards, its own included."""

    horizon: int = 2

    def __call__(self, dense: Tensor, discount: float) -> Tensor:
        """Σ_{j < horizon} γ^j R̂_{i+j}, [B, K, T]."""
        returns, steps = torch.zeros_like(dense), dense.shape[-1]
        for ahead in range(min(self.horizon, steps)):
            returns[..., : steps - ahead] += discount**ahead * dense[..., ahead:]
        return returns


@dataclass(frozen=True)
class EverySecond(RewardPlan):
    """Scores every `stride`-th step and the last; the steps in between get the reward of the next scored one."""

    first_query: ClassVar[int | None] = 0
    last_query: ClassVar[int] = -1

    stride: int = 2

    def scored(self, num_steps: int) -> list[int]:
        """The steps whose images are scored, in order."""
        return sorted({*range(0, num_steps, self.stride), num_steps - 1})

    def steps(self, x0: Tensor) -> Tensor:
        """The same steps for all trajectories, [B, K, Q]."""
        groups, branches, num_steps = x0.shape[:3]
        return torch.tensor(self.scored(num_steps), device=x0.device).expand(groups, branches, -1)

    def dense(self, rewards: Tensor, steps: Tensor, similarity: Tensor | None, num_steps: int) -> Tensor:
        """The reward of the next scored step, [B, K, T]."""
        every = torch.arange(num_steps, device=rewards.device)
        return rewards[..., torch.searchsorted(steps[0, 0].contiguous(), every)]

    def max_queries(self, num_steps: int) -> int:
        """The number of scored steps."""
        return len(self.scored(num_steps))


@dataclass
class RunningMoments(Normalizer):
    """(G − mean) / std with the moments of all returns of the run, averaged exponentially over its epochs."""

    decay: float = 0.9
    _moments: Tensor | None = field(default=None, init=False)

    def update(self, prompts: list[str], returns: Tensor) -> Tensor:
        """Normalise the returns of a whole epoch, [B, K, T]."""
        new = torch.stack([returns.mean(), returns.square().mean()]).double().cpu()
        self._moments = new if self._moments is None else self.decay * self._moments + (1 - self.decay) * new
        mean, square = self._moments.tolist()
        return ((returns - mean) / (max(square - mean**2, 0.0) ** 0.5 + 1e-6)).float()

    def state_dict(self) -> dict[str, Any]:
        """The statistics that a resumed run continues with."""
        return {"moments": self._moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the statistics."""
        self._moments = state["moments"]
