"""Dense rewards: bounds that hold for any latents, and the choice of the anchor step."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo.method.dense_rewards import anchor_steps, interpolate, query_steps, similarities


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
    dense = interpolate(similarities(x0, queries), queries, rewards)
    assert dense.isfinite().all()
    assert (dense >= rewards.amin(-1, keepdim=True)).all() and (dense <= rewards.amax(-1, keepdim=True)).all()
    torch.testing.assert_close(dense.gather(-1, queries), rewards)


def test_the_anchor_is_the_step_least_like_either_end() -> None:
    x0 = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [1, 0]]).reshape(4, 2, 1, 1)
    assert anchor_steps(x0) == 2
