"""The layout of a network's weights: a backbone's initial weights, and the layout that it adopts when it is sharded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from helpers.families import wrapped
from helpers.pipelines import stable_diffusion
from torch import Tensor, nn

from sdpo.backbones.weights import NetworkWeights, WholeWeights


def test_initial_weights_are_swapped_in_and_out_again() -> None:
    network = nn.Linear(2, 2)
    initial, pointers = network.weight.detach().clone(), [p.data_ptr() for p in network.parameters()]
    weights = WholeWeights(network, keep_initial=True)
    with torch.no_grad():
        network.weight += 1
    with pytest.raises(ValueError), weights.initial():
        assert torch.equal(network.weight, initial)
        raise ValueError
    assert torch.equal(network.weight, initial + 1)
    assert [p.data_ptr() for p in network.parameters()] == pointers, "the optimizer steps these tensors"


def test_without_a_copy_the_weights_stay() -> None:
    network = nn.Linear(2, 2)
    weights = WholeWeights(network)
    with torch.no_grad():
        network.weight += 1
    trained = network.weight.detach().clone()
    with weights.initial():
        assert torch.equal(network.weight, trained)
    assert weights.whole({}) is network and not weights.is_sharded


class Halves(NetworkWeights):
    """Stands for a sharded layout: `initial` is recorded, `whole` is a network with other weights."""

    is_sharded = True

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.calls: list[str] = []

    @contextlib.contextmanager
    def initial(self) -> Iterator[None]:
        self.calls.append("initial")
        yield
        self.calls.append("trained")

    def whole(self, gathered: Mapping[str, Tensor]) -> nn.Module:
        self.calls.append(f"whole {sorted(gathered)}")
        return self.network


def test_a_sharded_layout_is_asked_for_the_base_model_and_the_saved_weights(tmp_path: Path) -> None:
    backbone, other = wrapped(stable_diffusion), stable_diffusion().unet
    sharded, trained = backbone.network_module, Halves(other)
    backbone.train_all(copy=False)
    assert not backbone.is_sharded
    backbone.attach_sharded(trained, torch.device("cpu"))
    assert backbone.is_sharded
    with backbone.reference():
        assert trained.calls == ["initial"]
    folder = backbone.save(tmp_path, {"conv_in.bias": other.conv_in.bias})
    assert trained.calls == ["initial", "trained", "whole ['conv_in.bias']"]
    assert backbone.pipeline.unet is sharded, "the network that is trained is back in the pipeline"
    saved = type(other).from_pretrained(folder / "unet")
    assert all(torch.equal(weight, other.state_dict()[name]) for name, weight in saved.state_dict().items())
