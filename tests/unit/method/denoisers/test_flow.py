"""The flow denoisers against closed forms: hand-computed steps, exact marginals, the first and the last step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sdpo.method import gaussian
from sdpo.method.denoisers import Denoiser, RectifiedFlow, Transition, TrigFlow
from sdpo.method.denoisers.flow import Form

SIGMAS = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0])  # four steps of a schedule shifted by 3
ANGLES = torch.tensor([1.5708, 1.3, 0.6, 0.0])
FORMS: tuple[Form, ...] = ("preserving", "flow_sde")


def rectified(eta: float, form: Form = "preserving", sigmas: Tensor = SIGMAS) -> RectifiedFlow:
    return RectifiedFlow(sigmas, 1000 * sigmas[:-1], eta, form)


def every_step(denoiser: Denoiser, x: Tensor, output: Tensor) -> Transition:
    """The transitions of one latent at all steps."""
    steps = torch.arange(denoiser.num_steps)
    return denoiser.transition(x.expand(len(steps), *x.shape), output.expand(len(steps), *x.shape), steps)


@pytest.fixture
def latent() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 3, generator=generator), torch.randn(2, 3, 3, generator=generator)


@pytest.mark.parametrize("form", FORMS)
def test_without_noise_a_step_is_eulers(form: Form, latent: tuple[Tensor, Tensor]) -> None:
    x, v = latent
    denoiser = rectified(0.0, form)
    step = every_step(denoiser, x, v)
    for i in range(4):
        assert torch.equal(step.mean[i], x + (SIGMAS[i + 1] - SIGMAS[i]) * v)
        torch.testing.assert_close(step.x0[i], x - SIGMAS[i] * v)
    assert not step.std.any() and not denoiser.stochastic.any()


def test_preserving_by_hand(latent: tuple[Tensor, Tensor]) -> None:
    x, v = latent
    step = every_step(rectified(0.6), x, v)
    clean, noise = x - 0.9 * v, x + 0.1 * v  # at σ = 0.9
    torch.testing.assert_close(step.mean[1], 0.25 * clean + 0.8 * 0.75 * noise)
    torch.testing.assert_close(step.std, 0.6 * SIGMAS[1:])


def test_flow_sde_is_the_published_step(latent: tuple[Tensor, Tensor]) -> None:
    """Equation 9 of arXiv 2505.05470, with dt = σ' − σ below 0."""
    x, v = latent
    step = every_step(rectified(0.7, "flow_sde"), x, v)
    for i in (1, 2):
        t, dt = SIGMAS[i].item(), (SIGMAS[i + 1] - SIGMAS[i]).item()
        s = 0.7 * math.sqrt(t / (1 - t))
        torch.testing.assert_close(step.mean[i], x + (v + s**2 / (2 * t) * (x + (1 - t) * v)) * dt)
        assert step.std[i].item() == pytest.approx(s * math.sqrt(-dt))


def test_flow_sde_where_euler_maruyama_overshoots_is_the_exact_solution() -> None:
    """One long step at η = 1 from σ = 0.95 to 0.5, against many short Euler–Maruyama steps with x̂ held at 0."""
    denoiser = rectified(1.0, "flow_sde", torch.tensor([0.95, 0.5, 0.0]))
    step = every_step(denoiser, torch.ones(1, 1, 1), torch.full((1, 1, 1), 1 / 0.95))  # x̂ = 0
    grid = torch.linspace(0.95, 0.5, 20001, dtype=torch.float64)
    mean, variance = 1.0, 0.0
    for t, following in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        drift = 1 + (1 + 1 / (2 * (1 - t))) / t * (following - t)
        mean, variance = mean * drift, variance * drift**2 + t / (1 - t) * (t - following)
    assert step.mean[0].item() == pytest.approx(mean, rel=1e-3)
    assert step.std[0].item() == pytest.approx(math.sqrt(variance), rel=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_first_and_last_step_are_exact(form: Form, latent: tuple[Tensor, Tensor]) -> None:
    x, v = latent
    denoiser = rectified(0.7, form)
    step = every_step(denoiser, x, v)
    assert denoiser.stochastic.tolist() == [True, True, True, False]
    assert step.std[-1] == 0
    torch.testing.assert_close(step.mean[-1], step.x0[-1])
    # From pure noise: the limit of σ → 1, finite, with all of the noise that belongs at the next level.
    close = every_step(rectified(0.7, form, torch.tensor([1 - 1e-12, *SIGMAS[1:]], dtype=torch.float64)), x, v)
    torch.testing.assert_close(step.mean[0], close.mean[0], atol=1e-2, rtol=0)
    assert step.std[0].item() == pytest.approx(close.std[0].item(), abs=1e-3)
    if form == "flow_sde":
        assert step.std[0].item() == pytest.approx(0.9)
        torch.testing.assert_close(step.mean[0], 0.1 * (x - v), atol=1e-6, rtol=0)
    log_prob = gaussian.log_prob(step.mean + 1, step.mean, step.std)
    assert log_prob[denoiser.stochastic].isfinite().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_the_single_step_is_deterministic(form: Form, eta: float) -> None:
    assert rectified(eta, form, torch.tensor([1.0, 0.0])).stochastic.tolist() == [False]


def noise_left(denoiser: RectifiedFlow, sigma: float, step: int) -> float:
    """The noise level that a state of exactly the noise σ has after the step, x̂ known."""
    one = torch.ones(1, 1, 1, 1)
    transition = denoiser.transition(one * sigma, one, torch.tensor([step]))  # x̂ = 0 and ε = 1
    return math.hypot(transition.mean.item(), transition.std.item())


def test_preserving_keeps_the_level_of_noise_and_few_steps_of_flow_grpo_do_not() -> None:
    for i in range(4):
        assert noise_left(rectified(0.7), SIGMAS[i].item(), i) == pytest.approx(SIGMAS[i + 1].item(), abs=1e-6)
    assert noise_left(rectified(0.7, "flow_sde"), 0.9, 1) == pytest.approx(0.90, abs=0.005)  # 0.75 belongs there


@pytest.mark.parametrize("form", FORMS)
def test_marginals_at_few_and_many_steps(form: Form) -> None:
    """Data N(0, 0.5²) has the velocity v = x (σ − 0.25 (1−σ)) / (σ² + 0.25 (1−σ)²): the variance, step by step."""

    def error(steps: int) -> float:
        sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        denoiser, variance = rectified(0.7, form, sigmas), 1.0
        for i, s in enumerate(sigmas[:-1].tolist()):
            velocity = (s - 0.25 * (1 - s)) / (s**2 + 0.25 * (1 - s) ** 2)
            step = denoiser.transition(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), velocity), torch.tensor([i]))
            variance = variance * step.mean.item() ** 2 + step.std.item() ** 2
        return abs(math.sqrt(variance) - 0.5)

    # Long steps fall short in any form, where x̂ is the mean. Many short ones of `preserving` still do: each renews a
    # fixed share of the noise, however short it is.
    assert error(2) == pytest.approx(0.3)
    assert error(400) < 1e-3 if form == "flow_sde" else 0.03 < error(400) < 0.05


def test_trigflow_by_hand(latent: tuple[Tensor, Tensor]) -> None:
    x, output = latent
    denoiser = TrigFlow(ANGLES, 0.6)
    step = every_step(denoiser, x, output)
    t, following = 1.3, 0.6
    clean = math.cos(t) * x - math.sin(t) * output
    noise = math.sin(t) * x + math.cos(t) * output
    torch.testing.assert_close(step.x0[1], clean)
    torch.testing.assert_close(step.mean[1], math.cos(following) * clean + 0.8 * math.sin(following) * noise)
    assert step.std[1].item() == pytest.approx(0.6 * math.sin(following))
    assert denoiser.stochastic.tolist() == [True, True, False]
    torch.testing.assert_close(step.mean[-1], step.x0[-1])
    assert torch.equal(denoiser.timesteps, ANGLES[:-1])


def test_trigflow_at_eta_1_jumps_and_at_eta_0_turns(latent: tuple[Tensor, Tensor]) -> None:
    clean, noise = latent
    x, output = math.cos(1.3) * clean + math.sin(1.3) * noise, math.cos(1.3) * noise - math.sin(1.3) * clean
    jump = TrigFlow(ANGLES, 1.0).transition(x[None], output[None], torch.tensor([1]))
    torch.testing.assert_close(jump.mean[0], math.cos(0.6) * clean)
    turn = TrigFlow(ANGLES, 0.0).transition(x[None], output[None], torch.tensor([1]))
    torch.testing.assert_close(turn.mean[0], math.cos(0.6) * clean + math.sin(0.6) * noise)
    assert not TrigFlow(ANGLES, 0.0).stochastic.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rectified(1.1), "eta must be"),
        (lambda: TrigFlow(ANGLES, -0.1), "eta must be"),
        (lambda: rectified(1.0, "other"), "form must be"),  # type: ignore[arg-type]
        (lambda: rectified(1.0, sigmas=torch.tensor([0.5, 0.6, 0.0])), "sigmas must decrease"),
        (lambda: rectified(1.0, sigmas=torch.tensor([1.0, 0.5])), "sigmas must decrease"),
        (lambda: rectified(1.0, sigmas=torch.tensor([math.nan, 0.0])), "sigmas must decrease"),
        (lambda: TrigFlow(torch.tensor([1.5, 1.6, 0.0])), "angles must decrease"),
    ],
)
def test_impossible_schedules_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
