"""A merged LoRA: each weight rounded once, and the distance that rounding makes measured as it is defined."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from sdpo.backbones.merging import merge_rounded

SCALE = 6 / 2  # α / r


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv, self.other = nn.Linear(16, 8), nn.Conv2d(4, 6, 3), nn.Linear(8, 8)


def network(dtype: torch.dtype, size: float) -> tuple[Network, dict[str, Tensor]]:
    """A network with a LoRA on two of its layers, and the LoRA's matrices, float32."""
    torch.manual_seed(0)
    made = Network().to(dtype)
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=6, target_modules=["linear", "conv"]), made)
    shapes = {n.replace(".default", ""): p.shape for n, p in made.named_parameters() if "lora_" in n}
    return made, {name: size * torch.randn(shape) for name, shape in shapes.items()}


def change(weights: dict[str, Tensor], layer: str) -> Tensor:
    up, down = weights[f"{layer}.lora_B.weight"], weights[f"{layer}.lora_A.weight"]
    return SCALE * (up.flatten(1) @ down.flatten(1))


@pytest.mark.parametrize("size", [1.0, 0.02])
def test_the_distance_is_that_of_the_merged_weights(size: float) -> None:
    made, weights = network(torch.bfloat16, size)
    base = {layer: getattr(made, layer).base_layer.weight.data.clone() for layer in ("linear", "conv")}
    found = merge_rounded(made, weights, torch.bfloat16)
    lost = total = 0.0
    for layer, before in base.items():
        after, expected = getattr(made, layer).base_layer.weight, change(weights, layer)
        assert after.dtype == torch.bfloat16
        rounded = (before.float() + expected.view_as(before)).bfloat16()
        assert torch.equal(after, rounded)
        lost += ((after.float() - before.float()).flatten(1) - expected).square().sum().item()
        total += expected.square().sum().item()
    assert found == pytest.approx((lost / total) ** 0.5, rel=1e-4)
    assert (0.0005 < found < 0.02) if size == 1 else found > 0.05


def test_float32_keeps_the_change_of_a_bfloat16_model() -> None:
    made, weights = network(torch.bfloat16, 0.02)
    before = made.linear.base_layer.weight.data.float().clone()  # type: ignore[union-attr,operator]
    assert merge_rounded(made, weights, torch.float32) < 1e-4
    after = made.linear.base_layer.weight  # type: ignore[union-attr]
    torch.testing.assert_close(after - before, change(weights, "linear"), rtol=1e-3, atol=1e-7)


def test_a_lora_without_effect() -> None:
    made, weights = network(torch.bfloat16, 0.0)
    assert merge_rounded(made, weights, torch.bfloat16) == 0.0
