"""`sdpo signal`: what it writes, what it refuses, and what an interruption leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import Run, failed, succeeded
from helpers.paths import REPOSITORY
from helpers.trained_runs import TrainedRuns

from sdpo import Config
from sdpo.cli.main import main
from sdpo.commands.signal import Options, SignalResult, measure_signal, output
from sdpo.errors import UserError

SMALL = ["sample={num_steps: 4, prompts_per_epoch: 8}"]
FEW = ["--groups", "10", "--direction-samples", "4", "--projection", "32"]
OPTIONS = Options(groups=10, direction_samples=4, dimension=32)


def keys_of(value: Any) -> set[str]:
    """All keys of a JSON value that are not names."""
    named = ("towards", "left_out", "rewards", "probability_above")
    if isinstance(value, list):
        return {key for item in value for key in keys_of(item)}
    if not isinstance(value, dict):
        return set()
    return set(value) | {
        key for name, inner in value.items() for key in keys_of(list(inner.values()) if name in named else inner)
    }


def measured(words: list[str], options: Options = OPTIONS) -> SignalResult:
    return measure_signal(Config.load("emoji", words), options)


@pytest.fixture(scope="module")
def found(tiny_overrides: list[str]) -> SignalResult:
    """The signal of four branches, measured once."""
    return measured([*tiny_overrides, *SMALL, "algorithm.branches=4"])


def test_the_command_prints_tables_and_writes_both_files(sdpo: Run, tmp_path: Path, tiny_overrides: list[str]) -> None:
    shown = succeeded(sdpo("signal", "emoji", *tiny_overrides, *SMALL, *FEW)).stdout
    for text in ("gain λ=0.5", "by reward plan", "each step's gradient", "The most signal", "Branching at one step"):
        assert text in shown
    folder = tmp_path / "runs" / "signal-emoji"
    assert sorted(p.name for p in folder.iterdir()) == ["signal.json", "signal.png"]
    assert (folder / "signal.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((folder / "signal.json").read_text())
    assert content["trajectories"] == 20 and content["num_steps"] == 4
    again = json.loads(succeeded(sdpo("signal", "emoji", *tiny_overrides, *SMALL, *FEW, "--json")).stdout)
    assert {**again, "seconds": 0} == {**content, "seconds": 0}  # the same to the last bit


def test_the_page_names_every_key_of_the_json(found: SignalResult) -> None:
    page = (REPOSITORY / "docs/signal.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(\w+)`", page))
    assert keys_of(json.loads(json.dumps(output.signal_json(found), allow_nan=False))) - documented == set()


def test_all_alternatives_come_from_the_same_trajectories(found: SignalResult) -> None:
    names = [m.alternative.name for m in found.measured]
    assert names[0] == "as configured" and len(set(names)) == len(names)
    for name in ("step", "final", "gain λ=0", "gain fitted", "step, anchors", "gain λ=1, group_anchors", "final, K=2"):
        assert name in names
    assert set(found.left_out) == {"gain fitted, anchors", "gain fitted, group_anchors"}
    assert found.directions == ["1 step", "2 steps", "4 steps", "mean"]
    # The preset's own setting is the future credit under anchors.
    own, same = found.measured[0], found.named("future, anchors")
    assert same is not None and own.towards["mean"].value == same.towards["mean"].value
    # Steps whose credit is 0 have no gradient.
    gain, step = found.named("gain λ=1"), found.named("step")
    assert gain is not None and gain.by_step[-1].noise == 0
    assert step is not None and step.by_step[-1].noise > 0


def test_numbers_of_branches_have_a_table(sdpo: Run, tiny_overrides: list[str]) -> None:
    shown = succeeded(sdpo("signal", "emoji", *tiny_overrides, *FEW, "algorithm.branches=4")).stdout
    assert "by branches a group" in shown and "K = 2" in shown and "At equal samples, 4 branches" in shown


def test_a_reward_without_gradient_has_a_reference_direction(tiny_overrides: list[str]) -> None:
    result = measured([*tiny_overrides, *SMALL, "rewards={jpeg_compressibility: 1.0}"])
    assert result.directions == ["reference"] and result.measured[0].by_step[0].noise > 0
    assert output.signal_json(result)["directions"]["samples"] is None


def test_one_step_has_no_gain(tiny_overrides: list[str]) -> None:
    words = ["sample={num_steps: 1, prompts_per_epoch: 8}", "algorithm={name: sdpo, credit: step}"]
    result = measured([*tiny_overrides, *words])
    assert "no return" in result.left_out["gain λ=1"] and result.named("final") is None
    assert output.signal_json(result)["recommendation"]["best"] == "step"


def test_several_rewards_are_standardised_before_they_are_climbed(tiny_overrides: list[str]) -> None:
    rewards = "rewards={colorfulness: 1.0, emoji_score: 0.5}"
    assert measured([*tiny_overrides, *SMALL, rewards]).directions[-1] == "mean"


def test_full_gradients_agree_with_their_projection_towards_the_directions(tiny_overrides: list[str]) -> None:
    words = [*tiny_overrides, "sample={num_steps: 2, prompts_per_epoch: 8}"]
    full, short = measured(words, Options(10, 4, 10**6)), measured(words)
    assert output.signal_json(full)["projection"]["exact"]
    for one, other in zip(full.measured, short.measured, strict=True):
        for name in full.directions:  # these need no projection
            assert one.towards[name].value == other.towards[name].value


@pytest.mark.parametrize("algorithm", ["grpo", "d3po", "rebel", "ddpo"])
def test_other_algorithms_are_measured_too(algorithm: str, tiny_overrides: list[str]) -> None:
    settings = [f"algorithm.name={algorithm}", "algorithm.branches=2", "advantage.normalizer=pair"]
    result = measured([*tiny_overrides, *SMALL, *settings])
    assert result.named("final") is not None and result.measured[0].all_steps.noise > 0
    assert ("gain λ=1" in result.left_out) == (algorithm == "rebel")


def test_a_run_is_measured_at_its_trained_weights(
    tmp_path: Path, tiny_overrides: list[str], trained_runs: TrainedRuns
) -> None:
    run = trained_runs.copy(tmp_path / "run", "emoji", *tiny_overrides)
    assert main(["signal", str(run), *FEW]) == 0
    content = json.loads((run / "signal" / "signal.json").read_text())
    assert content["lora"] == str(run / "lora")
    fresh = measured([*tiny_overrides])
    # The B matrices of a new LoRA alone have a gradient; both matrices of a trained one.
    assert content["parameters"] > fresh.parameters
    assert main(["train", "emoji", *tiny_overrides, "--output-dir", str(run)]) == 0  # the run itself is as it was


def test_training_all_weights_is_measured(tiny_overrides: list[str]) -> None:
    result = measured([*tiny_overrides, "lora=null"], Options(8, 4, 32))
    assert result.parameters > 10_000 and result.measured[0].all_steps.noise > 0


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["algorithm=srg"], ("algorithm=srg", "algorithm=sdpo")),
        (["algorithm=ddpo", "advantage.normalizer=stepwise"], ("algorithm.branches is 1", "algorithm.branches=2")),
        (["sample.num_steps=4", "sample.branch_at=1", "algorithm.credit=future"], ("sample.branch_at is 1", "null")),
        (["--groups", "7"], ("--groups 7", "8 or more")),
        (["--projection", "1"], ("--projection",)),
        (["sample.num_steps=1", "algorithm.credit=future"], ("sample.num_steps=1", "more steps")),
    ],
)
def test_what_has_no_comparable_gradient_is_refused_by_name(
    words: list[str], named: tuple[str, ...], sdpo: Run, tmp_path: Path, tiny_overrides: list[str]
) -> None:
    reset = ["train.kl_weight=0"] if "algorithm=srg" in words else []
    failed(sdpo("signal", "emoji", *tiny_overrides, *reset, *words), *named)
    assert not list(tmp_path.glob("runs/**/signal*"))


def test_folders_that_are_no_run_and_files_of_others_are_refused(
    sdpo: Run, tmp_path: Path, tiny_overrides: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    failed(sdpo("signal", "empty"), "empty", "not the directory of a run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "signal.json").write_text('{"notes": 1}')
    failed(sdpo("signal", "emoji", *tiny_overrides, "--out", "mine"), "did not write it")
    assert (tmp_path / "mine" / "signal.json").read_text() == '{"notes": 1}'


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch, tiny_overrides: list[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        measured(tiny_overrides)


# -- interruptions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["sampling", "gradients of log-probabilities", "picture"])
def test_an_interruption_leaves_the_last_result_whole(
    place: str, tmp_path: Path, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch, found: SignalResult
) -> None:
    folder = tmp_path / "out"
    files = output.save_result(found, folder)
    before = [file.read_bytes() for file in files]

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    if place == "picture":
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", interrupt)
    else:
        stop: Callable[[Any, str, int, int], None] = lambda _, phase, done, whole: (  # noqa: E731
            interrupt() if phase == place else None
        )
        monkeypatch.setattr("sdpo.cli.signal._ProgressBars.advance", stop)
    assert main(["signal", "emoji", *tiny_overrides, *SMALL, *FEW, "--out", str(folder)]) == 130
    assert [file.read_bytes() for file in files] == before
    assert sorted(p.name for p in folder.iterdir()) == ["signal.json", "signal.png"]
