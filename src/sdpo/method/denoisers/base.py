"""What every family of transitions provides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample"]


def check_prediction(prediction: str) -> None:
    """Refuse what no network of the diffusion families predicts.

    Raises:
        ValueError: naming it.
    """
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"prediction must be epsilon, v_prediction or sample, got {prediction!r}")


def clean_and_noise(
    prediction: Prediction, latents: Tensor, output: Tensor, signal: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """x̂ and ε̂ with x = a x̂ + s ε̂, from a network that predicts ε, v = a ε − s x̂ or x̂ (arXiv 2202.00512).

    Args:
        prediction: what it predicts.
        latents: x, [N, ...].
        output: of the network, [N, ...].
        signal: a = √ᾱ, [N, 1, ...].
        noise: s = √(1−ᾱ), [N, 1, ...].
    """
    if prediction == "epsilon":
        return (latents - noise * output) / signal, output
    if prediction == "v_prediction":
        return signal * latents - noise * output, signal * output + noise * latents
    return output, (latents - signal * output) / noise


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
        stochastic: which steps are random, bool [T]; the last one may not be.
        initial_scale: what standard normal noise is multiplied by to become x_0.
    """

    timesteps: Tensor
    stochastic: Tensor
    initial_scale: float = 1.0

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.timesteps)

    @property
    def ends_random(self) -> bool:
        """Whether the last step is random: then its latents keep some noise, and the image is its x̂."""
        return bool(self.stochastic[-1])

    @abstractmethod
    def transition(self, latents: Tensor, output: Tensor, step_index: Tensor) -> Transition:
        """The transition at each sample's own step.

        Args:
            latents: x_i, [N, C, H, W].
            output: what the network returned for them, [N, C, H, W].
            step_index: i, int64 [N].
        """
