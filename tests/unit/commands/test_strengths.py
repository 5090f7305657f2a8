"""`sdpo evaluate --strength`: the LoRA's strength is swept, and its ends are the base and the tuned model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.trained_runs import TrainedRuns

from sdpo.assembly.model import load_tuned
from sdpo.cli.main import main
from sdpo.commands.strengths import read_strengths
from sdpo.config import Config
from sdpo.errors import UserError
from sdpo.run.directory import RunDirectory


@pytest.fixture
def run(trained_runs: TrainedRuns, tiny_overrides: list[str], tmp_path: Path) -> Path:
    return trained_runs.copy(tmp_path / "run", "emoji", *tiny_overrides, "train.learning_rate=1.0e-2", "epochs=1")


def test_its_ends_are_the_base_and_the_tuned_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--steps", "1,2", "--images-per-prompt", "2"]
    assert main(["evaluate", str(run), *few]) == 0
    assert main(["evaluate", str(run), "--strength", "0,0.5,1", *few]) == 0
    plain, swept = (json.loads((run / f"evaluation{name}.json").read_text()) for name in ("", "-strength"))
    assert swept["strengths"]["0"]["scores"] == plain["base"]
    assert swept["strengths"]["1"]["scores"] == plain["after"]
    half = swept["strengths"]["0.5"]
    assert half["scores"] not in (plain["base"], plain["after"])
    assert half["weights"] == {"model": "trained", "averaged": False, "lora_strength": 0.5}
    assert {"diversity", "palette"} <= swept["summary"]["0.5"].keys()
    assert swept["seeds"] == plain["seeds"] and swept["prompts"] == plain["prompts"]
    table = capsys.readouterr().out
    assert "strength" in table and "palette" in table


def test_half_the_strength_is_half_of_the_product(run: Path) -> None:
    config = Config.of_run(run / "config.yaml")
    scaled, halved = (load_tuned(config, RunDirectory(run), torch.device("cpu")) for _ in range(2))
    for name, parameter in halved.network_module.named_parameters():
        if "lora_B" in name:
            parameter.data *= 0.5
    latents = torch.randn(1, *scaled.latent_shape, generator=torch.Generator().manual_seed(0))
    inputs = latents, torch.tensor([500]), scaled.encode(["cat"])
    with torch.no_grad():
        whole = scaled.network(*inputs)
        with scaled.lora_strength(0.5):
            inside = scaled.network(*inputs)
        torch.testing.assert_close(inside, halved.network(*inputs))
        assert torch.equal(scaled.network(*inputs), whole) and not torch.equal(inside, whole)


@pytest.mark.parametrize("text", ["", "a", "0,0", "0.1234567,0.1234568", "-0.1", "2.5", "nan", "0;1"])
def test_strengths_without_a_meaning_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--strength"):
        read_strengths(text)


def test_what_has_no_lora_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "emoji", "--strength", "1"]) == 2
    assert "there is no run at emoji" in capsys.readouterr().err
    config = (run / "config.yaml").read_text()
    start = config.index("\nlora:")
    after = config.index("\nprompts:")
    (run / "config.yaml").write_text(config[:start] + "\nlora: null" + config[after:])
    (run / "lora").rename(run / "model")
    assert main(["evaluate", str(run), "--strength", "1"]) == 2
    assert "trained all weights" in capsys.readouterr().err
