"""Damaged run directories: resuming refuses and changes nothing, or ends with the weights of the undisturbed run."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from helpers.command_line import Result, Run, failed, succeeded
from helpers.mutations import damaged, time_limit
from helpers.run_files import contents, lora_weights
from helpers.small_run import same
from helpers.trained_runs import TrainedRuns

# Files by what may become of a run that is resumed without them, or with other bytes in them: exit codes.
FILES = {
    **{f"checkpoints/2/{name}": {0} for name in ("weights.safetensors", "state.pt", "info.json", "checksums.json")},
    "metrics.jsonl": {0},
    "config.yaml": {2},
    "evaluation/epoch_0000.json": {0, 2},  # a run continues without it, and not with a damaged one
    "evaluation/epoch_0000/steps_1.png": {0},
}
SMALL = ["lora={rank: 1}", "prompts.train=[cat]", "sample={num_steps: 2, prompts_per_epoch: 2}"]


@pytest.fixture
def words(tiny_overrides: list[str]) -> list[str]:
    return ["emoji", *tiny_overrides, *SMALL, "train.batch_size=2", "evaluate.steps=[1]"]


@pytest.fixture
def whole(trained_runs: TrainedRuns, tmp_path: Path, words: list[str]) -> Path:
    """The undisturbed run, which has ended."""
    return trained_runs.copy(tmp_path / "whole", *words)


def resumed(sdpo: Run, run: Path, words: list[str], whole: Path) -> Result:
    """Repeat the command of a run, which refuses and changes nothing, or ends with the weights of the whole run."""
    before = contents(run)
    with time_limit(run.name):
        result = sdpo("train", *words, "--output-dir", run.name)
    if result.returncode == 0:
        assert "Traceback" not in result.stdout + result.stderr
        assert same(lora_weights(run), lora_weights(whole))
    else:
        assert failed(result).startswith("sdpo: ")
        assert contents(run) == before
    return result


@pytest.mark.parametrize("file", FILES)
def test_damaged_files(sdpo: Run, tmp_path: Path, words: list[str], whole: Path, file: str) -> None:
    codes = set()
    for index in range(5):
        run = tmp_path / f"run{index}"
        shutil.copytree(whole, run)
        path = run / file
        if index == 0:
            path.unlink()
        elif index == 1 and path.parent != run:
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(damaged(path.read_bytes(), random.Random(f"{file} {index}")))
        codes.add(resumed(sdpo, run, words, whole).returncode)
    assert codes == FILES[file]


def test_commands_on_damaged_run_directories(sdpo: Run, tmp_path: Path, whole: Path) -> None:
    """Commands that read a run say what is wrong with it, or leave the damaged part out."""
    nested = {"config.yaml": b"a: " + b"[" * 5000, "metrics.jsonl": b"[" * 100_000 + b"\n"}
    nested["stopped.json"] = nested["evaluation/epoch_0002.json"] = nested["metrics.jsonl"]
    nested["export/diffusers/sdpo_export.json"] = b'{"files": 3}'
    for index in range(2 * len(nested)):
        rng, run, file = random.Random(index), tmp_path / f"run{index}", list(nested)[index // 2]
        shutil.copytree(whole, run)
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        old = (run / file).read_bytes() if (run / file).is_file() else b'{"epoch": 2, "result_epoch": 0, "text": "x"}'
        broken = nested[file] if index % 2 else damaged(old, rng).replace(b"e", b"\xff")
        (run / file).write_bytes(broken)
        for words in (
            ["report", run.name],
            ["compare", "a=whole", f"b={run.name}"],
            ["export", run.name, "--to", "diffusers"],
        ):
            with time_limit(f"{words} {file} {index}"):
                result = sdpo(*words)
            refused = file == "config.yaml" or (file.startswith("export/") and words[0] == "export")
            (failed if refused else succeeded)(result)


def test_folders_that_are_no_checkpoints(sdpo: Run, tmp_path: Path, words: list[str], whole: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for name in ("3.tmp", "notes", "-1", "3.5", "²"):
        (run / "checkpoints" / name).mkdir()
    succeeded(resumed(sdpo, run, words, whole))
    (run / "checkpoints" / "7").mkdir()  # looks like the newest, and is empty
    result = succeeded(resumed(sdpo, run, words, whole))
    assert "checkpoints/7 is damaged" in result.stderr and "checkpoint of epoch 2" in result.stderr
