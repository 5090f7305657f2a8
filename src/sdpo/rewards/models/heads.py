"""The scoring heads of the aesthetic predictor and of ImageReward, whose linear layers have no activation between."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sdpo.errors import UserError

# Indices of the linear layers; the published modules have dropout between them, which is off when scoring.
LAYERS = (0, 2, 4, 6, 7)


def collapse(state: Mapping[str, Tensor], where: str) -> tuple[Tensor, Tensor]:
    """Multiply five linear layers, in float64, to one: W = W7 W6 W4 W2 W0, and its bias.

    Args:
        state: the state dict: `layers.<i>.weight` and `layers.<i>.bias` for i in 0, 2, 4, 6, 7.
        where: the file of the weights, for messages.

    Returns:
        The weight, float32 [D], and the bias, float32 [].

    Raises:
        UserError: if keys are missing or unexpected.
    """
    expected = {f"layers.{i}.{kind}" for i in LAYERS for kind in ("weight", "bias")}
    if set(state) != expected:
        wrong = sorted(expected ^ set(state))
        raise UserError(f"{where} does not hold a five-layer head: missing or unexpected {', '.join(wrong[:6])}")
    weight, bias = state["layers.0.weight"].double(), state["layers.0.bias"].double()
    for i in LAYERS[1:]:
        layer = state[f"layers.{i}.weight"].double()
        weight, bias = layer @ weight, layer @ bias + state[f"layers.{i}.bias"].double()
    return weight[0].float(), bias[0].float()


class LinearHead(torch.nn.Module):
    """Computes the score x·w + b in float32, whatever the type of the embedding x.

    Args:
        weight: w, float32 [D].
        bias: b, float32 [].
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Compute the scores, float32 [N], of embeddings [N, D]."""
        return embeddings.float() @ self.weight + self.bias
