"""The evaluations of a run: files, the gain over the base model, and the base model's metrics after a resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sdpo.evaluation.conditions import Conditions
from sdpo.evaluation.evaluate import image_seeds
from sdpo.evaluation.history import EvaluationHistory
from sdpo.evaluation.record import GAIN, Evaluation, ImageScores
from sdpo.run.directory import RunDirectory

STEPS = (8, 1, 4, 2)
TILES = {1: torch.zeros(1, 4, 4, 3, dtype=torch.uint8)}


def evaluation(epoch: int, monitored: int = 2) -> Evaluation:
    random = np.random.default_rng(epoch)
    scores = {"r": {steps: random.normal(scale=10.0**steps, size=5) for steps in STEPS}}
    return Evaluation(
        epoch, ImageScores(["a"] * 5, list(range(5)), scores), monitors={"entropy": {1: 0.5}}, monitored=monitored
    )


def history(path: Path, monitored: int = 2, writes: bool = True) -> EvaluationHistory:
    return EvaluationHistory(RunDirectory(path), {"r": 1.0}, monitored, writes)


def test_the_main_process_writes_and_all_have_the_metrics(tmp_path: Path) -> None:
    main, other = history(tmp_path / "main"), history(tmp_path / "other", writes=False)
    for epoch in (0, 3):
        assert main.record(evaluation(epoch), TILES) == other.record(evaluation(epoch), TILES)
        assert main.latest is not None and main.latest.epoch == epoch
    assert sorted(p.name for p in (tmp_path / "main" / "evaluation").glob("*.json")) == [
        "epoch_0000.json",
        "epoch_0003.json",
    ]
    assert not (tmp_path / "other").exists()


def test_a_resumed_run_has_the_same_gain_to_the_last_bit_whatever_the_order_of_steps(tmp_path: Path) -> None:
    whole, gains = history(tmp_path), []
    assert whole.record(evaluation(0), TILES)[GAIN] == 0
    for epoch in range(1, 20):
        gains.append(whole.record(evaluation(epoch), TILES)[GAIN])
    resumed = history(tmp_path)
    resumed.resume(0)
    assert [resumed.record(evaluation(epoch), TILES)[GAIN] for epoch in range(1, 20)] == gains
    assert resumed.base_metrics() == whole.base_metrics()


def test_without_the_base_models_evaluation_there_is_no_gain(tmp_path: Path) -> None:
    resumed = history(tmp_path)
    resumed.resume(0)
    assert GAIN not in resumed.record(evaluation(2), TILES)
    assert resumed.base_metrics() == {}


def test_monitors_on_another_number_of_images_are_not_compared(tmp_path: Path) -> None:
    history(tmp_path).record(evaluation(0), TILES)
    for monitored, compared in ((2, True), (1, False)):
        resumed = history(tmp_path, monitored)
        resumed.resume(0)
        assert ("monitor/entropy/1" in resumed.base_metrics()) == compared
        assert "eval/r/1" in resumed.base_metrics()


def test_the_latest_evaluation_is_known_after_a_resume_and_a_damaged_one_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = history(tmp_path)
    for epoch in (0, 2, 4):
        whole.record(evaluation(epoch), TILES)
    for resumed_after, latest in ((1, 0), (3, 2), (9, 4)):
        resumed = history(tmp_path)
        resumed.resume(resumed_after)
        assert resumed.latest is not None and resumed.latest.epoch == latest
    RunDirectory(tmp_path).evaluation(4).write_text("{")
    resumed.resume(9)
    assert resumed.latest.epoch == 2 and "epoch_0004.json is damaged" in caplog.text


def conditions(eta: float) -> Conditions:
    return Conditions("training", eta, None, {}, 1.0, [8, 8], "float32", {}, {})


def drawn(epoch: int, texts: list[str], eta: float) -> Evaluation:
    scores = ImageScores(texts, image_seeds(texts), {"r": {1: np.arange(len(texts)) + 1.0}})
    return replace(evaluation(epoch), seen=scores, conditions=conditions(eta))


@pytest.mark.parametrize(
    ("texts", "eta", "reason"),
    [
        (["a", "b"], 0.0, []),
        (["a", "b", "a", "b"], 0.0, []),  # more images of each prompt
        (["a", "b"], 1.0, ["eta (0.0 and 1.0)"]),
        (["a", "c"], 0.0, ["prompts or seeds"]),
        (["a", "a"], 0.0, ["prompts or seeds"]),  # fewer prompts, with two images each
        (["c", "b"], 1.0, ["eta (0.0 and 1.0)", "prompts or seeds"]),
    ],
)
def test_a_base_models_evaluation_of_other_conditions_or_prompts_is_lacking(
    tmp_path: Path, texts: list[str], eta: float, reason: list[str]
) -> None:
    history(tmp_path).record(drawn(0, ["a", "b"], 0.0), TILES)
    resumed = history(tmp_path)
    resumed.resume(0)
    assert resumed.lacks_base(conditions(eta), texts) == reason


def test_rows_of_other_conditions_or_prompts_are_not_held_against_the_base_model(tmp_path: Path) -> None:
    whole, rows = history(tmp_path), []
    made = [drawn(0, ["a", "b"], 0.0), drawn(1, ["a", "b"], 1.0), drawn(2, ["a", "c"], 0.0), drawn(3, ["a", "b"], 0.0)]
    for each in made:
        rows.append({"epoch": each.epoch, "train/loss": 1.0, **whole.record(each, TILES)})
    rows.append({"epoch": 4, "train/loss": 1.0})
    assert [GAIN in row for row in rows] == [True, False, False, True, False]
    rows[1][GAIN] = 0.5  # the gain over the base model that the run had at that time
    resumed = history(tmp_path)
    resumed.resume(4)
    left = [{"epoch": epoch, "train/loss": 1.0} for epoch in (1, 2)]
    assert resumed.comparable(rows[1:]) == [*left, *rows[3:]]
