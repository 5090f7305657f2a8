"""`sdpo compare` on existing runs: grouping, hand-computed numbers, safe pages, and rejected input."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.command_line import Run
from helpers.written_runs import write_run
from PIL import Image
from rich.console import Console

from sdpo.cli.compare import rich_table
from sdpo.commands.compare import compare_directories
from sdpo.commands.compare.comparison import make_comparison
from sdpo.commands.compare.groups import group_directories
from sdpo.commands.compare.measures import area_under, areas, first_crossing, gains, group_curve
from sdpo.commands.compare.plan import PlannedRun, plan_runs
from sdpo.commands.compare.tables import BASE, Cell, ComparisonTable
from sdpo.commands.compare.variants import VARIANTS, load_variants
from sdpo.config.differences import check_same_run, differences
from sdpo.config.schema import Config
from sdpo.errors import UserError
from sdpo.report.line_styles import LINE_STYLES, line_style

FLAT = {1: [0.2, 0.2, 0.2], 4: [0.4, 0.4, 0.4]}
RISING = {1: [0.2, 0.4, 0.6], 4: [0.4, 0.5, 0.6]}


def cells(result, title: str) -> dict[str, list[str]]:
    """Return the table with a title: name → texts of its cells."""
    table = next(t for t in result.tables if t.title == title)
    return {name: [f"{c.text} {c.beside}".strip() for c in row] for name, row in table.rows}


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
    shown = sdpo("compare", "sdpo", "ddpo", "--reach", "sdpo", "--output-dir", "out")
    assert shown.returncode == 0 and "not reached" in shown.stdout, shown.stderr
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| ddpo | not reached | not reached | not reached |" in text
    assert "| sdpo | **200** (100%) |" in text
    refused = sdpo("compare", "sdpo", "ddpo", "--reach", "grpo")
    assert refused.returncode == 2 and "sdpo, ddpo" in refused.stderr


def test_runs_are_grouped_by_what_differs_besides_the_seed(tmp_path: Path) -> None:
    words = [
        write_run(tmp_path / "a", FLAT, seed=1, device="cpu", evaluate={"every": 1}),
        write_run(tmp_path / "b", FLAT, seed=2, device="cuda:1", evaluate={"every": 2}),
        write_run(tmp_path / "c", FLAT, seed=1, train={"learning_rate": 0.5}),
        write_run(tmp_path / "d", FLAT, seed=1, algorithm={"name": "ddpo", "clip_range": 0.1}),
        f"mine={write_run(tmp_path / 'e', FLAT, seed=3)}",
        f"mine={write_run(tmp_path / 'f', FLAT, seed=4, lora=None)}",
    ]
    found = [(group.name, group.seeds) for group in group_directories([str(w) for w in words])]
    names = ["sdpo (learning_rate=0.0001)", "sdpo (learning_rate=0.5)", "ddpo", "mine"]
    assert found == list(zip(names, [[1, 2], [1], [1], [3, 4]], strict=True))


def test_the_page_and_its_files(tmp_path: Path) -> None:
    evil = "<b>&\"'|`"
    words = [
        f"{evil}={write_run(tmp_path / 'a', RISING, tiles=True, reward='<i>score')}",
        str(write_run(tmp_path / "b", FLAT, algorithm="ddpo", reward="<i>score", samples=60, epochs=9)),
    ]
    for out in ("one", "two"):
        compare_directories(words, tmp_path / out)
    files = ("comparison.html", "comparison.md", "comparison.csv")
    figures = ("compare.png", "compare_queries.png", "compare_evaluations.png")
    for name in (*files, *figures):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    for name in figures:
        assert Image.open(tmp_path / "one" / name).size[0] >= 900
    html = (tmp_path / "one" / "comparison.html").read_text()
    assert '<b>&"' not in html and "<script>" not in html and "<i>score" not in html
    assert (
        "&lt;b&gt;&amp;" in html
        and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
        and 'alt="base model, 1 step: a cat"' in html
        and "data:image/png" in html
    )
    assert not re.findall(r'(?:src|href)="(?!data:)', html), "the page loads something"
    # Notes: an unfinished run, unequal samples; the areas end where the shorter run does.
    assert "b is unfinished: epoch 2 of 9." in html and "120" in html and "different numbers of samples" in html
    rows = list(csv.DictReader((tmp_path / "one" / "comparison.csv").open()))
    assert list(rows[0]) == [
        "name", "seed", "steps", "epoch", "images", "reward_queries", "denoiser_evaluations", "seconds", "reward",
        "value",
    ]  # fmt: skip
    assert len(rows) == 2 * 2 * 2 * 3
    assert rows[2] | {"seconds": ""} == {
        "name": evil, "seed": "42", "steps": "1", "epoch": "2", "images": "200", "reward_queries": "600",
        "denoiser_evaluations": "2000", "seconds": "", "reward": "<i>score", "value": "0.6",
    }  # fmt: skip


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


def test_what_cannot_be_compared_is_refused(sdpo: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "a", FLAT)
    write_run(tmp_path / "other-reward", FLAT, reward="pickscore", seed=2)
    write_run(tmp_path / "other-steps", {8: [0.1, 0.2, 0.3]}, seed=2)
    write_run(tmp_path / "same", FLAT)
    write_run(tmp_path / "untrained", {1: [0.2], 4: [0.4]}, seed=2, epochs=2)
    write_run(tmp_path / "unevaluated", FLAT, seed=2)
    for file in (tmp_path / "unevaluated" / "evaluation").glob("*.json"):
        file.unlink()
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, words in (
        (["a", "other-reward"], ["share no reward", "a: aesthetic", "other-reward: pickscore"]),
        (["a", "other-steps"], ["share no step count", "a: 1, 4", "other-steps: 8"]),
        (["a", "same"], ["seed 42", "labels"]),
        (["a", "untrained"], ["untrained", "no evaluation", "repeat"]),
        (["a", "unevaluated"], ["unevaluated", "no evaluation"]),
        (["a", "folder"], ["folder", "config.yaml"]),
        (["a", "nowhere"], ["nowhere", "not a run's directory"]),
        (["nowhere"], ["nowhere", "--algorithms"]),
        ([], ["nothing to compare", "--algorithms"]),
        (["sdpo=a", "other-steps", "--output-dir", "file"], ["sdpo", "labels"]),
        (["a", "--output-dir", "file"], ["file", "cannot be written"]),
    ):
        refused = sdpo("compare", *arguments)
        assert refused.returncode == 2, arguments
        assert "Traceback" not in refused.stderr and all(word in refused.stderr for word in words), refused.stderr


def plan(tmp_path: Path, *names: str, overrides: tuple[str, ...] = (), seeds: int = 1) -> list[PlannedRun]:
    return plan_runs("emoji", overrides, names, seeds, 7, tmp_path, tmp_path / "variants.yaml")


def test_plan_of_algorithms_and_variants(tmp_path: Path) -> None:
    (tmp_path / "variants.yaml").write_text(
        "ddpo: {algorithm: {clip_range: 0.01}, train: {learning_rate: 5.0e-4}}\n"
        "no-decay: {algorithm: {temporal_decay: 1.0, clip_range: 0.5}, lora: null, rewards: {colorfulness: 1.0}}\n"
        "paper: {algorithm: sdpo}\n"
        "mine: {algorithm: {clip_range: 0.2, name: prdp}, train.batch_size: 15}\n"
    )
    names = ("sdpo", "ddpo", "no-decay", "paper", "mine")
    planned = plan(tmp_path, *names, overrides=("epochs=3", "algorithm.clip_range=0.5"), seeds=2)
    assert [run.path.name for run in planned[:6]] == [*(f"{n}-seed7" for n in names), "sdpo-seed8"]
    assert planned[5].config.seed == 8 and {run.config.epochs for run in planned} == {3}
    assert {run.config.algorithm["clip_range"] for run in planned} == {0.5}, "the command line wins"
    by_name = {run.name: run.config for run in plan(tmp_path, *names)}
    preset = Config.load("emoji")
    assert by_name["sdpo"].algorithm == preset.algorithm
    assert by_name["ddpo"].algorithm == Config.load("emoji", ["algorithm=ddpo", "algorithm.clip_range=0.01"]).algorithm
    assert by_name["ddpo"].train.learning_rate == 5e-4 and by_name["ddpo"].lora == preset.lora
    assert by_name["no-decay"].algorithm == {**preset.algorithm, "temporal_decay": 1.0, "clip_range": 0.5}
    assert by_name["no-decay"].lora is None and by_name["no-decay"].rewards == {"colorfulness": 1.0}
    assert by_name["paper"].algorithm == Config.load(None, ["algorithm=sdpo"]).algorithm != preset.algorithm
    assert by_name["mine"].algorithm["name"] == "prdp" and by_name["mine"].train.batch_size == 15


def test_every_variant_that_comes_with_a_preset_is_legal(tmp_path: Path) -> None:
    for file in VARIANTS.glob("*.yaml"):
        names = list(load_variants(file.stem, None))
        assert len(plan_runs(file.stem, [], names, 1, 1, tmp_path)) == len(names) > 0


@pytest.mark.parametrize(
    ("names", "overrides", "words"),
    [
        (["sdpp"], [], ["'sdpp'", "did you mean 'sdpo'", "four-branches", "--variants"]),
        (["sdpo", "sdpo"], [], ["twice"]),
        (["sdpo", "same"], [], ["sdpo and same", "same settings"]),
        (["wrong"], [], ["wrong: config", "learning_rat"]),
        (["sdpo"], ["seed=3"], ["--first-seed"]),
        (["sdpo"], ["algorithm.name=ddpo"], ["--algorithms"]),
        ([], [], ["--algorithms"]),
    ],
)
def test_plan_refuses(tmp_path: Path, names: list[str], overrides: list[str], words: list[str]) -> None:
    (tmp_path / "variants.yaml").write_text("same: {algorithm: {}}\nwrong: {train: {learning_rat: 1}}\n")
    with pytest.raises(UserError) as caught:
        plan(tmp_path, *names, overrides=tuple(overrides))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("text", "words"),
    [("a/b: {}", ["'a/b'"]), ("x: 3", ["x should be"]), ("[1]", ["mapping"]), ("x: {", ["YAML"])],
)
def test_broken_variants_are_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "variants.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        plan(tmp_path, "sdpo")
    assert all(word in str(caught.value) for word in ["variants.yaml", *words])


def test_a_run_is_recognised_by_its_files_and_settings(tmp_path: Path) -> None:
    """A run without checkpoints counts by its numbers; one with them when its report was written last."""
    (tmp_path / "variants.yaml").write_text("")
    run = plan(tmp_path, "sdpo", overrides=("epochs=2",))[0]
    assert not run.begun() and not run.finished()
    write_run(run.path, FLAT)
    (run.path / "config.yaml").write_text(run.config.to_yaml())
    assert run.begun() and run.finished()
    checkpoint, report = run.path / "checkpoints" / "2", run.path / "report.html"
    report.write_text("written at an earlier end")
    checkpoint.mkdir(parents=True)
    stamp = report.stat().st_mtime_ns
    import os

    os.utime(checkpoint, ns=(stamp + 10, stamp + 10))
    assert not run.finished()
    os.utime(report, ns=(stamp + 20, stamp + 20))
    assert run.finished()
    longer = plan(tmp_path, "sdpo", overrides=("epochs=3",))[0]
    with pytest.raises(UserError, match="epochs: 2 → 3"):
        longer.finished()  # the learning rate decays towards the last epoch
    other = plan(tmp_path, "sdpo", overrides=("epochs=2", "train.learning_rate=0.5", "evaluate.every=1"))[0]
    with pytest.raises(UserError, match=r"(?s)evaluate.every: 8 → 1.*train.learning_rate: 0.0004 → 0.5"):
        other.finished()
    constant = yaml.safe_load((run.path / "config.yaml").read_text())
    constant["train"]["lr_schedule"] = "constant"
    (run.path / "config.yaml").write_text(yaml.safe_dump(constant))
    more = plan(tmp_path, "sdpo", overrides=("epochs=3", "train.lr_schedule=constant"))[0]
    assert more.begun() and not more.finished()


def test_a_setting_that_only_one_run_has_is_a_difference(tmp_path: Path) -> None:
    """A setting with a default, or of another algorithm, is not."""
    (tmp_path / "variants.yaml").write_text("")
    one = "reward_options={emoji_score: {device: cpu}}", "model.scheduler={name: LCMScheduler}"
    other = "epochs=2", "model.scheduler={name: LCMScheduler, timestep_spacing: trailing}"
    run = plan(tmp_path, "sdpo", overrides=("epochs=2", *one))[0]
    write_run(run.path, FLAT)
    (run.path / "config.yaml").write_text(run.config.to_yaml())
    assert run.begun()
    words = r"(?s)model.scheduler.timestep_spacing: \(not set\) → trailing.*reward_options.emoji_score: .*cpu.* → \(not"
    with pytest.raises(UserError, match=words):
        plan(tmp_path, "sdpo", overrides=other)[0].begun()
    with pytest.raises(UserError, match=words.replace("trailing", "'?trailing")):
        check_same_run(plan(tmp_path, "sdpo", overrides=other)[0].config, run.path / "config.yaml")
    stored = yaml.safe_load((run.path / "config.yaml").read_text())
    del stored["train"]["weight_decay"], stored["stop_when"]
    (run.path / "config.yaml").write_text(yaml.safe_dump(stored))
    assert run.begun(), "it was made before these settings were added"
    found = differences(stored, Config.load("emoji", ["algorithm=ddpo"]).model_dump(mode="json"), frozenset())
    assert found["algorithm.name"] == ("sdpo", "ddpo") and "algorithm.temporal_decay" not in found


def test_more_than_eight_lines_still_look_different() -> None:
    styles = [line_style(i) for i in range(3 * len(LINE_STYLES))]
    assert len({(style.light, style.dash, style.marker) for style in styles}) == len(styles)
    assert all(math.isfinite(int(style.light[1:], 16)) for style in styles)


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


def test_lost_costs(sdpo: Run, tmp_path: Path) -> None:
    """An evaluation without costs is left out of the curves; a result without costs is rejected."""
    for name, epoch in (("between", 1), ("last", 2)):
        run = write_run(tmp_path / name, FLAT, algorithm="ddpo")
        file = run / "evaluation" / f"epoch_{epoch:04d}.json"
        record = json.loads(file.read_text())
        del record["images"], record["seconds"]
        file.write_text(json.dumps(record))
        (run / "metrics.jsonl").unlink()
    comparison = make_comparison(group_directories([str(tmp_path / "between")]))
    assert group_curve(comparison, comparison.groups[0], "aesthetic", 1).epochs == [0, 2]
    refused = sdpo("compare", "last")
    assert refused.returncode == 2 and "last does not say what it spent (samples, time)" in refused.stderr
    assert "epoch 2 in metrics.jsonl" in refused.stderr


def test_evaluations_of_other_prompts_are_said(tmp_path: Path) -> None:
    words = [write_run(tmp_path / "a", FLAT), write_run(tmp_path / "b", FLAT, seed=43)]
    for file in (tmp_path / "b" / "evaluation").glob("*.json"):
        record = json.loads(file.read_text())
        file.write_text(json.dumps(record | {"prompts": ["a moon"] * len(record["prompts"])}))
    assert "different prompts" in " ".join(compare_directories(words, tmp_path / "out").comparison.notes)


def test_values_of_variants_arrive_as_they_are(tmp_path: Path) -> None:
    """Overrides are YAML on one line, also if the text holds characters that YAML reads as line breaks."""
    prompts = ["a cat\u2028and a dog", "a\x85b: c, d", "long " * 100]
    variant = {"mine": {"algorithm": {}, "prompts": {"train": prompts}}}
    (tmp_path / "variants.yaml").write_text(yaml.safe_dump(variant), encoding="utf-8")
    assert plan(tmp_path, "mine")[0].config.prompts.train == prompts


def test_the_terminal_shows_texts_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = ComparisonTable("t[b]", "about", ["1 step"], [("[red]name", [Cell("0.5", "± 0.1", best=True)])])
    Console(highlight=False, markup=False, width=80).print(rich_table(table))
    shown = capsys.readouterr().out
    assert "[red]name" in shown and "0.5 ± 0.1" in shown and "[bold]" not in shown and "t[b]" in shown
