"""The record of an evaluation on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sdpo.errors import UserError
from sdpo.evaluation.record import (
    Evaluation,
    ImageScores,
    discard_evaluations_after,
    read_evaluation,
    write_evaluation,
)
from sdpo.run.directory import RunDirectory


def evaluation(epoch: int) -> Evaluation:
    seen = ImageScores(["a", "b"], [0, 1], {"r": {1: np.array([0.25, 0.1]), 8: np.array([1.0, 3.0])}})
    return Evaluation(
        epoch=epoch,
        seen=seen,
        unseen=ImageScores(["c"], [0], {"r": {1: np.array([0.5])}}),
        costs={"images": 3.0, "seconds": 1.5},
        judge="r",
        monitors={"entropy": {1: 0.5}},
        monitored=1,
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    run, tiles = RunDirectory(tmp_path), {8: torch.zeros(2, 4, 4, 3, dtype=torch.uint8)}
    assert read_evaluation(run.evaluation(0)) is None
    write_evaluation(run.evaluation(0), evaluation(0), tiles)
    found = read_evaluation(run.evaluation(0))
    assert found is not None and list(found.strips) == [8] and found.strips[8].is_file()
    assert json.dumps(found.as_json()) == json.dumps(evaluation(0).as_json())
    assert dataclasses.replace(found, strips={}).metrics() == {
        "eval/r/1": 0.175,
        "eval/r/8": 2.0,
        "monitor/entropy/1": 0.5,
    }


def test_later_evaluations_are_discarded_and_earlier_ones_stay(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for epoch in (0, 2, 4):
        write_evaluation(run.evaluation(epoch), evaluation(epoch), {1: torch.zeros(1, 4, 4, 3, dtype=torch.uint8)})
    (run.evaluations / "epoch_0002.json.tmp").write_text("{")
    discard_evaluations_after(run, 2)
    assert sorted(path.name for path in run.evaluations.iterdir()) == [
        "epoch_0000", "epoch_0000.json", "epoch_0002", "epoch_0002.json"
    ]  # fmt: skip


@pytest.mark.parametrize("content", ["{", "[]", '{"epoch": 0, "scores": {"r": {"one": [1]}}}', '{"seeds": []}'])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    run = RunDirectory(tmp_path)
    run.evaluations.mkdir()
    run.evaluation(0).write_text(content)
    with pytest.raises(UserError, match="epoch_0000.json is damaged.*delete it"):
        read_evaluation(run.evaluation(0))
