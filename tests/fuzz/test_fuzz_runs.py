"""Damaged run directories: resuming refuses and changes nothing, or ends with the weights of the undisturbed run."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from helpers.command_line import Run
from helpers.mutations import contents, damage, time_limit
from safetensors.torch import load_file

RESULT = "lora/pytorch_lora_weights.safetensors"
# What a checkpoint is, and what a run reads besides.
FILES = ["checkpoints/2/weights.safetensors", "checkpoints/2/state.pt", "checkpoints/2/info.json"]
BESIDE = ["metrics.jsonl", "config.yaml", "evaluation/epoch_0000.json", "evaluation/epoch_0000/steps_1.png"]


@pytest.fixture
def command(tiny_overrides: list[str]) -> list[str]:
    small = ["lora={rank: 1}", "prompts.train=[cat]", "sample={num_steps: 2, prompts_per_epoch: 2}"]
    return ["train", "emoji", *tiny_overrides, *small, "train.batch_size=2", "evaluate.steps=[1]", "--output-dir"]


def weights(run: Path) -> dict[str, list[float]]:
    """Of the result; a safetensors file's own bytes differ, as its header has no order."""
    return {name: tensor.tolist() for name, tensor in load_file(run / RESULT).items()}


def resumed(sdpo: Run, run: Path, command: list[str], expected: dict[str, list[float]]) -> int:
    before = contents(run)
    with time_limit(run.name):
        result = sdpo(*command, run.name)
    assert "Traceback" not in result.stdout + result.stderr
    if result.returncode == 0:
        assert weights(run) == expected
    else:
        assert result.returncode == 2 and result.stderr.startswith("sdpo: "), (result.returncode, result.stderr)
        assert contents(run) == before
    return int(result.returncode)


def test_damaged_run_directories(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    assert sdpo(*command, "whole").returncode == 0
    expected = weights(tmp_path / "whole")
    files = (
        FILES + BESIDE + [str(p.relative_to(tmp_path / "whole")) for p in (tmp_path / "whole").glob("**/checksums.*")]
    )
    codes = []
    for index in range(40):
        rng, run = random.Random(index), tmp_path / f"run{index}"
        shutil.copytree(tmp_path / "whole", run)
        file = run / files[index % len(files)]
        if index < len(files):
            file.unlink()
        elif index < 2 * len(files) and rng.random() < 0.3:
            file.unlink()
            file.mkdir()
        else:
            file.write_bytes(damage(file.read_bytes(), rng))
        codes.append(resumed(sdpo, run, command, expected))
    assert 0 in codes


def test_commands_on_damaged_run_directories(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    """They say what is wrong, or leave it out."""
    assert sdpo(*command, "whole").returncode == 0
    nested = {"config.yaml": b"a: " + b"[" * 5000, "metrics.jsonl": b"[" * 100_000 + b"\n"}
    nested["stopped.json"] = nested["evaluation/epoch_0002.json"] = nested["metrics.jsonl"]
    nested["export/diffusers/sdpo_export.json"] = b'{"files": 3}'
    codes = []
    for index in range(2 * len(nested)):
        rng, run, file = random.Random(index), tmp_path / f"run{index}", list(nested)[index // 2]
        shutil.copytree(tmp_path / "whole", run)
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        old = (run / file).read_bytes() if (run / file).is_file() else b'{"epoch": 2, "result_epoch": 0, "text": "x"}'
        broken = nested[file] if index % 2 else damage(old, rng).replace(b"e", b"\xff")
        (run / file).write_bytes(broken)
        for words in (
            ["report", run.name],
            ["compare", "a=whole", f"b={run.name}"],
            ["export", run.name, "--to", "diffusers"],
        ):
            with time_limit(f"{words} {file} {index}"):
                result = sdpo(*words)
            assert "Traceback" not in result.stdout + result.stderr
            assert result.returncode in (0, 2), (words, result.stderr)
            codes.append(result.returncode)
    assert {0, 2} == set(codes)


def test_folders_that_are_no_checkpoints(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    assert sdpo(*command, "whole").returncode == 0
    expected = weights(tmp_path / "whole")
    for name in ("3.tmp", "notes", "-1", "3.5", "²"):
        (tmp_path / "whole" / "checkpoints" / name).mkdir()
    assert resumed(sdpo, tmp_path / "whole", command, expected) == 0
    (tmp_path / "whole" / "checkpoints" / "7").mkdir()  # looks like the newest, and is empty
    resumed(sdpo, tmp_path / "whole", command, expected)
