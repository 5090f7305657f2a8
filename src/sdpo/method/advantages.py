"""Returns to advantages: normalisers with a state that persists across epochs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

# Beside it the rounding of float32 is large: equal returns would be as far from their mean as it is. Hence float64.
_EPSILON = 1e-6


class Normalizer(ABC):
    """Turns returns into advantages."""

    @abstractmethod
    def update(self, prompts: list[str], returns: Tensor) -> Tensor:
        """Normalise the returns of one whole, global batch and remember what the normaliser needs of them.

        Args:
            prompts: B prompts.
            returns: [B, K, T], finite.

        Returns:
            advantages, float32 [B, K, T].
        """

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; tensors and plain containers only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 (a normaliser without state has nothing to do)
        """Restore what `state_dict` gave."""


class StepwiseNormalizer(Normalizer):
    """(G − mean) / (std + 10⁻⁶) per (prompt, step), over the prompt's last returns (SDPO, stepwise advantages).

    A buffer of the last `buffer_size` returns is kept for each prompt. The new values of all branches enter
    together before the statistics are read. A prompt with fewer than `min_count` entries borrows the mean and std
    of the whole batch at that step. Std is the population's.

    Args:
        buffer_size: entries kept for each prompt.
        min_count: entries a prompt needs before its own statistics are used.
        per_step: each step has statistics of its own; False pools all steps of a prompt (SDPO's ablation).
    """

    def __init__(self, buffer_size: int = 32, min_count: int = 16, per_step: bool = True) -> None:
        self.buffer_size = buffer_size
        self.min_count = min_count
        self.per_step = per_step
        self._buffers: dict[str, Tensor] = {}

    def update(self, prompts: list[str], returns: Tensor) -> Tensor:
        """See `Normalizer.update`."""
        device = returns.device
        values = returns.detach().float().cpu()
        batch_mean, batch_std = self._moments(values.flatten(0, 1))
        advantages = torch.empty_like(values)
        for prompt in dict.fromkeys(prompts):
            rows = torch.tensor([p == prompt for p in prompts])
            new = values[rows].flatten(0, 1)  # [n K, T]
            old = self._buffers.get(prompt, new[:0])
            buffer = torch.cat([old, new])[-self.buffer_size :]
            self._buffers[prompt] = buffer
            own = len(buffer) >= self.min_count
            mean, std = self._moments(buffer) if own else (batch_mean, batch_std)
            advantages[rows] = ((values[rows] - mean) / (std + _EPSILON)).float()
        return advantages.to(device)

    def _moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and population std of values [N, T]: of each step, [T], or of all; float64."""
        values = values.double() if self.per_step else values.double().flatten()
        return values.mean(0), values.std(0, correction=0)

    def state_dict(self) -> dict[str, Any]:
        """The buffers by prompt."""
        return {"buffers": dict(self._buffers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the buffers."""
        self._buffers = dict(state["buffers"])


class PairNormalizer(Normalizer):
    """(G − mean over the branches) / (std over the whole batch of those deviations), step by step.

    Only differences between branches of one prompt are learned from, so this normalises by their own spread. Unlike the
    stepwise normaliser it needs no history: it is right from the first epoch, where a young buffer mixes the
    prompts' different levels into the scale.
    """

    def update(self, prompts: list[str], returns: Tensor) -> Tensor:
        """See `Normalizer.update`."""
        deviations = returns.detach().double()
        deviations = deviations - deviations.mean(1, keepdim=True)
        # The deviations have mean 0 within each group; their pairwise difference has twice their variance (K = 2).
        scale = deviations.square().mean((0, 1), keepdim=True).sqrt()
        return (deviations / (scale + _EPSILON)).float()


class GroupNormalizer(Normalizer):
    """(G − mean) / std over the K branches of one group, step by step (GRPO). Needs no history.

    A group whose returns are all equal has advantage 0.
    """

    def update(self, prompts: list[str], returns: Tensor) -> Tensor:
        """See `Normalizer.update`."""
        values = returns.detach().double()
        mean, std = values.mean(1, keepdim=True), values.std(1, correction=0, keepdim=True)
        return ((values - mean) / (std + _EPSILON)).float()
