"""Multistep consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1; in latents: arXiv 2310.04378)."""

from __future__ import annotations

import torch
from torch import Tensor

from sdpo.method.denoisers.base import Denoiser, Prediction, Transition, check_prediction, clean_and_noise
from sdpo.method.gaussian import full


class Consistency(Denoiser):
    """Jump to x̂ = c_skip x + c_out f(x), re-noise it to the next timestep: μ = √ᾱ_next x̂, σ² = 1 − ᾱ_next.

    c_skip = σ_d² / (s² + σ_d²) and c_out = s / √(s² + σ_d²), with s the scaled timestep, make x̂ = x where there is no
    noise. The last step returns x̂ itself, so that it is deterministic and has no density.

    Args:
        alphas_cumprod: ᾱ of every training timestep, [num_train_timesteps].
        timesteps: the timesteps that the network is given, in sampling order, int64 [T].
        prediction: the quantity that the network predicts.
        device: the device of the coefficients.
        timestep_scaling: s / t.
        sigma_data: σ_d.
        clip: the largest absolute value of the network's prediction of x̂, which is clamped to that; None does not
            clamp.

    Raises:
        ValueError: if the network predicts noise at a step without signal.
    """

    def __init__(
        self,
        alphas_cumprod: Tensor,
        timesteps: Tensor,
        prediction: Prediction = "epsilon",
        device: torch.device | str = "cpu",
        timestep_scaling: float = 10.0,
        sigma_data: float = 0.5,
        clip: float | None = None,
    ) -> None:
        alpha = alphas_cumprod.double().cpu()[timesteps.cpu()]
        check_prediction(prediction, alpha)
        following = torch.cat([alpha[1:], alpha.new_ones(1)])
        scaled = timestep_scaling * timesteps.cpu().double()
        skip = sigma_data**2 / (scaled.square() + sigma_data**2)
        out = scaled / (scaled.square() + sigma_data**2).sqrt()
        self.prediction = prediction
        self.clip = clip
        self.timesteps = timesteps.to(device)
        self.stochastic = (following < 1).to(device)
        # One row per step: √ᾱ_t, √(1−ᾱ_t), c_skip, c_out, √ᾱ_next, √(1−ᾱ_next).
        rows = [alpha.sqrt(), (1 - alpha).sqrt(), skip, out, following.sqrt(), (1 - following).sqrt()]
        self._coefficients = torch.stack(rows, dim=1).float().to(device)
        self.std = self._coefficients[:, -1]
        self.levels = self._coefficients[:, :2]

    def transition(self, latents: Tensor, output: Tensor, step_index: Tensor) -> Transition:
        """Compute the transition at each sample's own step, in float32; see `Denoiser.transition`."""
        column = (-1, *([1] * (latents.ndim - 1)))
        a, s, skip, out, a_next, std = self._coefficients[step_index].unbind(1)
        a, s, skip, out, a_next = (c.reshape(column) for c in (a, s, skip, out, a_next))
        x = full(latents)
        predicted, _ = clean_and_noise(self.prediction, x, full(output), a, s)
        if self.clip is not None:
            predicted = predicted.clamp(-self.clip, self.clip)
        x0 = out * predicted + skip * x
        return Transition(mean=a_next * x0, std=std, x0=x0)
