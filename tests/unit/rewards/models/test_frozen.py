"""Frozen models that hold exactly the weights of a file."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdpo.errors import UserError
from sdpo.rewards.models.frozen import frozen_model


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor(7.0))
        self.register_buffer("positions", torch.arange(4), persistent=False)
        self.devices_at_first = {parameter.device.type for parameter in self.parameters()}


STATE = {
    "layer.weight": torch.ones(2, 3, dtype=torch.float16),
    "layer.bias": torch.zeros(2),
    "scale": torch.tensor(5.0, dtype=torch.float64),
}


def test_weights_come_from_the_file_alone_and_buffers_from_the_model() -> None:
    model = frozen_model(Model, STATE, "file.pt")
    assert isinstance(model, Model) and model.devices_at_first == {"meta"}  # neither memory nor random numbers
    assert model.scale.item() == 5 and model.layer.weight.eq(1).all() and model.positions.tolist() == [0, 1, 2, 3]
    assert not model.training
    for parameter in model.parameters():
        assert parameter.device.type == "cpu" and parameter.dtype == torch.float32 and not parameter.requires_grad
    assert nn.Linear(1, 1).weight.device.type == "cpu", "models that are built later are affected"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({name: value for name, value in STATE.items() if name != "scale"}, r"1 tensors are missing \(scale\)\. "),
        ({**STATE, "more": torch.zeros(1)}, r"1 tensors are unexpected \(more\)\. "),
        ({**STATE, "layer.bias": torch.zeros(3)}, r"1 tensors are of another shape \(layer.bias\)\. "),
        (
            {f"model.{name}": value for name, value in STATE.items()},
            r"3 tensors are missing \(layer.bias, layer.weight, scale\); 3 tensors are unexpected \(model.layer.bias",
        ),
    ],
)
def test_other_weights_are_rejected(state: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(UserError, match=f"file.pt does not hold the weights of a Model: {words}"):
        frozen_model(Model, state, "file.pt")
