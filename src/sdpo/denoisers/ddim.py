"""Stochastic DDIM (Song et al. 2021, arXiv 2010.02502, equations 12 and 16) on a trailing schedule."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sdpo.denoisers.base import Denoiser, Transition

Prediction = Literal["epsilon", "v_prediction", "sample"]


def trailing_timesteps(num_steps: int, num_train_timesteps: int = 1000) -> Tensor:
    """The "trailing" schedule (Lin et al. 2024, arXiv 2305.08891, table 2): its first timestep is always the noisiest.

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


class DDIM(Denoiser):
    """σ² = η² (1−ᾱ_prev)/(1−ᾱ_t) (1 − ᾱ_t/ᾱ_prev), μ = √ᾱ_prev x̂ + √(1−ᾱ_prev−σ²) ε̂.

    ᾱ_prev of the last step is taken at timestep 0, not at a "final alpha" of 1: with η > 0 that step keeps a small
    variance and so a finite log-probability.

    Args:
        alphas_cumprod: ᾱ of every training timestep, [num_train_timesteps].
        num_steps: T.
        prediction: what the network predicts.
        eta: η; 0 makes every step deterministic.
        device: where the coefficients live.

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
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"prediction must be epsilon, v_prediction or sample, got {prediction!r}")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in 0 … 1 (0 is deterministic, 1 is the ancestral variance), got {eta}")
        self.prediction = prediction
        self.eta = eta
        count = len(alphas_cumprod)
        timesteps = trailing_timesteps(num_steps, count)
        previous = (timesteps - count // num_steps).clamp(min=0)
        alpha = alphas_cumprod.double().cpu()[timesteps]
        alpha_previous = alphas_cumprod.double().cpu()[previous]
        # At timestep 0 a schedule of all training steps has t = prev; the step is then deterministic.
        variance = (1 - alpha_previous) / (1 - alpha) * (1 - alpha / alpha_previous)
        std = eta * variance.clamp(min=0).sqrt()
        direction = (1 - alpha_previous - std.square()).clamp(min=0).sqrt()
        self.timesteps = timesteps.to(device)
        self.stochastic = (std > 0).to(device)
        # One table, one row a step: √ᾱ_t, √(1−ᾱ_t), √ᾱ_prev, √(1−ᾱ_prev−σ²), σ.
        rows = torch.stack([alpha.sqrt(), (1 - alpha).sqrt(), alpha_previous.sqrt(), direction, std], dim=1)
        self._coefficients = rows.float().to(device)

    def transition(self, latents: Tensor, output: Tensor, step_index: Tensor) -> Transition:
        """See `Denoiser.transition`; computed in float32."""
        x, out = latents.float(), output.float()
        column = (-1, *([1] * (x.ndim - 1)))
        a, s, a_previous, direction, std = self._coefficients[step_index].unbind(1)
        a, s, a_previous, direction = (c.reshape(column) for c in (a, s, a_previous, direction))
        if self.prediction == "epsilon":
            x0, noise = (x - s * out) / a, out
        elif self.prediction == "v_prediction":
            x0, noise = a * x - s * out, a * out + s * x
        else:
            x0, noise = out, (x - a * out) / s
        return Transition(mean=a_previous * x0 + direction * noise, std=std, x0=x0)
