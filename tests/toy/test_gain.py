"""What the credit rule `gain` and its fitted baseline do to the mean and the variance of the policy gradient."""

from __future__ import annotations

import functools

import pytest
import torch
from helpers.plane_model import Plane, sample_parts
from torch import Tensor, nn

from sdpo.loop.policy import Policy
from sdpo.method import gaussian
from sdpo.method.credit import FutureCredit, GainCredit

STEPS, GROUPS, SMALL = 4, 9000, 3


@functools.cache
def sampled() -> tuple[Tensor, Tensor]:
    """Images x̂ [B, 2, T, 2] and scores ∇ℓ_i [B, 2, T−1, 2] of many groups of the base model."""
    policy = Policy(Plane())
    denoiser = policy.backbone.denoiser(STEPS, 1.0)
    (trajectories,) = sample_parts(policy, STEPS, ["x"] * GROUPS, micro_batch=GROUPS)
    assert trajectories.x0 is not None
    conditioning, scores = policy.backbone.encode(["x"] * 2 * GROUPS), []
    for step in range(STEPS - 1):
        # A weight of its own for each trajectory: one gradient by all of them is each one's gradient.
        shift = policy.backbone.network_module.shift = nn.Parameter(torch.zeros(2 * GROUPS, 2, 1, 1))
        state, following = (trajectories.states[:, :, i].flatten(0, 1) for i in (step, step + 1))
        transition = policy.transition(denoiser, state, torch.full((2 * GROUPS,), step), conditioning)
        log_prob = gaussian.log_prob(following, transition.mean, transition.std)
        (score,) = torch.autograd.grad(log_prob.sum(), shift)
        scores.append(score.reshape(GROUPS, 2, 2))
    return trajectories.x0.flatten(3), torch.stack(scores, dim=2)


def unclear(images: Tensor) -> Tensor:
    """A reward that is a short wave: the later steps change x̂ by more, so that R̂_i says little about the last one."""
    return (3 * images).sin().sum(-1)


def final_alone(dense: Tensor) -> Tensor:
    """The final reward as the gain of every step."""
    return FutureCredit()(torch.cat([torch.zeros_like(dense[..., :-1]), dense[..., -1:]], dim=-1), 1.0)


def fitted_to_few(dense: Tensor) -> Tensor:
    """Gains over a baseline that is fitted in epochs of three groups each, where a fit to oneself would show."""
    return torch.cat([GainCredit(baseline="fitted")(epoch, 1.0) for epoch in dense.split(SMALL)])


def fitted_to_oneself(dense: Tensor) -> Tensor:
    """The same with the coefficients of ordinary least squares over all three groups: what must not be done."""
    found = []
    for epoch in dense.double().split(SMALL):
        mean = epoch.mean(1, keepdim=True)
        x, y = epoch - mean, (epoch - mean)[..., -1:]
        slopes = (x * y).sum((0, 1)) / x.square().sum((0, 1)).clamp(min=1e-9)
        found.append((epoch[..., -1:] - mean - slopes * x).float())
    return torch.cat(found)


def standard_errors_from_zero(estimates: Tensor) -> Tensor:
    """The mean of estimates [B, …] over the epochs of three groups, in units of its standard error."""
    epochs = estimates.unflatten(0, (-1, SMALL)).mean(1)
    return epochs.mean(0) / (epochs.std(0) / len(epochs) ** 0.5)


def gradients(advantages: Tensor, scores: Tensor) -> Tensor:
    """The policy gradient's estimate of each group at each step, Σ_k A_i ∇ℓ_i / K: [B, T−1, 2]."""
    return (advantages[..., :-1, None] * scores).mean(1)


def variances(advantages: Tensor, scores: Tensor) -> Tensor:
    """The variance of the gradient at each step, [T−1], where branches are compared: advantages less their mean."""
    return gradients(advantages - advantages.mean(1, keepdim=True), scores).var(0).sum(-1)


def test_a_fitted_baseline_leaves_the_mean_of_the_policy_gradient() -> None:
    images, scores = sampled()
    dense = unclear(images)
    none = gradients(GainCredit()(dense, 1.0), scores)
    assert standard_errors_from_zero(none).abs().max() > 10, "there is a gradient whose mean can be compared"
    fitted = standard_errors_from_zero(gradients(fitted_to_few(dense), scores) - none)
    assert fitted.abs().max() < 3.5, fitted
    biased = standard_errors_from_zero(gradients(fitted_to_oneself(dense), scores) - none)
    assert biased.abs().max() > 5, "the comparison would see the bias of a fit to the group itself"


def test_a_fitted_baseline_has_the_least_variance() -> None:
    images, scores = sampled()
    dense = unclear(images)
    of_final = variances(final_alone(dense), scores)
    of_none = variances(GainCredit()(dense, 1.0), scores)
    of_fitted = variances(GainCredit(baseline="fitted")(dense, 1.0), scores)
    # The branches' first step is the same: nothing can be subtracted that tells them apart.
    torch.testing.assert_close(of_fitted[0], of_final[0], rtol=1e-4, atol=0)
    assert (of_none[1:] > 1.3 * of_final[1:]).all(), "R̂_i as it is does harm under this reward"
    assert (of_fitted[1:] < of_final[1:]).all() and of_fitted[2] < 0.96 * of_final[2]


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 1.0])
def test_the_gain_of_a_readable_reward_has_less_variance_than_the_final_reward(gae_lambda: float) -> None:
    images, scores = sampled()
    dense = images.sum(-1)
    of_gain, of_final = (variances(a, scores) for a in (GainCredit(gae_lambda)(dense, 1.0), final_alone(dense)))
    assert (of_gain[1:] < 0.95 * of_final[1:]).all() and of_gain[2] < 0.6 * of_final[2]
    if gae_lambda < 1:  # the noise of later steps is left out, which the first step's baseline cannot do
        assert of_gain[0] < 0.8 * of_final[0]
