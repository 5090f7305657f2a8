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

    Latents are of the scale in which clean ones have about unit variance and pure noise has variance 1: a family
    whose scheduler or network works in another scale converts inside.

    Attributes:
        timesteps: what the network is given, in sampling order, int64 or float32 [T].
        stochastic: which steps are random, bool [T].
        initial_scale: what standard normal noise is multiplied by to become x_0.
    """

    timesteps: Tensor
    stochastic: Tensor
    initial_scale: float = 1.0

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
