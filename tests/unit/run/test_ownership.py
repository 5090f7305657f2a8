"""A run writes into a directory that is empty or its own, and replaces and deletes only what a run wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdpo import Config, UserError
from sdpo.evaluation.record import discard_evaluations_after
from sdpo.run.checkpoint import Checkpoint, CheckpointStore
from sdpo.run.directory import RunDirectory
from sdpo.run.ownership import check_directory, holds_results
from sdpo.run.result import RunResult, write_result

CONFIG = Config.load("emoji")
RESOLVED = CONFIG.to_yaml()
MARK = json.dumps({"format": 1, "sdpo": "0.1.0"})


def fill(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return contents(folder)


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text(errors="replace") for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    "files",
    [
        {"config.yaml": "name: my project\n", "metrics.jsonl": "{}\n", "lora/mine.safetensors": "x"},
        {"config.yaml": "epochs: 3\n"},
        {"config.yaml": "# of mine\n" + RESOLVED},
        {"config.yaml": RESOLVED, "notes.txt": "x"},
        {"config.yaml": RESOLVED, "lora/pytorch_lora_weights.safetensors": "x"},
        {"config.yaml": RESOLVED, "environment.json": "{}"},
        {".lock": "", "notes.txt": "x"},
        {"evaluation/epoch_mine.json": "x"},
        {"model/model_index.json": "{}"},
        {"environment.json": '{"format": 1, "conda": "24.1"}'},
        {"environment.json": "[" * 100_000},
        {"checkpoints/last/checksums.json": "{}"},
        {"checkpoints/1/model.pt": "x"},
        {".git/HEAD": "x"},
        {"a": "", "b": "", "c": "", "d": "", "e": ""},
    ],
)
def test_a_directory_that_is_no_run_is_refused(tmp_path: Path, files: dict[str, str]) -> None:
    before = fill(tmp_path, files)
    first = sorted(files)[0].partition("/")[0]
    with pytest.raises(UserError, match=rf"no run's directory and holds {first}"):
        check_directory(RunDirectory(tmp_path), CONFIG)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "files",
    [
        {},
        {".lock": ""},
        {".lock": "", "environment.json.tmp": '{"form'},
        {".lock": "", "config.yaml": RESOLVED},
        {".lock": "", "config.yaml": RESOLVED, "config.yaml.tmp": "", "result.tmp/lora/x": ""},
        {"environment.json": MARK},
        {"environment.json": MARK, "config.yaml": "", "notes.txt": "x", "wandb/run": "x"},
        {"checkpoints/3/checksums.json": "{}", "environment.json": "damaged", "metrics.jsonl": ""},
    ],
)
def test_the_directory_of_a_run_is_its_own(tmp_path: Path, files: dict[str, str]) -> None:
    before = fill(tmp_path, files)
    check_directory(RunDirectory(tmp_path), CONFIG)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("section", ["model", "lora", "fuse_lora"])
@pytest.mark.parametrize("place", ["model", "lora", "checkpoints/3", "result.tmp/model", "link"])
def test_what_a_run_starts_from_is_not_where_it_writes(tmp_path: Path, section: str, place: str) -> None:
    run = tmp_path / "run"
    fill(run, {"environment.json": MARK, "model/x": "", "lora/x": "", "checkpoints/3/x": "", "result.tmp/model/x": ""})
    (tmp_path / "link").symlink_to(run / "model")
    source = str(tmp_path / "link" if place == "link" else run / place)
    values = {"lora": {"lora": {"path": source}}, "model": {"model": {"path": source}}}
    fused = {"model": {"fuse_lora": {"path": source}}}
    config = Config.load("emoji", **values.get(section, fused))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="which the run would replace: nothing was changed"):
        check_directory(RunDirectory(run), config)
    check_directory(RunDirectory(tmp_path / "other"), config)


def test_only_results_are_protected_from_other_configurations(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    fill(tmp_path, {"environment.json": MARK, "config.yaml": RESOLVED, "metrics.jsonl": ""})
    assert not holds_results(run)
    for name, text in (("metrics.jsonl", '{"epoch": 1}\n'), ("lora/result.json", "{}"), ("checkpoints/1/x", "")):
        fill(tmp_path, {name: text})
        assert holds_results(run)
        (tmp_path / name).unlink()
        for parent in [p for p in (tmp_path / name).parents if p != tmp_path and p.is_relative_to(tmp_path)]:
            parent.rmdir()


# -- the user's files beside those of a run --------------------------------------------------------------------------


def test_evaluations_are_discarded_without_the_users_files(tmp_path: Path) -> None:
    ours = ["epoch_0003.json", "epoch_0003/steps_1.png", "epoch_0004/steps_1.png", "epoch_0001.json.tmp"]
    kept = ["epoch_0001.json", "epoch_0001/steps_1.png", "notes.json"]
    users = ["epoch_notes.json", "epoch_.txt", "epoch_0003.txt", "epoch_0004/mine.png", "epoch_3/x", "epoch_best/x"]
    fill(tmp_path / "evaluation", dict.fromkeys([*ours, *kept, *users], "x"))
    run = RunDirectory(tmp_path)
    assert [p.name for p in run.evaluation_files()] == ["epoch_0001.json", "epoch_0003.json"]
    discard_evaluations_after(run, 2)
    assert sorted(contents(tmp_path / "evaluation")) == sorted([*kept, *users])
    assert not (tmp_path / "evaluation" / "epoch_0003").exists()


def test_folders_beside_checkpoints_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(Checkpoint(1, {"w": torch.zeros(1)}, {}, {}))
    users = fill(tmp_path, {"best.old/x": "", "mine.tmp/x": ""} | {"3.tmp/x": "", "2.old/y": ""})
    assert store.newest() is not None
    left = {name for name in users if (tmp_path / name).exists()}
    assert {"best.old/x", "mine.tmp/x"} <= left and "3.tmp/x" not in left


class Model:
    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> Path:
        (folder / "lora").mkdir()
        (folder / "lora" / "weights").write_text("new")
        return folder / "lora"


def test_files_beside_a_result_stay(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_result(run, Model(), {}, RunResult(1, False))
    fill(tmp_path / "lora", {"weights": "old", "notes.txt": "mine", "a/b/c": "mine"})
    (tmp_path / "lora" / "link").symlink_to("notes.txt")
    (tmp_path / "lora" / "folder").symlink_to("a")
    write_result(run, Model(), {}, RunResult(2, False))
    found = contents(tmp_path / "lora")
    assert found["weights"] == "new" and json.loads(found["result.json"])["epoch"] == 2
    assert found["notes.txt"] == found["a/b/c"] == "mine"
    assert (tmp_path / "lora" / "link").is_symlink() and (tmp_path / "lora" / "folder").is_symlink()
    assert not run.staging.exists()
