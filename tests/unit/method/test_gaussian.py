"""Gaussian densities and divergences against torch.distributions."""

from __future__ import annotations

import torch

from sdpo.method.gaussian import kl_divergence, log_prob


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
