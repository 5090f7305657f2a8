"""The runs that `sdpo compare` trains, and which of them are finished."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from helpers.written_runs import write_run

from sdpo.commands.compare.plan import PlannedRun, plan_runs
from sdpo.commands.compare.variants import VARIANTS, load_variants
from sdpo.config.differences import check_same_run, differences
from sdpo.config.schema import Config
from sdpo.errors import UserError

FLAT = {1: [0.2, 0.2, 0.2], 4: [0.4, 0.4, 0.4]}
RISING = {1: [0.2, 0.4, 0.6], 4: [0.4, 0.5, 0.6]}


def plan(tmp_path: Path, *names: str, overrides: tuple[str, ...] = (), seeds: int = 1) -> list[PlannedRun]:
    """The runs that a comparison of these names needs; their variants are in a file of the folder."""
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


def test_values_of_variants_arrive_as_they_are(tmp_path: Path) -> None:
    """Overrides are YAML on one line, also if the text holds characters that YAML reads as line breaks."""
    prompts = ["a cat\u2028and a dog", "a\x85b: c, d", "long " * 100]
    variant = {"mine": {"algorithm": {}, "prompts": {"train": prompts}}}
    (tmp_path / "variants.yaml").write_text(yaml.safe_dump(variant), encoding="utf-8")
    assert plan(tmp_path, "mine")[0].config.prompts.train == prompts
