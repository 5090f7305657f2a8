"""Tables of `sdpo compare` on existing runs, against numbers by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import Run, failed, succeeded
from helpers.written_runs import write_run

from sdpo.commands.compare import compare_directories
from sdpo.commands.compare.comparison import make_comparison
from sdpo.commands.compare.groups import group_directories
from sdpo.commands.compare.measures import area_under, areas, first_crossing, gains, group_curve
from sdpo.commands.compare.output import ComparisonResult
from sdpo.commands.compare.plan import PlannedRun, plan_runs
from sdpo.commands.compare.tables import BASE

FLAT = {1: [0.2, 0.2, 0.2], 4: [0.4, 0.4, 0.4]}
RISING = {1: [0.2, 0.4, 0.6], 4: [0.4, 0.5, 0.6]}


def cells(result: ComparisonResult, title: str) -> dict[str, list[str]]:
    """The table with a title: name → texts of its cells."""
    table = next(t for t in result.tables if t.title == title)
    return {name: [f"{c.text} {c.beside}".strip() for c in row] for name, row in table.rows}


def plan(tmp_path: Path, *names: str, overrides: tuple[str, ...] = (), seeds: int = 1) -> list[PlannedRun]:
    """The runs that a comparison of these names needs; their variants are in a file of the folder."""
    return plan_runs("emoji", overrides, names, seeds, 7, tmp_path, tmp_path / "variants.yaml")


def test_hand_computed_table(tmp_path: Path) -> None:
    """At 1 step, two seeds of sdpo end at 0.6 and 0.8, ddpo at 0.5. The last image adds 0.1 to each final mean."""
    words = [
        write_run(tmp_path / "a", {1: [0.2, 0.4, 0.6], 4: [0.4, 0.4, 0.4]}, seed=42),
        write_run(tmp_path / "b", {1: [0.2, 0.6, 0.8], 4: [0.4, 0.4, 0.4]}, seed=43),
        write_run(tmp_path / "c", {1: [0.2, 0.3, 0.5], 4: [0.4, 0.4, 0.4]}, seed=42, algorithm="ddpo"),
        write_run(tmp_path / "d", {1: [0.2, 0.3, 0.5], 4: [0.4, 0.4, 0.4]}, seed=43, algorithm="ddpo"),
    ]
    result = compare_directories(words, tmp_path / "out")
    assert result.comparison.images == 2 and result.comparison.steps == [1, 4] and not result.comparison.notes
    assert result.tables[0].about.endswith("mean ± std over 2 seeds")
    final = cells(result, "Final aesthetic")
    # mean 0.8, sample std √2·0.1 = 0.1414; the mean over step counts is (0.8 + 0.5) / 2, its std half of that
    assert final["sdpo"] == ["0.80 ± 0.14", "0.50 ± 0.00", "0.65 ± 0.07"]
    assert final["ddpo"] == ["0.60 ± 0.00", "0.50 ± 0.00", "0.55 ± 0.00"]
    assert final[BASE] == ["0.30", "0.50", "0.40"]
    assert cells(result, "Gain in aesthetic")["sdpo"] == ["+0.50 ± 0.14", "+0.00 ± 0.00", "+0.25 ± 0.07"]
    # trapezoids over equal distances: (0.2 / 2 + 0.4 + 0.6 / 2) / 2 = 0.4 and 0.55; std 0.15 / √2 = 0.106
    assert cells(result, "Area under the curve of aesthetic")["sdpo"][0] == "0.48 ± 0.11"
    # sdpo's mean curve is 0.2, 0.5, 0.7 and ddpo ends at 0.5: reached at 100 of 200 samples; at four steps ddpo stays
    reached = cells(result, "Samples to reach ddpo's final aesthetic")
    assert reached["sdpo"] == ["100 (50%)", "–", "100 (50%)"]
    assert reached["ddpo"][0] == "200 (100%)"
    # judge: the images above 0.5 are 1 of 4 before; 4 of 4 after, but for step count 4, where one image is above
    assert cells(result, "judge: recognised, %")["sdpo"] == ["100.0 ± 0.0", "25.0 ± 0.0", "62.5 ± 0.0"]
    best = {name: [c.best for c in row] for name, row in result.tables[0].rows}
    assert best == {BASE: [False] * 3, "sdpo": [True, False, True], "ddpo": [False] * 3}


def test_curves_use_the_images_that_all_evaluations_have(tmp_path: Path) -> None:
    comparison = make_comparison(group_directories([str(write_run(tmp_path / "a", RISING))]))
    found = group_curve(comparison, comparison.groups[0], "aesthetic", 1)
    assert found.values == pytest.approx(np.array([[0.2, 0.4, 0.6]]))
    assert found.costs["images"].tolist() == [0, 100, 200] and np.isnan(found.std).all()
    assert gains(comparison, comparison.groups[0], "aesthetic") == pytest.approx(np.array([[0.4, 0.2, 0.3]]))


def test_areas_and_crossings() -> None:
    xs = np.array([0.0, 100.0, 200.0])
    assert area_under(xs, np.array([0.0, 1.0, 1.0]), 200) == 0.75
    assert area_under(xs, np.array([0.0, 1.0, 1.0]), 50) == 0.25  # up to (50, 0.5)
    assert first_crossing(xs, np.array([0.0, 1.0, 0.5]), 0.25) == 25
    assert first_crossing(xs, np.array([0.5, 1.0, 0.5]), 0.25) == 0
    assert first_crossing(xs, np.array([0.0, 1.0, 0.5]), 1.1) is None


def test_not_reached_and_another_reference(sdpo: Run, tmp_path: Path) -> None:
    for name, curves in (("sdpo", RISING), ("ddpo", FLAT)):
        write_run(tmp_path / name, curves, algorithm=name)
    shown = succeeded(sdpo("compare", "sdpo", "ddpo", "--reach", "sdpo", "--output-dir", "out"))
    assert "not reached" in shown.stdout
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| ddpo | not reached | not reached | not reached |" in text
    assert "| sdpo | **200** (100%) |" in text
    failed(sdpo("compare", "sdpo", "ddpo", "--reach", "grpo"), "sdpo, ddpo")


def test_one_seed_has_no_standard_deviation_and_different_base_models_have_one(tmp_path: Path) -> None:
    words = [
        write_run(tmp_path / "a", RISING),
        write_run(tmp_path / "b", {1: [0.3, 0.4], 4: [0.4, 0.5]}, algorithm="x"),
    ]
    result = compare_directories(words, tmp_path / "out")
    final = cells(result, "Final aesthetic")
    assert final["sdpo"][0] == "0.7000"  # one seed: no standard deviation
    assert result.tables[0].about == "all images of the last evaluation, 1 seed"
    assert final[BASE] == ["0.3500 ± 0.0707", "0.5000", "0.4250 ± 0.0354"]


def test_prompts_not_trained_on_have_a_table_of_their_own(tmp_path: Path) -> None:
    words = [write_run(tmp_path / f"{seed}", RISING, seed=seed, unseen=seed / 10) for seed in (5, 7)]
    found = cells(compare_directories(words, tmp_path / "out"), "Final aesthetic on prompts not trained on")
    assert found == {BASE: ["0.00"] * 3, "sdpo": ["0.60 ± 0.14"] * 3}


def test_areas_end_where_the_first_curve_does(tmp_path: Path) -> None:
    """A curve ends at the last epoch at which all its runs were evaluated, here 1, and is not extended beyond."""
    runs = [
        write_run(tmp_path / "a", {1: [0.2, 0.3, 0.5, 0.9]}, seed=42),
        write_run(tmp_path / "b", {1: [0.2, 0.4, 0.9]}, seed=43),
    ]
    (runs[0] / "evaluation" / "epoch_0002.json").unlink()
    comparison = make_comparison(group_directories([f"a={run}" for run in runs]))
    found = areas(comparison, comparison.groups[0], "aesthetic")
    assert found == pytest.approx(np.array([[0.25, 0.25], [0.3, 0.3]]))


def test_what_is_to_be_reached_is_the_result(tmp_path: Path) -> None:
    """The results of ddpo's runs are 0.6 after 100 samples, where a rule stopped it, and 0.8 after 300."""
    words = [
        write_run(tmp_path / "a", {1: [0.2, 0.6, 0.1]}, seed=42, algorithm="ddpo", epochs=3),
        write_run(tmp_path / "b", {1: [0.2, 0.4, 0.6, 0.8]}, seed=43, algorithm="ddpo", epochs=3),
        write_run(tmp_path / "c", {1: [0.0, 0.5, 0.9]}, seed=42, epochs=3),
    ]
    (words[0] / "stopped.json").write_text(json.dumps({"epoch": 2, "result_epoch": 1}))
    result = compare_directories(words, tmp_path / "out")
    found = cells(result, "Samples to reach ddpo's final aesthetic")
    assert found["sdpo"][0] == "150 (75%)"  # 0.7, half-way from 0.5 to 0.9; of (100 + 300) / 2 samples
    assert found["ddpo"][0] == "not reached"  # its mean curve is 0.2, 0.5, 0.35
    table = next(t for t in result.tables if t.title.startswith("Samples to reach"))
    assert table.about.endswith("the share of the 200 samples of that result")


def test_a_run_that_a_rule_stopped_is_finished_and_said_to_be_stopped(tmp_path: Path) -> None:
    """The evaluation and pictures of its result, an earlier epoch, are compared."""
    (tmp_path / "variants.yaml").write_text("")
    rule = "stop_when=[{metric: eval_gain, below: 0}]"
    run = plan(tmp_path, "sdpo", overrides=("epochs=9", rule))[0]
    write_run(run.path, {1: [0.2, 0.6, 0.1], 4: [0.4, 0.8, 0.1]}, reward="emoji_score")
    (run.path / "config.yaml").write_text(run.config.to_yaml())
    assert run.begun() and not run.finished()
    (run.path / "stopped.json").write_text(json.dumps({"epoch": 2, "result_epoch": 1, "text": "Stopped <by> a rule."}))
    assert run.finished()
    result = compare_directories([run.path], tmp_path / "out")
    assert cells(result, "Final emoji_score")["sdpo"] == ["0.6000", "0.8000", "0.7000"]
    assert result.comparison.notes == ["sdpo-seed7: Stopped <by> a rule."]
    assert "Stopped &lt;by&gt; a rule." in result.page.read_text()
