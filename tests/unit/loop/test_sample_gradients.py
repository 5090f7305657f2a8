"""Gradients of single samples from one backward pass agree with those of one pass each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sdpo.loop.sample_gradients import LayerCalls


class Layers(nn.Module):
    """A strided convolution, a 1 × 1 convolution and a linear layer that is used twice, on tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.strided = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.point = nn.Conv2d(4, 5, 1, bias=False)
        self.tokens = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.point(self.strided(x).tanh()).flatten(2).mT
        return self.tokens(self.tokens(hidden).tanh()).square().mean((1, 2))


def single(network: nn.Module, values: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    rows = [torch.autograd.grad(values(x[i : i + 1]).sum(), list(network.parameters())) for i in range(len(x))]
    return [torch.stack(parts) for parts in zip(*rows, strict=True)]


@pytest.mark.parametrize("scale", [1.0, 256.0])
def test_all_layers_and_repeated_calls(scale: float) -> None:
    network, x = Layers(), torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    calls = LayerCalls(network, list(network.parameters()))
    assert calls.possible
    for _ in range(2):  # earlier calls are forgotten
        with calls.recorded():
            found = calls.gradients(network(x), scale)
    assert found is not None
    for one, other in zip(found, single(network, network, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert not network.tokens._forward_hooks


def test_samples_that_the_network_sees_twice_as_in_guidance() -> None:
    network, x = Layers(), torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def guided(x: Tensor) -> Tensor:
        without, with_prompt = network(torch.cat([0.5 * x, x])).chunk(2)
        return without + 3 * (with_prompt - without)

    calls = LayerCalls(network, list(network.parameters()))
    with calls.recorded():
        found = calls.gradients(guided(x))
    assert found is not None
    for one, other in zip(found, single(network, guided, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_layer_that_is_not_used_has_gradient_0() -> None:
    network = Layers()
    calls = LayerCalls(network, list(network.parameters()))
    with calls.recorded():
        found = calls.gradients(network.strided(torch.ones(2, 3, 4, 4)).flatten(1).sum(1))
    assert found is not None
    assert found[0].any() and not found[2].any() and found[2].shape == (2, 5, 4, 1, 1)


def test_other_layers_and_rows_that_are_no_samples_are_told() -> None:
    norm = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    assert not LayerCalls(norm, list(norm.parameters())).possible
    assert LayerCalls(norm, list(norm[0].parameters())).possible
    depthwise = nn.Conv2d(4, 4, 3, groups=4)
    assert not LayerCalls(depthwise, list(depthwise.parameters())).possible
    calls = LayerCalls(norm, list(norm[0].parameters()))
    with calls.recorded():
        values = norm(torch.ones(5, 4)).sum() * torch.ones(2)  # five rows, two values
        assert calls.gradients(values) is None
