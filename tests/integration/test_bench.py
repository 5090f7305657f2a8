"""`sdpo bench`: what it counts is right, and its parts add up. How fast anything is, no test asks."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import Run, failed, succeeded

from sdpo import Config, Trainer
from sdpo.commands.bench import bench
from sdpo.commands.bench.images import EpochImages

SMALL = ["sample.micro_batch=2"]


def test_the_command_counts_what_an_epoch_does(sdpo: Run, tmp_path: Path, tiny_overrides: list[str]) -> None:
    words = ["--repetitions", "2", "--profile", "trace.json", "-o", "bench.json"]
    assert "epoch / limit" in succeeded(sdpo("bench", "emoji", *tiny_overrides, *SMALL, *words)).stdout
    found = json.loads((tmp_path / "bench.json").read_text())
    # 8 groups of 2 branches: 3 steps are sampled, 2 are updated.
    assert found["evaluations"] == {"forward": 48, "backward": 32}
    assert found["batch"]["sample"] == 4 and found["batch"]["update"] == 8
    assert {size & (size - 1) for size in (found["batch"]["forward"], found["batch"]["backward"])} == {0}
    assert list(found["phases"]) == ["sample", "decode", "reward", "advantage", "update", "bookkeeping"]
    assert min(found["phases"].values()) > 0
    # The median of two is their mean, so that the phases add up to the epoch.
    assert sum(found["phases"].values()) == pytest.approx(found["epoch"], rel=1e-9)
    assert set(found["bare"]) == {"decode", "reward"} | {
        f"{kind}_{where}" for kind in ("forward", "backward") for where in ("same", "best")
    }
    assert min(found["bare"].values()) > 0 and found["encode"] > 0
    assert found["peak_bytes"] > 1e6
    assert len(found["ratios"]) == 2 and found["ratio"] == statistics.median(found["ratios"])
    assert found["samples_per_second"] == 8 * 2 / found["epoch"]
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert not list(tmp_path.glob("runs"))


def test_the_limit_is_the_bare_work_of_an_epoch(tiny_overrides: list[str]) -> None:
    found = bench(Config.load("emoji", [*tiny_overrides, *SMALL]), repetitions=1)
    bare, count = found.bare, found.evaluations
    network = sum(count[kind] * bare[f"{kind}_best"] for kind in ("forward", "backward"))
    assert found.limit == pytest.approx(network + bare["decode"] + bare["reward"], rel=1e-12)
    assert found.ratio == found.epoch / found.limit
    assert sum(found.phases.values()) == found.epoch


def test_the_images_of_an_epoch_are_as_many_as_its_queries(tmp_path: Path, tiny_overrides: list[str]) -> None:
    plan = ["algorithm.reward_plan=final", "scoring.decode_batch=3", "scoring.batch_size=5"]
    trainer = Trainer(Config.load("emoji", [*tiny_overrides, *SMALL, *plan, f"output_dir={tmp_path}"]))
    calls: dict[str, list[int]] = {"decode": [], "reward": []}
    images = EpochImages(trainer, queries=16)
    backbone, mix = trainer.parts.backbone, trainer.parts.mix
    with pytest.MonkeyPatch.context() as patch:
        decode, start = backbone.decode, mix.start
        patch.setattr(backbone, "decode", lambda x: calls["decode"].append(len(x)) or decode(x))
        patch.setattr(mix, "start", lambda x, p, m: calls["reward"].append(len(x)) or start(x, p, m))
        assert min(images.times()) > 0
    assert calls == {"decode": [3, 3, 3, 3, 3, 1], "reward": [5, 5, 5, 1]}
    # The final plan asks for the last step's image of every trajectory: these are all of them, each once.
    prompts, indices = trainer.parts.batches.deal(1)
    (whole,) = trainer.parts.rollout(prompts, indices, 1, len(prompts))
    assert whole.x0 is not None
    torch.testing.assert_close(images.latents, whole.x0[:, :, -1].flatten(0, 1), rtol=0, atol=1e-4)
    assert [p.text for p in images.prompts] == [p.text for p in prompts for _ in range(2)]


def test_evaluations_without_gradient_count_as_such_and_stopping_rules_are_off(
    sdpo: Run, tmp_path: Path, tiny_overrides: list[str]
) -> None:
    settings = ["algorithm=rebel", "train.kl_weight=0.1", "stop_when=[{metric: eval_gain, below: 0}]"]
    succeeded(sdpo("bench", "emoji", *tiny_overrides, *settings, "--repetitions", "1", "-o", "bench.json"))
    # 8 groups of 2 branches, 3 steps: sampled, for the factors, for the KL, and with gradient.
    assert json.loads((tmp_path / "bench.json").read_text())["evaluations"] == {"forward": 48 * 3, "backward": 48}


def test_callbacks_of_a_run_are_not_called(tmp_path: Path, tiny_overrides: list[str], monkeypatch: Any) -> None:
    (tmp_path / "mine_callback.py").write_text(
        "from sdpo.assembly.callbacks import Callback\n"
        "class Raises(Callback):\n"
        "    def on_epoch_end(self, state):\n"
        "        raise RuntimeError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = Config.load("emoji", [*tiny_overrides, *SMALL, "callbacks=[mine_callback:Raises]"])
    assert bench(config, repetitions=1, bare=False).epoch > 0


def test_without_the_bare_work_there_is_no_limit(tiny_overrides: list[str]) -> None:
    found = bench(Config.load("emoji", [*tiny_overrides, *SMALL]), repetitions=1, bare=False)
    assert found.epoch > 0 and found.bare == {} and found.ratios == []
    assert math.isnan(found.limit) and math.isnan(found.ratio)
    assert found.batch == {"sample": 4, "update": 8, "forward": 4, "backward": 8}


def test_bad_input(sdpo: Run) -> None:
    failed(sdpo("bench", "emojy"), "'emojy'", "did you mean 'emoji'")
    failed(sdpo("bench", "emoji", "--repetitions", "0"), "--repetitions", "1")


def test_reward_gradients_have_no_limit(sdpo: Run, tmp_path: Path, tiny_overrides: list[str]) -> None:
    words = ["algorithm=srg", "rewards={colorfulness: 1.0}", "--repetitions", "1", "-o", "bench.json"]
    printed = succeeded(sdpo("bench", "emoji", *tiny_overrides, *SMALL, *words)).stdout
    assert "epoch / limit: not measured" in printed
    found = json.loads((tmp_path / "bench.json").read_text(), parse_constant=pytest.fail)
    assert found["evaluations"] == {"forward": 0, "backward": 24} and found["ratio"] is None
    assert found["phases"]["decode"] > 0 and found["phases"]["reward"] > 0
