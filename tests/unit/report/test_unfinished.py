"""Reports of runs that are unfinished, interrupted or damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from helpers.html_pages import parse
from helpers.learning_run import write_learning_run
from helpers.run_files import evaluation
from helpers.written_runs import change_evaluation
from PIL import Image

from sdpo.errors import UserError
from sdpo.report import write_report
from sdpo.report.gallery import gallery
from sdpo.report.reader import read_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_learning_run(tmp_path / "emoji-run")


def test_unfinished_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "young"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("epochs: 3\nrewards: {emoji: 1.0}\n")
    text = parse(write_report(run_dir).read_text(encoding="utf-8")).text
    assert "not been evaluated yet" in text and "0 of 3, unfinished" in text and "No epoch has finished" in text
    for name in ("curves.png", "samples.png"):
        with Image.open(run_dir / name) as image:
            assert image.size[0] >= 600 and np.asarray(image.convert("L")).min() < 200  # a note is written on it


def test_only_the_base_model_evaluated(tmp_path: Path) -> None:
    run_dir = write_learning_run(tmp_path / "r", epochs=4)
    text = parse(write_report(run_dir).read_text(encoding="utf-8")).text
    assert "After: not there yet" in text and "no later evaluation yet" in text


def test_half_written_files_are_noted(run_dir: Path) -> None:
    (run_dir / "evaluation" / "epoch_0010.json").write_text('{"epoch": 10, "sco')
    strip = run_dir / "evaluation" / "epoch_0005" / "steps_4.png"
    strip.write_bytes(strip.read_bytes()[:60])
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 11, "ima')
    run = read_run(run_dir)
    assert run.tuned is not None and run.tuned.epoch == 5 and run.last_epoch == 10
    text = parse(write_report(run_dir).read_text(encoding="utf-8")).text
    assert "epoch_0010.json is left out" in text and "metrics.jsonl, line 11" in text
    assert next(row for row in gallery(run) if row.steps == 4).after == []


def test_not_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.yaml"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="not a directory"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_text("- a\n- list\n")
    with pytest.raises(UserError, match="mapping"):
        write_report(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="cannot be read as YAML"):
        write_report(tmp_path)


def test_resumed_run_counts_the_later_epochs(run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"epoch": 8, "images": 1}) + "\n")
    assert [row["epoch"] for row in read_run(run_dir).metrics] == list(range(1, 9))


def test_scores_that_are_not_finite_are_said_not_hidden(run_dir: Path) -> None:
    scores = evaluation(run_dir, 10)["scores"]
    scores["emoji"]["4"][0] = math.nan
    change_evaluation(run_dir, 10, scores=scores)
    assert "not finite" in write_report(run_dir).read_text(encoding="utf-8")
