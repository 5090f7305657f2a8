"""Hand-computed cases and properties of the method's equations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo.method.advantages import GroupNormalizer, PairNormalizer, StepwiseNormalizer
from sdpo.method.algorithms import SDPO, sdpo_loss
from sdpo.method.credit import discounted_returns, future_returns, temporal_weights
from sdpo.method.denoisers import DDIM
from sdpo.method.denoisers.ddim import trailing_timesteps
from sdpo.method.dense_rewards import anchor_steps, query_steps, spread_rewards
from sdpo.method.gaussian import kl_divergence, log_prob, sample

ALPHAS = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()).cumprod(0)


def test_returns_of_three_steps_by_hand() -> None:
    returns = discounted_returns(torch.tensor([1.0, 2.0, 4.0]), 0.5)
    assert returns.tolist() == [1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4, 4]


def test_temporal_weights_by_hand() -> None:
    torch.testing.assert_close(temporal_weights(torch.arange(3), 0.9), torch.tensor([1.0, 0.9, 0.81]))


def test_gaussian_log_prob_and_kl_match_torch() -> None:
    torch.manual_seed(0)
    x, mean, other = torch.randn(3, 5, 4, 2, 2).unbind(0)
    std = torch.tensor([0.1, 0.5, 1.0, 2.0, 3.0])
    wide = std.reshape(-1, 1, 1, 1).expand_as(mean)
    p = torch.distributions.Normal(mean, wide)
    torch.testing.assert_close(log_prob(x, mean, std), p.log_prob(x).flatten(1).mean(1))
    torch.testing.assert_close(log_prob(x, mean, std, "sum"), p.log_prob(x).flatten(1).sum(1))
    q = torch.distributions.Normal(other, wide)
    expected = torch.distributions.kl_divergence(p, q).flatten(1).mean(1)
    torch.testing.assert_close(kl_divergence(mean, other, std), expected)


def test_a_deterministic_step_has_no_density_and_no_nan() -> None:
    mean = torch.zeros(2, 1, 2, 2, requires_grad=True)
    value = log_prob(torch.ones(2, 1, 2, 2), mean, torch.tensor([0.0, 1.0]))
    value.sum().backward()
    assert value[0] == 0 and mean.grad is not None and mean.grad.isfinite().all()


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50, 1000])
def test_every_schedule_starts_at_the_noisiest_timestep(steps: int) -> None:
    timesteps = trailing_timesteps(steps)
    assert timesteps[0] == 999 and len(timesteps) == steps and (timesteps.diff() < 0).all()


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_schedules_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="num_steps"):
        trailing_timesteps(steps)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_true_output_gives_back_the_clean_latent(prediction: str) -> None:
    ddim = DDIM(ALPHAS, 4, prediction)  # type: ignore[arg-type]
    x0, noise = torch.randn(2, 4, 4, 8, 8).unbind(0)
    index = torch.arange(4)
    a = ALPHAS[ddim.timesteps].sqrt().float().reshape(-1, 1, 1, 1)
    s = (1 - ALPHAS[ddim.timesteps]).sqrt().float().reshape(-1, 1, 1, 1)
    output = {"epsilon": noise, "v_prediction": a * noise - s * x0, "sample": x0}[prediction]
    torch.testing.assert_close(ddim.transition(a * x0 + s * noise, output, index).x0, x0, rtol=1e-3, atol=1e-4)


def test_samples_of_a_transition_have_the_moments_that_its_log_prob_assumes() -> None:
    ddim = DDIM(ALPHAS, 4)
    x, output = torch.randn(2, 1, 1, 1, 1).unbind(0)
    step = ddim.transition(x.expand(20000, 1, 1, 1), output.expand(20000, 1, 1, 1), torch.full((20000,), 1))
    drawn = sample(step.mean, step.std, torch.randn(20000, 1, 1, 1))
    torch.testing.assert_close(drawn.mean(), step.mean[0, 0, 0, 0], atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.std(), step.std[0], atol=0.03, rtol=0)


def test_the_last_step_keeps_a_small_variance() -> None:
    for steps in (1, 2, 4, 8, 50):
        assert DDIM(ALPHAS, steps).stochastic.all()
    assert not DDIM(ALPHAS, 4, eta=0.0).stochastic.any()


def test_two_prompt_advantages_by_hand() -> None:
    normalizer = StepwiseNormalizer(buffer_size=32, min_count=3)
    young = normalizer.update(["a", "b"], torch.tensor([[[0.0], [2.0]], [[4.0], [6.0]]]))
    # Two entries a prompt: the batch's mean 3 and std √5.
    torch.testing.assert_close(young.flatten(), (torch.tensor([0.0, 2, 4, 6]) - 3) / (math.sqrt(5) + 1e-6))
    grown = normalizer.update(["a"], torch.tensor([[[4.0], [6.0]]]))
    # Four entries of "a": 0, 2, 4, 6.
    torch.testing.assert_close(grown.flatten(), (torch.tensor([4.0, 6]) - 3) / (math.sqrt(5) + 1e-6))


def test_the_normalizer_forgets_beyond_its_buffer_and_resumes_from_its_state() -> None:
    first = StepwiseNormalizer(buffer_size=4, min_count=2)
    first.update(["a"], torch.randn(1, 4, 3) * 100)
    second = StepwiseNormalizer(buffer_size=4, min_count=2)
    second.load_state_dict(first.state_dict())
    new = torch.randn(1, 4, 3)
    expected = (new - new.mean(1, keepdim=True)) / (new.std(1, correction=0, keepdim=True) + 1e-6)
    torch.testing.assert_close(second.update(["a"], new), expected)
    torch.testing.assert_close(first.update(["a"], new), expected)


def test_pair_normalisation_by_hand() -> None:
    advantages = PairNormalizer().update(["a", "b"], torch.tensor([[[0.0], [2.0]], [[10.0], [10.0]]]))
    # Deviations −1, 1, 0, 0; their root mean square √½.
    torch.testing.assert_close(advantages.flatten(), torch.tensor([-1.0, 1, 0, 0]) * math.sqrt(2), rtol=1e-4, atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10**6), st.floats(-1e3, 1e3), st.sampled_from([1.0, -1.0, 0.0, 1e-20]))
def test_dense_rewards_stay_finite_and_within_the_queried_ones(
    steps: int, seed: int, offset: float, sign: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(3, 2, steps, 1, 2, 2, generator=generator)
    x0[:, :, ::2] = x0[:, :, :1] * sign  # opposite, zero and vanishing latents
    queries = query_steps(x0)
    rewards = torch.randn(3, 2, 3, generator=generator) + offset
    # One image has one reward, also where two queries coincide.
    rewards = torch.where(queries == queries[..., :1], rewards[..., :1], rewards)
    rewards[..., 2] = torch.where(queries[..., 2] == queries[..., 1], rewards[..., 1], rewards[..., 2])
    dense = spread_rewards(x0, queries, rewards)
    assert dense.isfinite().all()
    assert (dense >= rewards.amin(-1, keepdim=True)).all() and (dense <= rewards.amax(-1, keepdim=True)).all()
    torch.testing.assert_close(dense.gather(-1, queries), rewards)


def test_the_anchor_is_the_step_least_like_either_end() -> None:
    x0 = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [1, 0]]).reshape(4, 2, 1, 1)
    assert anchor_steps(x0) == 2


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6))
def test_swapping_the_branches_leaves_the_loss_unchanged(seed: int) -> None:
    torch.manual_seed(seed)
    new, old, advantage = torch.randn(3, 5, 2).unbind(0)
    index = torch.arange(5)
    there = sdpo_loss(new, old, advantage, index).loss
    back = sdpo_loss(new.flip(1), old.flip(1), advantage.flip(1), index).loss
    torch.testing.assert_close(there, back)


def test_equal_advantages_on_policy_give_no_loss_and_no_gradient() -> None:
    new = torch.randn(4, 2, requires_grad=True)
    loss = sdpo_loss(new, new.detach(), torch.ones(4, 2), torch.arange(4)).loss
    loss.backward()
    assert loss == 0 and (new.grad == 0).all()


def test_loss_by_hand_with_the_clip_active() -> None:
    new = torch.tensor([[3e-4, 0.0]], requires_grad=True)
    output = sdpo_loss(new, torch.zeros(1, 2), torch.tensor([[9.0, -9.0]]), torch.tensor([2]), temporal_decay=0.5)
    # w = ¼; ΔA = 10 after clipping at 5; Δρ = 3e-4, clipped 1e-4: the clipped error is the larger one.
    torch.testing.assert_close(output.loss, torch.tensor((0.25 * 1e-4 - 10) ** 2))
    assert output.metrics["clip_fraction"] == 1 and output.metrics["advantage_clip_fraction"] == 1
    output.loss.backward()
    assert (new.grad == 0)[0, 0], "no gradient through a clamped log-probability"


def test_more_branches_form_all_pairs() -> None:
    torch.manual_seed(0)
    new, old, advantage = torch.randn(3, 2, 3).unbind(0)
    index = torch.tensor([0, 3])
    pairs = [(0, 1), (0, 2), (1, 2)]
    each = [sdpo_loss(new[:, p], old[:, p], advantage[:, p], index).loss for p in map(list, pairs)]
    torch.testing.assert_close(sdpo_loss(new, old, advantage, index).loss, torch.stack(each).mean())


def test_masked_steps_do_not_count() -> None:
    new = torch.randn(2, 2, requires_grad=True)
    sdpo_loss(
        new, torch.zeros(2, 2), torch.randn(2, 2), torch.tensor([0, 1]), mask=torch.tensor([1.0, 0.0])
    ).loss.backward()
    assert new.grad is not None and (new.grad[1] == 0).all() and (new.grad[0] != 0).all()


def test_sdpo_refuses_one_branch() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        SDPO(branches=1)


def test_future_returns_leave_out_the_steps_own_reward() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    torch.testing.assert_close(future_returns(rewards, 0.5), discounted_returns(rewards, 0.5) - rewards)


def test_pooled_statistics_of_a_prompt_mix_its_steps() -> None:
    returns = torch.tensor([[[4.0, 0.0], [2.0, 2.0]]]).repeat(8, 1, 1)  # mean 2, std √2 over both steps
    normalizer = StepwiseNormalizer(buffer_size=32, min_count=16, per_step=False)
    found = normalizer.update(["cat"] * 8, returns)
    assert torch.allclose(found[0], torch.tensor([[2.0, -2.0], [0.0, 0.0]]) / 2**0.5, atol=1e-5)


def test_group_normalisation_stays_within_the_group() -> None:
    returns = torch.tensor([[[1.0], [3.0]], [[100.0], [100.0]]])
    found = GroupNormalizer().update(["cat", "cat"], returns)
    assert torch.allclose(found, torch.tensor([[[-1.0], [1.0]], [[0.0], [0.0]]]), atol=1e-5)
