"""Reading a run's directory: damaged parts are noted, and costs are completed from the metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.written_runs import change_evaluation, write_run

from sdpo.report.reader import read_run

CURVES = {1: [0.2, 0.4, 0.6]}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epoch": None}, "KeyError: 'epoch'"),
        ({"epoch": float("inf")}, "OverflowError"),
        ({"seconds": "long"}, "ValueError"),
        ({"scores": {"aesthetic": [0.1]}}, "TypeError"),
        ({"scores": [0.1]}, "AttributeError"),
        ({"scores": {"aesthetic": {"one": [0.1]}}}, "ValueError"),
        ({"unseen": [1]}, "AttributeError"),
    ],
)
def test_a_damaged_evaluation_is_left_out_with_a_note(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    change_evaluation(write_run(tmp_path / "run", CURVES), 1, **values)
    run = read_run(tmp_path / "run")
    assert [e.epoch for e in run.evaluations] == [0, 2]
    assert len(run.notes) == 1 and run.notes[0].startswith("evaluation/epoch_0001.json is left out: ")
    assert words in run.notes[0]


def test_missing_costs_come_from_the_metrics_and_are_0_before_training(tmp_path: Path) -> None:
    write_run(tmp_path / "run", CURVES)
    for epoch in (0, 1):
        change_evaluation(tmp_path / "run", epoch, images=None, seconds=None)
    change_evaluation(tmp_path / "run", 2, seconds=99.0)
    costs = [e.costs for e in read_run(tmp_path / "run").evaluations]
    assert [(c["images"], c["seconds"]) for c in costs] == [(0, 0), (100, 7.5), (200, 99.0)]
    (tmp_path / "run" / "metrics.jsonl").unlink()
    before, between, last = read_run(tmp_path / "run").evaluations
    assert set(between.costs) == {"reward_queries", "denoiser_evaluations"}
    assert len(before.costs) == len(last.costs) == 4
