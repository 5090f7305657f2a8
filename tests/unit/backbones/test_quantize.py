"""Quantised frozen weights: refused settings, and a run where the libraries are installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from helpers.command_line import Run, failed, succeeded
from helpers.run_files import lora_weights
from torch import nn

from sdpo.assembly.model import load_model, make_trainable
from sdpo.backbones import training
from sdpo.backbones.quantize import quantize
from sdpo.config.schema import Config

LIBRARIES = {"int8": "torchao", "nf4": "bitsandbytes"}


@pytest.mark.parametrize("how", LIBRARIES)
def test_a_missing_library_names_its_extra(
    sdpo: Run, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    for module in ("torchao", "torchao.quantization", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, module, None)
    result = sdpo("train", "emoji", *tiny_overrides, f"model.quantize={how}", "--output-dir", "run")
    failed(result, f"pip install 'sdpo[{LIBRARIES[how]}]'")


def test_full_fine_tuning_is_refused(sdpo: Run) -> None:
    settings = ["model.quantize=int8", "lora=null"]
    failed(sdpo("train", "emoji", *settings, "--dry-run"), "model.quantize=int8 with lora=null")


def test_weights_are_quantised_before_the_lora_is_made(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def spy(network: nn.Module, how: str, device: torch.device) -> None:
        assert how == "nf4" and not any("lora" in name for name, _ in network.named_parameters())
        seen.append(True)

    monkeypatch.setattr(training, "quantize", spy)
    config = Config.load("emoji", model={"path": str(tiny_pipeline), "quantize": "nf4"})
    make_trainable(load_model(config, torch.device("cpu")), config, torch.device("cpu"))
    assert seen == [True]


@pytest.mark.parametrize("how", LIBRARIES)
def test_a_run_on_quantised_weights(sdpo: Run, tmp_path: Path, tiny_overrides: list[str], how: str) -> None:
    pytest.importorskip(LIBRARIES[how])
    succeeded(sdpo("train", "emoji", *tiny_overrides, f"model.quantize={how}", "--output-dir", "run"))
    assert any(value.any() for key, value in lora_weights(tmp_path / "run").items() if "lora_B" in key)
    succeeded(sdpo("export", "run", "--to", "merged", "--epoch", "1"))


@pytest.mark.parametrize("how", LIBRARIES)
def test_outputs_stay_close_and_small_layers_keep_their_precision(how: str) -> None:
    pytest.importorskip(LIBRARIES[how])
    torch.manual_seed(0)
    network = nn.ModuleDict({"embed": nn.Linear(64, 64), "blocks": nn.ModuleList([nn.Linear(64, 64)])})
    x = torch.randn(4, 64)
    exact, before = network["blocks"][0](x).detach(), network["embed"].weight
    quantize(network.requires_grad_(False), how, torch.device("cpu"))  # type: ignore[arg-type]
    assert network["embed"].weight is before
    difference = (network["blocks"][0](x) - exact).abs().max()
    assert 0 < difference < {"int8": 0.02, "nf4": 0.5}[how]
