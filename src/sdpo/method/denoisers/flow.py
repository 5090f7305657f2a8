"""Flows on a straight line (rectified flow) and on a circle (TrigFlow), with noise of a chosen level in every step."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from sdpo.method.denoisers.base import Denoiser, Transition
from sdpo.method.gaussian import full

Form = Literal["preserving", "flow_grpo", "flow_sde"]


class _Interpolation(Denoiser):
    """States x_i = α_i x̂ + σ_i ε and steps x_{i+1} ~ N(α_{i+1} x̂ + κ_i ε̂, s_i²), linear in x_i and the output."""

    def __init__(self, timesteps: Tensor, rows: list[Tensor], levels: list[Tensor], device: torch.device | str) -> None:
        self.timesteps = timesteps.float().to(device)
        self.stochastic = (rows[-1] > 0).to(device)
        # One row per step: x̂ = p x + q out, mean = a x + b out, and std; columns p, q, a, b, std.
        self._coefficients = torch.stack(rows, dim=1).float().to(device)
        self.std = self._coefficients[:, -1]
        self.levels = torch.stack(levels, dim=1).float().to(device)

    def transition(self, latents: Tensor, output: Tensor, step_index: Tensor) -> Transition:
        """Compute the transition at each sample's own step, in float32; see `Denoiser.transition`."""
        x, out = full(latents), full(output)
        column = (-1, *([1] * (x.ndim - 1)))
        *linear, std = self._coefficients[step_index].unbind(1)
        p, q, a, b = (c.reshape(column) for c in linear)
        return Transition(mean=a * x + b * out, std=std, x0=p * x + q * out)


class RectifiedFlow(_Interpolation):
    """Steps of x_σ = (1−σ) x̂ + σ ε (Liu et al. 2023, arXiv 2209.03003) from the velocity v = ε − x̂.

    x̂ = x − σ v and ε̂ = x + (1−σ) v; with σ' the next σ and Δ = σ − σ', every step is N((1−σ') x̂ + κ ε̂, s²). η = 0 is
    κ = σ' and s = 0, Euler's step x − Δ v. Three forms have noise:

    `preserving` (the default): s = η σ' and κ = √(σ'² − s²). Whatever the step's length, x_{i+1} then holds noise of
    exactly the level σ' that the network is given. η = 1 is the jump to x̂ with fresh noise. The idea is that of
    Wang & Yu 2025, arXiv 2509.05952, who write the share of the noise as sin(π/2 η).

    `flow_grpo` (Liu et al. 2025, arXiv 2505.05470, as their code has it): dx = [v − ½ s(σ)² ∇log p(x)] dσ + s(σ) dw
    has the marginals of the flow for any s(σ). With the score ∇log p = −ε̂/σ and s(σ) = η √(σ/(1−σ)), one
    Euler–Maruyama step has κ = σ' − Δ s(σ)²/(2σ) and variance Δ s(σ)². At σ = 1, where s is infinite, 1 − σ is replaced
    by 1 − σ_1 with the schedule's second σ. The step to σ' = 0 has noise too; the image is decoded from its x̂. Their
    training leaves that step out, as `train.first_steps` of T − 1 does.

    `flow_sde`: the same equation, but where Euler–Maruyama overshoots (κ < 0 without the replacement, which is always
    so at σ = 1 and at σ' = 0) it is solved exactly for fixed x̂: d(σε) = (1/σ + η²/(2σ(1−σ))) (σε) dσ + s(σ) dw gives
    κ = ρ σ' and s = σ' √(1 − ρ²), where ρ = [σ'(1−σ) / (σ(1−σ'))]^{η²/2} is 0 at σ = 1.

    In `preserving` and `flow_sde` the step to σ' = 0 returns x̂ itself, without noise or density.
    With few, long steps, Euler–Maruyama adds more noise than it removes: four steps of a schedule shifted by 3 at
    η = 0.7 leave a noise of 0.90 where the network is given 0.75. `preserving` is therefore the default. It is meant
    for few steps: at hundreds of steps, where x̂ is a mean and not a sample, renewing a fixed share of the noise in each
    step loses variance, and the other two converge.

    Args:
        sigmas: σ at the start of every step, and the final 0, float [T+1], decreasing from at most 1.
        timesteps: the timestep that the network is given at each step, [T].
        eta: η, the level of the noise, in 0 … 1.
        form: the form of the noise.
        device: the device of the coefficients.

    Raises:
        ValueError: if sigmas do not decrease from at most 1 to 0, eta is not in 0 … 1, or the form is unknown.
    """

    def __init__(
        self,
        sigmas: Tensor,
        timesteps: Tensor,
        eta: float = 1.0,
        form: Form = "preserving",
        device: torch.device | str = "cpu",
    ) -> None:
        _check_eta(eta)
        sigmas = sigmas.double().cpu()
        if len(sigmas) < 2 or sigmas[0] > 1 or sigmas[-1] != 0 or not (sigmas.diff() < 0).all():
            raise ValueError(f"sigmas must decrease from at most 1 to 0, got {sigmas.tolist()}")
        sigma, following = sigmas[:-1], sigmas[1:]
        if form == "preserving":
            kept, std = following * (1 - eta**2) ** 0.5, following * eta
        elif form == "flow_grpo":
            kept, std = _flow_grpo(sigma, following, eta)
            self.step_length = (sigma - following).float().to(device)
        elif form == "flow_sde":
            kept, std = _flow_sde(sigma, following, eta)
        else:
            raise ValueError(f"form must be one of {', '.join(get_args(Form))}, got {form!r}")
        mean_of_x = 1 - following + kept
        mean_of_output = kept * (1 - sigma) - sigma * (1 - following)
        rows = [torch.ones_like(sigma), -sigma, mean_of_x, mean_of_output, std]
        super().__init__(timesteps, rows, [1 - sigma, sigma], device)


class TrigFlow(_Interpolation):
    """Steps of x_t = cos t x̂ + sin t ε (Lu & Song 2024, arXiv 2410.11081) from the output F = cos t ε − sin t x̂.

    x̂ = cos t x − sin t F and ε̂ = sin t x + cos t F; with t' the next t, each step is
    N(cos t' x̂ + √(1−η²) sin t' ε̂, (η sin t')²). η = 1 is the jump to x̂ with fresh noise, which is these models' own
    sampler; the step to t' = 0 returns x̂ itself, without noise or density.

    Latents, noise and F are in units of the data's standard deviation, so that the first latents are N(0, I).

    Args:
        angles: t at the start of every step, and the final 0, in radians, float [T+1], decreasing.
        eta: η, the share of the noise that is fresh, in 0 … 1.
        device: the device of the coefficients.

    Raises:
        ValueError: if the angles do not decrease to 0, or eta is not in 0 … 1.
    """

    def __init__(self, angles: Tensor, eta: float = 1.0, device: torch.device | str = "cpu") -> None:
        _check_eta(eta)
        exact = angles.double().cpu()
        if len(exact) < 2 or exact[-1] != 0 or not (exact.diff() < 0).all():
            raise ValueError(f"angles must decrease to 0, got {exact.tolist()}")
        cos, sin = exact[:-1].cos(), exact[:-1].sin()
        clean, std = exact[1:].cos(), eta * exact[1:].sin()
        kept = (1 - eta**2) ** 0.5 * exact[1:].sin()
        rows = [cos, -sin, clean * cos + kept * sin, kept * cos - clean * sin, std]
        super().__init__(angles[:-1], rows, [cos, sin], device)


def _check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in 0 … 1 (0 is deterministic), got {eta}")


def _flow_grpo(sigma: Tensor, following: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """κ and s of each step, both [T], as the code of Flow-GRPO has them."""
    step = sigma - following
    remaining = 1 - torch.where(sigma == 1, following[0], sigma)
    squared = eta**2 * sigma / remaining  # s(σ)²
    return following - step * squared / (2 * sigma), (squared * step).sqrt()


def _flow_sde(sigma: Tensor, following: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """κ and s of each step, both [T]: Euler–Maruyama, or the exact solution where Euler–Maruyama overshoots."""
    step = sigma - following
    kept = following - step * eta**2 / (2 * (1 - sigma))  # at σ = 1: −∞, and NaN without noise
    std = eta * (step * sigma / (1 - sigma)).sqrt()
    rho = (following * (1 - sigma) / (sigma * (1 - following))) ** (eta**2 / 2)
    overshoots = ~(kept >= 0)
    return (
        torch.where(overshoots, rho * following, kept),
        torch.where(overshoots, following * (1 - rho.square()).sqrt(), std),
    )
