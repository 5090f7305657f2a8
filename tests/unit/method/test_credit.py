"""Returns and temporal weights against numbers by hand."""

from __future__ import annotations

import torch

from sdpo.method.credit import discounted_returns, future_returns, temporal_weights


def test_returns_of_three_steps_by_hand() -> None:
    returns = discounted_returns(torch.tensor([1.0, 2.0, 4.0]), 0.5)
    assert returns.tolist() == [1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4, 4]


def test_temporal_weights_by_hand() -> None:
    torch.testing.assert_close(temporal_weights(torch.arange(3), 0.9), torch.tensor([1.0, 0.9, 0.81]))


def test_future_returns_leave_out_the_steps_own_reward() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    torch.testing.assert_close(future_returns(rewards, 0.5), discounted_returns(rewards, 0.5) - rewards)
