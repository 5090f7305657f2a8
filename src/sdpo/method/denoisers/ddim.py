"""Stochastic DDIM (Song et al. 2021, arXiv 2010.02502, equations 12 and 16)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo.method.denoisers.base import Denoiser, Prediction, Transition, check_prediction, clean_and_noise
from sdpo.method.gaussian import full


@dataclass(frozen=True)
class Schedule:
    """The noise levels of T steps.

    Attributes:
        timesteps: t_i as the network is given them, int64 or float32 [T].
        alpha: ᾱ_t at the start of each step, float64 [T].
        alpha_previous: ᾱ_prev at the end of each step, float64 [T].
        initial_scale: the factor that turns standard normal noise into x_0.
    """

    timesteps: Tensor
    alpha: Tensor
    alpha_previous: Tensor
    initial_scale: float = 1.0


def trailing_timesteps(num_steps: int, num_train_timesteps: int = 1000) -> Tensor:
    """The "trailing" schedule (Lin et al. 2024, arXiv 2305.08891, table 2): its first timestep is always the noisiest.

    Args:
        num_steps: T.
        num_train_timesteps: timesteps of the model's training.

    Returns:
        int64 [num_steps], descending.

    Raises:
        ValueError: if num_steps is not in 1 … num_train_timesteps.
    """
    if not 1 <= num_steps <= num_train_timesteps:
        raise ValueError(
            f"num_steps is {num_steps}, but the model's schedule has {num_train_timesteps} timesteps: "
            f"use 1 to {num_train_timesteps} (few-step models: 1 to 8)"
        )
    ratio = num_train_timesteps / num_steps
    ends = torch.arange(num_train_timesteps, 0, -ratio, dtype=torch.float64)[:num_steps]
    return ends.round().long() - 1


def trailing_schedule(alphas_cumprod: Tensor, num_steps: int) -> Schedule:
    """The published schedule: trailing timesteps, ᾱ_prev at timestep max(t − num_train_timesteps // T, 0).

    ᾱ_prev of the last step is that of timestep 0, not a "final alpha" of 1: with η > 0 the step keeps a small variance
    and so a finite log-probability.

    Args:
        alphas_cumprod: ᾱ of every training timestep, [num_train_timesteps].
        num_steps: T.

    Raises:
        ValueError: if num_steps is not in 1 … num_train_timesteps.
    """
    count, table = len(alphas_cumprod), alphas_cumprod.double().cpu()
    timesteps = trailing_timesteps(num_steps, count)
    return Schedule(timesteps, table[timesteps], table[(timesteps - count // num_steps).clamp(min=0)])


class ScheduledDDIM(Denoiser):
    """σ² = η² (1−ᾱ_prev)/(1−ᾱ_t) (1 − ᾱ_t/ᾱ_prev), μ = √ᾱ_prev x̂ + √(1−ᾱ_prev−σ²) ε̂.

    Args:
        schedule: the noise levels. Where ᾱ_prev is ᾱ_t, or 1, the step is deterministic.
        prediction: the quantity that the network predicts.
        eta: η, in 0 … 1; 0 makes every step deterministic.
        device: the device of the coefficients.
        clip: the largest |x̂|, to which x̂ is clamped; None does not clamp.

    Raises:
        ValueError: if eta is not in 0 … 1, or the network predicts noise at a step without signal.
    """

    def __init__(
        self,
        schedule: Schedule,
        prediction: Prediction = "epsilon",
        eta: float = 1.0,
        device: torch.device | str = "cpu",
        clip: float | None = None,
    ) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in 0 … 1 (0 is deterministic, 1 is the ancestral variance), got {eta}")
        alpha, alpha_previous = schedule.alpha, schedule.alpha_previous
        check_prediction(prediction, alpha)
        self.prediction = prediction
        self.eta = eta
        self.clip = clip
        self.initial_scale = schedule.initial_scale
        # A schedule of all training steps ends with t = prev = 0, whose variance is 0.
        variance = (1 - alpha_previous) / (1 - alpha) * (1 - alpha / alpha_previous)
        std = eta * variance.clamp(min=0).sqrt()
        direction = (1 - alpha_previous - std.square()).clamp(min=0).sqrt()
        self.timesteps = schedule.timesteps.to(device)
        self.stochastic = (std > 0).to(device)
        # One row per step: √ᾱ_t, √(1−ᾱ_t), √ᾱ_prev, √(1−ᾱ_prev−σ²), σ.
        rows = torch.stack([alpha.sqrt(), (1 - alpha).sqrt(), alpha_previous.sqrt(), direction, std], dim=1)
        self._coefficients = rows.float().to(device)
        self.std = self._coefficients[:, -1]
        self.levels = self._coefficients[:, :2]

    def transition(self, latents: Tensor, output: Tensor, step_index: Tensor) -> Transition:
        """Compute the transition at each sample's own step, in float32; see `Denoiser.transition`."""
        column = (-1, *([1] * (latents.ndim - 1)))
        a, s, a_previous, direction, std = self._coefficients[step_index].unbind(1)
        a, s, a_previous, direction = (c.reshape(column) for c in (a, s, a_previous, direction))
        x0, noise = clean_and_noise(self.prediction, full(latents), full(output), a, s)
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
        return Transition(mean=a_previous * x0 + direction * noise, std=std, x0=x0)


class DDIM(ScheduledDDIM):
    """`ScheduledDDIM` on the published schedule, `trailing_schedule`.

    Args:
        alphas_cumprod: ᾱ of every training timestep, [num_train_timesteps].
        num_steps: T.
        prediction: the quantity that the network predicts.
        eta: η, in 0 … 1; 0 makes every step deterministic.
        device: the device of the coefficients.

    Raises:
        ValueError: if num_steps is not in 1 … num_train_timesteps, or eta is not in 0 … 1.
    """

    def __init__(
        self,
        alphas_cumprod: Tensor,
        num_steps: int,
        prediction: Prediction = "epsilon",
        eta: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(trailing_schedule(alphas_cumprod, num_steps), prediction, eta, device)
