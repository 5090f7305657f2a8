"""Normalisers, from returns to advantages; their statistics persist across epochs and are saved in checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from sdpo.errors import UserError
from sdpo.method.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

# Rounding in float32 is larger than this, which would leave equal returns at some distance from their mean: hence
# statistics are computed in float64.
_EPSILON = 1e-6


class Normalizer(ABC):
    """Turns returns into advantages.

    Subclasses are dataclasses; their fields are the settings of `advantage.normalizer`.

    Attributes:
        compares_branches: whether advantages are differences between the branches of a group, so that
            `algorithm.branches` must be at least 2.
    """

    compares_branches: ClassVar[bool] = False

    @abstractmethod
    def update(self, prompts: list[str], returns: Tensor) -> Tensor:
        """Normalise the returns of one whole, global batch and update the statistics.

        Args:
            prompts: B prompts.
            returns: [B, K, T], finite.

        Returns:
            advantages, float32 [B, K, T].
        """

    def update_at(self, prompts: list[str], returns: Tensor, steps: Tensor) -> Tensor:
        """Normalise a global batch whose groups have a return at one step each, where their branches part.

        The groups at each step are normalised by `update`, apart from those at other steps. A normaliser whose
        statistics outlive the batch must define this method: they are of the step, or of all steps together.

        Args:
            prompts: B prompts.
            returns: [B, K], finite.
            steps: the step of each group, int64 [B].

        Returns:
            advantages, float32 [B, K].

        Raises:
            UserError: if the normaliser keeps statistics and does not say which step they belong to.
        """
        if not self.takes_single_steps:
            raise UserError(
                f"the normaliser {type(self).__name__} keeps statistics, but has no update_at, which says whether they "
                "are of each step or of all steps together: define it, or set sample.branch_at=null"
            )
        return each_step(lambda step, some, values: self.update(some, values), prompts, returns, steps)

    @property
    def takes_single_steps(self) -> bool:
        """Whether `update_at` has a meaning: it is defined, or there are no statistics to keep apart."""
        own, plain = type(self), Normalizer
        return own.update_at is not plain.update_at or own.state_dict is plain.state_dict

    def state_dict(self) -> dict[str, Any]:
        """The statistics that a resumed run needs; tensors and plain containers only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 (nothing to do without statistics)
        """Restore the statistics that `state_dict` returned."""


def each_step(
    update: Callable[[int, list[str], Tensor], Tensor], prompts: list[str], returns: Tensor, steps: Tensor
) -> Tensor:
    """Normalise the groups at each step by themselves.

    Args:
        update: turns a step, the prompts of the n groups that are at it, and their returns, [n, K, 1], into advantages
            of the same shape.
        prompts: B prompts.
        returns: [B, K].
        steps: the step of each group, int64 [B].

    Returns:
        advantages, float32 [B, K].
    """
    advantages = torch.empty_like(returns, dtype=torch.float32)
    for step in steps.unique().tolist():
        rows = (steps == step).nonzero().flatten()
        found = update(step, [prompts[row] for row in rows.tolist()], returns[rows][..., None])
        advantages[rows] = found[..., 0].float()
    return advantages


Buffers = dict[str, "Tensor"]
"""The last returns of each prompt, [n, T]."""


@dataclass(frozen=True)
class BufferedNormalizer(Normalizer):
    """(G − mean) / (std + 10⁻⁶), the statistics taken over a buffer of each prompt's last returns.

    The new values of all branches enter together before the statistics are read. A prompt with fewer than `min_count`
    entries borrows the mean and std of the whole batch. Std is the population's.

    Attributes:
        buffer_size: entries kept for each prompt.
        min_count: entries a prompt needs before its own statistics are used.
    """

    buffer_size: int = 32
    min_count: int = 16
    _buffers: Buffers = field(default_factory=dict, init=False, repr=False, compare=False)

    def update(self, prompts: list[str], returns: Tensor) -> Tensor:
        """Normalise a global batch of returns, [B, K, T], by the statistics of its prompts; see `Normalizer.update`."""
        return self._update(self._buffers, prompts, returns)

    def _update(self, buffers: Buffers, prompts: list[str], returns: Tensor) -> Tensor:
        """`update` with the buffers that are given."""
        device = returns.device
        values = returns.detach().float().cpu()
        batch_mean, batch_std = self._moments(values.flatten(0, 1))
        advantages = torch.empty_like(values)
        for prompt in dict.fromkeys(prompts):
            rows = torch.tensor([p == prompt for p in prompts])
            new = values[rows].flatten(0, 1)  # [n K, T]
            old = buffers.get(prompt, new[:0])
            buffer = torch.cat([old, new])[-self.buffer_size :]
            buffers[prompt] = buffer
            own = len(buffer) >= self.min_count
            mean, std = self._moments(buffer) if own else (batch_mean, batch_std)
            advantages[rows] = ((values[rows] - mean) / (std + _EPSILON)).float()
        return advantages.to(device)

    @abstractmethod
    def _moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and population std of values [N, T], float64, both [T] or scalars."""

    def state_dict(self) -> dict[str, Any]:
        """The buffers by prompt."""
        return {"buffers": dict(self._buffers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the buffers."""
        self._buffers.clear()
        self._buffers.update(state["buffers"])


@dataclass(frozen=True)
class StepwiseNormalizer(BufferedNormalizer):
    """SDPO's stepwise advantages: statistics per prompt and step.

    Where groups have a return at one step each, every step has buffers of its own.
    """

    _at_step: dict[int, Buffers] = field(default_factory=dict, init=False, repr=False, compare=False)

    def update_at(self, prompts: list[str], returns: Tensor, steps: Tensor) -> Tensor:
        """Normalise returns at one step a group by each prompt's last ones at that step; see `Normalizer.update_at`."""

        def update(step: int, some: list[str], values: Tensor) -> Tensor:
            return self._update(self._at_step.setdefault(step, {}), some, values)

        return each_step(update, prompts, returns, steps)

    def state_dict(self) -> dict[str, Any]:
        """The buffers by prompt, and where groups have one step each, by step and prompt."""
        at_step = {"at_step": {step: dict(buffers) for step, buffers in self._at_step.items()}} if self._at_step else {}
        return {**super().state_dict(), **at_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the buffers."""
        super().load_state_dict(state)
        self._at_step.clear()
        self._at_step.update({step: dict(buffers) for step, buffers in state.get("at_step", {}).items()})

    def _moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        values = values.double()
        return values.mean(0), values.std(0, correction=0)


@dataclass(frozen=True)
class PromptNormalizer(BufferedNormalizer):
    """Statistics per prompt, pooled over its steps: SDPO's ablation of stepwise advantages."""

    def update_at(self, prompts: list[str], returns: Tensor, steps: Tensor) -> Tensor:
        """Normalise returns at one step a group by each prompt's last ones at any step; see `Normalizer.update_at`."""
        return self._update(self._buffers, prompts, returns[..., None])[..., 0]

    def _moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        values = values.double().flatten()
        return values.mean(0), values.std(0, correction=0)


@dataclass(frozen=True)
class PairNormalizer(Normalizer):
    """(G − mean over the branches) / (std of those deviations over the whole batch), step by step.

    Only differences between branches of one prompt are learned from, so their own standard deviation is the scale. In
    contrast to the stepwise normaliser this needs no history: it is right from the first epoch, where a young buffer
    mixes the prompts' different levels into the scale.
    """

    compares_branches: ClassVar[bool] = True

    def update(self, prompts: list[str], returns: Tensor) -> Tensor:
        """Normalise a global batch of returns, [B, K, T], by itself; see `Normalizer.update`."""
        deviations = returns.detach().double()
        deviations = deviations - deviations.mean(1, keepdim=True)
        # The deviations have mean 0 within each group; their pairwise difference has twice their variance (K = 2).
        scale = deviations.square().mean((0, 1), keepdim=True).sqrt()
        return (deviations / (scale + _EPSILON)).float()


@dataclass(frozen=True)
class GroupNormalizer(Normalizer):
    """(G − mean over the K branches of one group) / (std + ε), step by step (GRPO). Needs no history.

    A group whose returns are all equal has advantage 0.

    Attributes:
        global_std: whether the standard deviation is that of the whole batch, and not the group's own.
        unbiased: whether the sum of squares is divided by the number of values less one.
        epsilon: ε.
    """

    compares_branches: ClassVar[bool] = True

    global_std: bool = False
    unbiased: bool = False
    epsilon: float = _EPSILON

    def update(self, prompts: list[str], returns: Tensor) -> Tensor:
        """Normalise each group of a batch of returns, [B, K, T]; see `Normalizer.update`."""
        values = returns.detach().double()
        axes = (0, 1) if self.global_std else (1,)
        std = values.std(axes, correction=int(self.unbiased), keepdim=True)
        return ((values - values.mean(1, keepdim=True)) / (std + self.epsilon)).float()


NORMALIZERS: dict[str, type[Normalizer]] = {
    "stepwise": StepwiseNormalizer,
    "prompt": PromptNormalizer,
    "pair": PairNormalizer,
    "group": GroupNormalizer,
}
