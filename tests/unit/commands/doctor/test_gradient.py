"""The check of gradients finds those that do not arrive or arrive elsewhere, and leaves the weights as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sdpo import Config
from sdpo.commands.doctor.gradient import check_gradient, without_zeros
from sdpo.commands.doctor.probe import Probe
from sdpo.commands.doctor.sampling import check_log_ratio


@pytest.mark.parametrize("lora", [{"rank": 2}, None])
def test_weights_are_left_as_they_were(
    make_config: Callable[..., Config], make_probe: Callable[[Config], Probe], lora: Any
) -> None:
    probe = make_probe(make_config(lora=lora))
    network = probe.parts.backbone.network_module
    before = {name: (p, p.data_ptr(), p.detach().clone(), p.requires_grad) for name, p in network.named_parameters()}
    (found,) = check_gradient(probe)
    assert found.status == "ok"
    for name, parameter in network.named_parameters():
        kept, place, value, trained = before[name]
        assert parameter is kept and parameter.data_ptr() == place and torch.equal(parameter, value)
        assert parameter.grad is None and parameter.requires_grad == trained
    (found,) = check_log_ratio(probe)
    assert found.status == "ok"


def test_zeros_come_back_after_an_error_too() -> None:
    parameters = {"a": torch.nn.Parameter(torch.zeros(3)), "b": torch.nn.Parameter(torch.ones(3))}
    with pytest.raises(RuntimeError), without_zeros(parameters) as filled:
        assert filled == 1 and parameters["a"].all() and parameters["b"].eq(1).all()
        raise RuntimeError
    assert not parameters["a"].any()


def test_gradients_that_do_not_arrive_or_arrive_elsewhere(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = probe.parts.backbone
    trained = backbone.trainable_parameters()
    unused = torch.nn.Parameter(torch.ones(2))
    monkeypatch.setattr(backbone, "trainable_parameters", lambda: {**trained, "unused": unused})
    (found,) = check_gradient(probe)
    assert found.status == "WARN" and "at unused" in found.text  # some families have a few of these
    many = {f"unused.{i}": torch.nn.Parameter(torch.ones(2)) for i in range(len(trained))}
    monkeypatch.setattr(backbone, "trainable_parameters", lambda: {**trained, **many})
    (found,) = check_gradient(probe)
    assert found.status == "FAIL"
    monkeypatch.setattr(backbone, "trainable_parameters", lambda: trained)
    frozen = next(n for n, p in backbone.network_module.named_parameters() if n not in trained)
    backbone.network_module.get_parameter(frozen).requires_grad_(True)
    (found,) = check_gradient(probe)
    assert found.status == "FAIL" and f"at {frozen}" in found.text


def test_a_gradient_that_overflows_at_one_scale_is_taken_at_a_smaller(
    probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, norms = probe.parts.backbone.network, list[float]()

    def overflowing(gradient: torch.Tensor) -> torch.Tensor:
        """Make the gradients of the first two backward passes infinite, as float16 would."""
        norms.append(gradient.norm().item())
        return gradient * torch.inf if len(norms) <= 2 else gradient

    def network(*arguments: Any) -> torch.Tensor:
        output = clean(*arguments)
        output.register_hook(overflowing)
        return output

    monkeypatch.setattr(probe.parts.backbone, "network", network)
    monkeypatch.setattr("sdpo.commands.doctor.gradient._scales", lambda policy: (2.0**10, 1.0))
    (found,) = check_gradient(probe)
    assert found.status == "ok" and len(norms) == 4, "two steps at each scale"
    assert norms[0] == pytest.approx(2**10 * norms[2]) and norms[1] == pytest.approx(2**10 * norms[3])
    norms.clear()
    monkeypatch.setattr("sdpo.commands.doctor.gradient._scales", lambda policy: (2.0**10,))
    (found,) = check_gradient(probe)
    assert found.status == "FAIL" and "not finite at" in found.text and len(norms) == 2
