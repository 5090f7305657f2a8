"""The numbers of a report, against values by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from helpers.learning_run import write_learning_run
from helpers.run_files import rows
from helpers.written_runs import change_evaluation, write_rows

from sdpo.report import write_report
from sdpo.report.axis_ticks import tick_labels, ticks
from sdpo.report.formatting import decimals_for, duration, number, percent
from sdpo.report.reader import read_run
from sdpo.report.stats import average_neighbours, before_and_after, learning_curve, paired_gain, score_names


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_learning_run(tmp_path / "emoji-run")


def test_paired_gain_by_hand() -> None:
    gain = paired_gain(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0, 6.0, 4.0]))
    # Differences 1 0 3 0: mean 1, squared deviations 0 1 4 1, sample variance 2, standard error √2/√4.
    assert gain.mean == 1.0
    assert gain.standard_error == pytest.approx(math.sqrt(2) / 2)
    assert gain.images == 4 and not gain.significant
    assert math.isnan(paired_gain(np.array([1.0]), np.array([2.0])).standard_error)
    with pytest.raises(ValueError, match="equally long"):
        paired_gain(np.zeros(3), np.zeros(4))


def test_ticks_cover_the_data_with_round_values() -> None:
    assert ticks(0, 100) == [0, 25, 50, 75, 100]
    assert tick_labels(ticks(0, 5000)) == ["0", "2k", "4k", "6k"]
    assert tick_labels(ticks(-0.5, 0.5)) == ["−0.50", "−0.25", "0", "0.25", "0.50"]
    for low, high in ((0.4131, 0.4133), (-40, -31), (7, 7), (0, 0), (1e6, 3e6)):
        found = ticks(low, high)
        assert found[0] <= low and found[-1] >= high and 3 <= len(found) <= 7
        assert len(set(tick_labels(found))) == len(found)


def test_numbers_read_well() -> None:
    assert number(-0.5, 2, sign=True) == "−0.50" and number(0.5, 1, sign=True) == "+0.5"
    assert number(math.inf, 2) == "not finite"
    assert decimals_for([0.0123], [0.5]) == 3 and decimals_for([math.nan], [12.3]) == 2
    shares = (0.476, 0.0137, 1.5, 0.0, 9e-5)
    assert [percent(s) for s in shares] == ["48 %", "1.4 %", "150 %", "less than 0.01 %", "less than 0.01 %"]
    assert [duration(s) for s in (5, 100, 4000)] == ["5 s", "2 min", "1 h 07 min"]
    assert average_neighbours([1.0, 2.0, 3.0], [1.0, 3.0, 5.0], limit=2) == ([1.5, 3.0], [2.0, 5.0], 2)


def test_order_of_scores(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert score_names(run) == ["emoji", "jpeg", "emoji_judge"]
    assert score_names(run, "unseen") == ["emoji", "jpeg", "emoji_judge"]


def test_images_that_do_not_match_are_not_paired(run_dir: Path) -> None:
    change_evaluation(run_dir, 10, seeds=[999, *range(1, 8)])
    assert [row.gain for row in before_and_after(read_run(run_dir), "emoji")] == [None] * 4
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert "not paired" in html and "prompts or seeds differ" in html and "same prompt" not in html


def test_curves_fill_in_from_metrics_and_costs_may_be_missing(run_dir: Path) -> None:
    (run_dir / "evaluation" / "epoch_0005.json").unlink()
    metrics = rows(run_dir)
    metrics[4]["eval/emoji/4"] = 0.75
    write_rows(run_dir, metrics)
    change_evaluation(run_dir, 10, images=None, judge=None)
    points = learning_curve(read_run(run_dir), "emoji", 4)
    assert [(p.epoch, p.costs["images"]) for p in points] == [(0, 0), (5, 1280), (10, 2560)]
    assert points[1].mean == 0.75


def test_result_table_shows_hand_numbers(tmp_path: Path) -> None:
    run_dir = write_learning_run(tmp_path / "r", epochs=5, unseen=False)
    for epoch, emoji, judge in ((0, [1, 2, 3, 4], [0, 0, 0, 1]), (5, [2, 2, 6, 4], [1, 0, 1, 1])):
        scores = {"emoji": {"1": emoji}, "emoji_judge": {"1": judge}}
        change_evaluation(run_dir, epoch, prompts=["p"] * 4, seeds=[0, 1, 2, 3], scores=scores)
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert "<td>2.50</td><td>3.50</td>" in html
    assert "+1.00 ± 0.71" in html and "too few images to tell" in html
    # Judge: 25 % → 75 %; differences 1 0 1 0 have the sample variance 1/3, so √(1/3)/2 = 28.9 points.
    assert "<td>25 %</td><td>75 %</td>" in html and "+50 ± 29 pp" in html
