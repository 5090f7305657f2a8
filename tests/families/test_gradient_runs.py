"""Runs by reward gradients through the command line: every pipeline class, every reward model, resumed alike."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from helpers.family_runs import Pipelines, overrides
from helpers.paths import REPOSITORY
from helpers.pipelines import PIPELINES
from helpers.run_files import lora_weights, rows
from helpers.small_rewards import MAKERS

from sdpo import Config
from sdpo.cli.main import main
from sdpo.estimate.cost import epoch_cost

FEW = ["evaluate.steps=[2]", "prompts.unseen=null", "train={batch_size: 2, learning_rate: 1.0e-3}"]


def train(run: Path, settings: list[str], *extra: str) -> None:
    assert main(["train", "emoji", *settings, *FEW, *extra, "--output-dir", str(run)]) == 0


@pytest.mark.parametrize("algorithm", ["srg", "{name: draft, through: 3}"])
@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_class_learns_from_the_gradient(
    tmp_path: Path, pipeline_path: Pipelines, name: str, algorithm: str
) -> None:
    settings = [*overrides(pipeline_path, name), f"algorithm={algorithm}"]
    train(tmp_path / "whole", settings, "train.gradient_checkpointing=true", "train.kl_weight=0.1")
    found = rows(tmp_path / "whole")
    assert [row["epoch"] for row in found] == [1, 2]
    assert min(row["train/grad_norm"] for row in found) > 0 and found[1]["train/kl_to_base"] > 0
    assert all(row["train/clip_fraction"] is None for row in found)
    if algorithm != "srg":
        return
    train(tmp_path / "again", settings, "train.gradient_checkpointing=true", "train.kl_weight=0.1", "epochs=1")
    train(tmp_path / "again", settings, "train.gradient_checkpointing=true", "train.kl_weight=0.1")
    whole, again = (lora_weights(tmp_path / run) for run in ("whole", "again"))
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert any(whole[key].any() for key in whole if "lora_B" in key)


@pytest.mark.parametrize("reward", MAKERS)
def test_every_reward_model_is_climbed(
    tmp_path: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch, reward: str
) -> None:
    module = importlib.import_module(f"sdpo.rewards.models.{reward}")
    monkeypatch.setattr(module, "load", lambda device, resize="float": MAKERS[reward]("official", resize))
    settings = [*overrides(lambda _: tiny_pipeline, "StableDiffusionPipeline"), f"rewards={{{reward}: 1.0}}"]
    train(tmp_path / "run", settings, "algorithm=srg", "epochs=1")
    (row,) = rows(tmp_path / "run")
    assert row["train/grad_norm"] > 0 and row["reward_queries"] == 4 * 3


def test_settings_without_a_meaning_are_refused(
    tmp_path: Path, tiny_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*overrides(lambda _: tiny_pipeline, "StableDiffusionPipeline"), *FEW, "algorithm=srg"]
    for setting, text in (
        ("train.inner_epochs=2", "train.inner_epochs is 2, a setting of policy updates"),
        ("train.first_steps=2", "train.first_steps is 2"),
        ("sample.shared_noise=false", "sample.shared_noise is False"),
        ("algorithm.clip_range=0.1", "unknown key 'clip_range'"),
        ("algorithm.num_steps=[1, 2]", "is not among the algorithm's own num_steps"),
        ("rewards={jpeg_compressibility: 1.0}", "'jpeg_compressibility' has none"),
        ("algorithm=hybrid", "all of colorfulness have a gradient: use algorithm=srg"),
    ):
        assert main(["train", "emoji", *settings, setting, "--output-dir", str(tmp_path / "run")]) == 2, setting
        assert text in capsys.readouterr().err, setting
    assert main(["train", "emoji", *settings, "algorithm=hybrid", "--dry-run"]) == 2  # before anything is loaded
    assert "all of colorfulness have a gradient" in capsys.readouterr().err


def test_a_hybrid_run_makes_both_updates(tmp_path: Path, tiny_pipeline: Path) -> None:
    settings = [
        *overrides(lambda _: tiny_pipeline, "StableDiffusionPipeline"),
        "rewards={colorfulness: 1.0, jpeg_incompressibility: 1.0}",
        "algorithm=hybrid",
    ]
    train(tmp_path / "whole", settings)
    found = rows(tmp_path / "whole")
    assert all(row["train/grad_norm"] > 0 and row["train/gradient_grad_norm"] > 0 for row in found)
    assert {"reward/colorfulness", "reward/jpeg_incompressibility"} <= found[0].keys()
    assert found[0]["images"] == 4 * 2 + 4
    train(tmp_path / "again", settings, "epochs=1")
    train(tmp_path / "again", settings)
    whole, again = (lora_weights(tmp_path / run) for run in ("whole", "again"))
    assert all(torch.equal(whole[key], again[key]) for key in whole)


@pytest.mark.parametrize(
    ("form", "penalised"),
    [
        ("null", {"train/kl_to_base", "train/gradient_kl_to_base"}),
        ("clean", {"train/gradient_kl_to_base"}),
        ("transition", {"train/kl_to_base"}),
    ],
)
def test_the_penalty_of_a_hybrid_run_holds_both_updates_or_the_one_that_is_named(
    tmp_path: Path, tiny_pipeline: Path, form: str, penalised: set[str]
) -> None:
    settings = [
        *overrides(lambda _: tiny_pipeline, "StableDiffusionPipeline"),
        "rewards={colorfulness: 1.0, jpeg_incompressibility: 1.0}",
        "algorithm=hybrid",
    ]
    train(tmp_path / "run", settings, "train.kl_weight=0.1", f"train.kl_form={form}", "epochs=1")
    (row,) = rows(tmp_path / "run")
    assert {name for name in row if name.endswith("kl_to_base") and name.startswith("train/")} == penalised
    config = Config.of_run(tmp_path / "run" / "config.yaml")
    cost = epoch_cost(config)
    assert row["denoiser_evaluations"] == cost.forward + cost.backward


def test_an_algorithm_of_the_users_own_is_climbed(
    tmp_path: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples"))
    settings = overrides(lambda _: tiny_pipeline, "StableDiffusionPipeline")
    train(tmp_path / "run", settings, "algorithm={name: own_gradient:EndsFirst, share: 0.25}", "epochs=1")
    (row,) = rows(tmp_path / "run")
    # Three steps are sampled, the first image passes one evaluation and the last one all three.
    assert row["train/grad_norm"] > 0 and row["denoiser_evaluations"] == 4 * (3 + 3)
    assert main(["train", "emoji", *settings, *FEW, "algorithm=builtins:dict", "--output-dir", str(tmp_path)]) == 2
    assert "not a subclass of sdpo.Algorithm or sdpo.RewardGradient or sdpo.Hybrid" in capsys.readouterr().err
