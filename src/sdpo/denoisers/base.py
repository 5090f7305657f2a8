"""What every family of transitions provides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Transition:
    """p(x_{i+1} | x_i) = N(mean, std²) and the clean latent it was made from.

    Attributes:
        mean: [N, C, H, W].
        std: [N]; 0 where the step is deterministic.
        x0: predicted clean latent, [N, C, H, W].
    """

    mean: Tensor
    std: Tensor
    x0: Tensor

    def __getitem__(self, rows: Tensor) -> Transition:
        """The transitions of some samples; a sample may come more than once."""
        return Transition(self.mean[rows], self.std[rows], self.x0[rows])


class Denoiser(ABC):
    """A schedule of T steps with its coefficients on the device, indexed by step.

    Built once a run for a number of steps; all its per-step numbers are tensors, so that a batch may mix steps
    and the step loop never waits for the device.

    Attributes:
        timesteps: scheduler timesteps in sampling order, int64 [T].
        stochastic: which steps are random, bool [T].
    """

    timesteps: Tensor
    stochastic: Tensor

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.timesteps)

    @abstractmethod
    def transition(self, latents: Tensor, output: Tensor, step_index: Tensor) -> Transition:
        """The transition at each sample's own step.

        Args:
            latents: x_i, [N, C, H, W].
            output: what the network returned for them, [N, C, H, W].
            step_index: i, int64 [N].
        """
