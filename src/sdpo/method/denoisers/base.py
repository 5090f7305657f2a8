"""The base of all denoisers: from a network output to a Gaussian over the next latent, step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from sdpo.method.gaussian import full

Prediction = Literal["epsilon", "v_prediction", "sample"]


def check_prediction(prediction: str, alpha: Tensor) -> None:
    """Reject an unknown kind of prediction, and one that determines no x̂ on a schedule.

    Args:
        prediction: the quantity that the network predicts.
        alpha: ᾱ of every step, [T].

    Raises:
        ValueError: if the kind is unknown, or the network predicts noise at a step without signal.
    """
    if prediction not in get_args(Prediction):
        raise ValueError(f"prediction must be epsilon, v_prediction or sample, got {prediction!r}")
    if prediction == "epsilon" and (alpha <= 0).any():
        raise ValueError("the schedule begins at ᾱ = 0 (zero terminal SNR), where predicted noise says nothing about x̂")


def clean_and_noise(
    prediction: Prediction, latents: Tensor, output: Tensor, signal: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """x̂ and ε̂ with x = a x̂ + s ε̂, from a network that predicts ε, v = a ε − s x̂ or x̂ (arXiv 2202.00512).

    Args:
        prediction: the quantity that the network predicts.
        latents: x, [N, ...].
        output: the network's output, [N, ...].
        signal: a = √ᾱ, [N, 1, ...].
        noise: s = √(1−ᾱ), [N, 1, ...].

    Returns:
        x̂ and ε̂, both [N, ...].
    """
    if prediction == "epsilon":
        return (latents - noise * output) / signal, output
    if prediction == "v_prediction":
        return signal * latents - noise * output, signal * output + noise * latents
    return output, (latents - signal * output) / noise


@dataclass
class Transition:
    """p(x_{i+1} | x_i) = N(mean, std²), and the clean latent x̂ that it was computed from.

    Attributes:
        mean: mean of the next latent, [N, C, H, W].
        std: standard deviation of the next latent, [N]; 0 where the step is deterministic.
        x0: predicted clean latent x̂, [N, C, H, W].
    """

    mean: Tensor
    std: Tensor
    x0: Tensor

    def __getitem__(self, rows: Tensor) -> Transition:
        """Select the transitions of some samples, int64 [M] of 0 … N−1; a sample may be selected more than once."""
        return Transition(self.mean[rows], self.std[rows], self.x0[rows])


class Denoiser(ABC):
    """A schedule of T steps with its coefficients on the device, indexed by step.

    A denoiser is built once a run for a number of steps. All per-step numbers are tensors, so that a batch may mix
    steps and the loop over steps never waits for the device.

    Clean latents have about unit variance, and pure noise has variance 1: a family whose scheduler or network works in
    another scale converts internally.

    Attributes:
        timesteps: the timesteps that the network is given, in sampling order, int64 or float32 [T].
        stochastic: which steps are random, bool [T]; the last one may be deterministic.
        std: the standard deviation of each step, float32 [T]; 0 where the step is deterministic.
        initial_scale: the factor that turns standard normal noise into x_0.
        step_length: Δ of each step, float32 [T], where the step's variance is s(σ)² Δ; None for other forms of noise.
        levels: α_i and σ_i of x_i = α_i x̂ + σ_i ε, the latents that each step is given, float32 [T, 2].
    """

    timesteps: Tensor
    stochastic: Tensor
    std: Tensor
    initial_scale: float = 1.0
    step_length: Tensor | None = None
    levels: Tensor

    @property
    def num_steps(self) -> int:
        """T, the number of denoising steps."""
        return len(self.timesteps)

    @property
    def ends_random(self) -> bool:
        """Whether the last step is random: its latents then keep some noise, and the image is decoded from its x̂."""
        return bool(self.stochastic[-1])

    def noised(self, clean: Tensor, noise: Tensor, step_index: Tensor) -> Tensor:
        """Noise clean latents to the level of each sample's own step: α_i x̂ + σ_i ε.

        Args:
            clean: x̂, [N, C, H, W].
            noise: ε, standard normal, [N, C, H, W].
            step_index: i, int64 [N].

        Returns:
            x_i, float32 [N, C, H, W].
        """
        signal, level = (c.reshape(-1, *([1] * (clean.ndim - 1))) for c in self.levels[step_index].unbind(1))
        return signal * full(clean) + level * full(noise)

    @abstractmethod
    def transition(self, latents: Tensor, output: Tensor, step_index: Tensor) -> Transition:
        """Compute the transition at each sample's own step.

        Args:
            latents: x_i, [N, C, H, W].
            output: the network's output for `latents`, [N, C, H, W].
            step_index: i, int64 [N].
        """
