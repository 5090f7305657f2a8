"""The bench: what it counts is right, and its parts add up. How fast anything is, no test asks."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from helpers.command_line import Run

from sdpo.commands.bench import Phases


def test_phases_count_their_own_time_alone() -> None:
    phases = Phases(torch.device("cpu"))
    inner = phases.timed("inner", lambda: time.sleep(0.05))
    start = time.perf_counter()
    with phases("outer"):
        time.sleep(0.02)
        inner()
        inner()
    whole = time.perf_counter() - start
    assert phases.seconds["inner"] >= 0.1 and 0.02 <= phases.seconds["outer"]
    assert sum(phases.seconds.values()) == pytest.approx(whole, abs=0.01)


def test_the_command_counts_what_an_epoch_does(sdpo: Run, tmp_path: Path, tiny_overrides: list[str]) -> None:
    result = sdpo("bench", "emoji", *tiny_overrides, "lora={rank: 2, alpha: 4}", "sample.micro_batch=2",
                  "--repetitions", "2", "--profile", "trace.json", "-o", "bench.json")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "epoch / limit" in result.stdout
    found = json.loads((tmp_path / "bench.json").read_text())
    # 8 groups of 2 branches: 3 steps are sampled, 2 are updated.
    assert found["evaluations"] == {"forward": 48, "backward": 32}
    assert found["batch"]["sample"] == 4 and found["batch"]["update"] == 8
    assert set(found["phases"]) == {"sample", "decode", "reward", "advantage", "update", "bookkeeping"}
    assert all(seconds > 0 for seconds in found["phases"].values())
    assert sum(found["phases"].values()) == pytest.approx(found["epoch"], rel=0.5)
    assert all(seconds > 0 for seconds in found["bare"].values()) and found["limit"] > 0 and found["peak_bytes"] > 1e6
    assert len(found["ratios"]) == 2
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert not list(tmp_path.glob("runs"))


def test_evaluations_without_gradient_count_as_such_and_stopping_rules_are_off(
    sdpo: Run, tmp_path: Path, tiny_overrides: list[str]
) -> None:
    result = sdpo("bench", "emoji", *tiny_overrides, "lora={rank: 2, alpha: 4}", "algorithm=rebel",
                  "train.kl_weight=0.1", "stop_when=[{metric: eval_gain, below: 0}]", "--repetitions", "1",
                  "-o", "bench.json")  # fmt: skip
    assert result.returncode == 0, result.stderr
    # 8 groups of 2 branches, 3 steps: sampled, for the factors, for the KL, and with gradient.
    assert json.loads((tmp_path / "bench.json").read_text())["evaluations"] == {"forward": 48 * 3, "backward": 48}


def test_bad_input(sdpo: Run) -> None:
    assert sdpo("bench", "emojy").returncode == 2
    assert sdpo("bench", "emoji", "--repetitions", "0").returncode == 2
