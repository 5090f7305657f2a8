"""The check of what is trained, and in which precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sdpo import Config
from sdpo.commands.doctor.probe import Probe
from sdpo.commands.doctor.weights import check_precision


def test_half_precision_on_a_cpu_is_told(
    make_config: Callable[..., Config], make_probe: Callable[[Config], Probe], tiny_pipeline: Path
) -> None:
    half = make_config(model={"path": str(tiny_pipeline), "dtype": "float16"})
    (found,) = check_precision(make_probe(half).parts)
    assert found.status == "WARN" and "float16 is for GPUs" in found.text


def test_nothing_trained_or_not_in_float32_is_found(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, trained = probe.parts.backbone, probe.parts.backbone.trainable_parameters()
    (found,) = check_precision(probe.parts)
    assert found.status == "ok" and "parameters of the network are trained, in float32" in found.text
    name = next(iter(trained))
    coarse = torch.nn.Parameter(trained[name].detach().half())
    monkeypatch.setattr(backbone, "trainable_parameters", lambda: {**trained, name: coarse})
    (found,) = check_precision(probe.parts)
    assert found.status == "FAIL" and f"{name} not in float32" in found.text
    monkeypatch.setattr(backbone, "trainable_parameters", dict)
    (found,) = check_precision(probe.parts)
    assert found.status == "FAIL" and "nothing is trained" in found.text
