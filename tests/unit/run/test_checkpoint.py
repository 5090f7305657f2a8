"""Checkpoints: whole or not at all, the newest and the best stay, damage is named."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import forked_processes as forked
from helpers.mutations import DAMAGES, damage_file

from sdpo.errors import UserError
from sdpo.run.checkpoint import Checkpoint, CheckpointStore


def checkpoint(epoch: int, score: float | None = None) -> Checkpoint:
    weights = {"w": torch.full((3,), float(epoch))}
    return Checkpoint(epoch, weights, {"w": weights["w"] / 2}, {"step": epoch, "x": torch.ones(2)}, score)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    store.save(checkpoint(3, 0.5))
    found = store.load(3)
    assert (found.epoch, found.score, found.state["step"]) == (3, 0.5, 3)
    assert torch.equal(found.weights["w"], torch.full((3,), 3.0)) and torch.equal(found.ema["w"], torch.full((3,), 1.5))


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c", keep_last=2, keep_best=1)
    for epoch, score in enumerate([0.1, 0.9, None, 0.3, 0.2, None], start=1):
        store.save(checkpoint(epoch, score))
    assert store.epochs() == [2, 5, 6]
    store = CheckpointStore(tmp_path / "d", keep_last=1, keep_best=0)
    for epoch in (1, 2, 3):
        store.save(checkpoint(epoch, -epoch))
    assert store.epochs() == [3]


@pytest.mark.parametrize("name", ["weights.safetensors", "ema.safetensors", "state.pt", "info.json", "checksums.json"])
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_one_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str) -> None:
    store = CheckpointStore(tmp_path / "c")
    for epoch in (1, 2):
        store.save(checkpoint(epoch))
    damage_file(tmp_path / "c" / "2" / name, how)
    with pytest.raises(UserError, match="2 is damaged"):
        store.load(2)
    again = CheckpointStore(tmp_path / "c")
    found = again.newest()
    assert found is not None and found.epoch == 1
    said = caplog.text
    caplog.clear()
    assert f"{tmp_path}/c/2 is damaged" in said and "Resuming from the checkpoint of epoch 1" in said
    # The run makes the epoch again, in the place of the damaged one.
    again.save(checkpoint(2))
    assert not caplog.records and again.load(2).epoch == 2
    for epoch in (1, 2):
        damage_file(tmp_path / "c" / str(epoch) / name, how)
    with pytest.raises(UserError, match="none of the checkpoints .* can be read:\n(.*\n)*Delete that folder"):
        CheckpointStore(tmp_path / "c").newest()
    assert store.epochs() == [1, 2]


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"state.pt": 3}'])
def test_checksums_that_vouch_for_nothing(tmp_path: Path, content: str) -> None:
    store = CheckpointStore(tmp_path / "c")
    store.save(checkpoint(1))
    (tmp_path / "c" / "1" / "checksums.json").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        store.load(1)


def test_a_damaged_one_is_neither_best_nor_among_the_last(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c", keep_last=3, keep_best=1)
    for epoch, score in enumerate([0.5, 0.9, 0.1], start=1):
        store.save(checkpoint(epoch, score))
    damage_file(tmp_path / "c" / "2" / "state.pt", "flipped")
    damage_file(tmp_path / "c" / "3" / "state.pt", "flipped")
    again = CheckpointStore(tmp_path / "c", keep_last=2, keep_best=1)
    again.save(checkpoint(4, 0.2))
    assert again.epochs() == [1, 4], "1 is the best that is whole, and the newest besides 4"
    for epoch in (5, 6, 7):
        again.save(checkpoint(epoch, 0.0))
    assert again.epochs() == [1, 6, 7]


def test_nothing_is_renamed_before_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: set[str] = set()
    renamed: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def watched_fsync(handle: int) -> None:
        flushed.add(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def watched_rename(path: Path, target: Path) -> Path:
        if path.suffix == ".tmp":
            assert {str(path), *map(str, path.iterdir())} <= flushed
            flushed.clear()
            renamed.append(path.name)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "rename", watched_rename)
    store = CheckpointStore(tmp_path / "c")
    for _ in range(2):  # also where the target exists
        store.save(checkpoint(1))
        assert str(tmp_path / "c") in flushed
    assert renamed == ["1.tmp", "1.tmp"]


CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
BLOCK = 5  # kills that one process starts, each in a child: a start costs more than a save


def save_until(root: Path, operation: int, epoch: int) -> None:
    """Save a checkpoint, and die at the n-th operation on a file."""
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in CHANGES:
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    store = CheckpointStore(root, keep_last=1)
    before = store.newest()
    assert before is not None and before.epoch == 1
    sys.addaudithook(watch)
    store.save(checkpoint(epoch))


def save_in_children(root: Path, operations: range, epoch: int) -> None:
    """Save a checkpoint in one child for each operation, at which the child dies; write down how each ended."""
    for operation in operations:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                save_until(root / str(operation), operation, epoch)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        (root / f"{operation}.code").write_text(str(os.waitstatus_to_exitcode(status)))


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_save_that_is_killed_at_any_operation_loses_nothing(tmp_path: Path, epoch: int) -> None:
    operation, code = 0, -signal.SIGKILL
    while code != 0:
        operation += 1
        root = tmp_path / str(operation)
        if operation % BLOCK == 1:
            block = range(operation, operation + BLOCK)
            for later in block:
                CheckpointStore(tmp_path / str(later)).save(checkpoint(1))
            process = forked.start(save_in_children, tmp_path, block, epoch, log=tmp_path / "log")
            process.join(60)
            assert process.exitcode == 0, (tmp_path / "log").read_text()
        code = int((tmp_path / f"{operation}.code").read_text())
        assert code in (0, -signal.SIGKILL), (tmp_path / "log").read_text()
        store = CheckpointStore(root)
        found = store.newest()
        assert found is not None and found.epoch in {1, epoch}
        assert torch.equal(found.weights["w"], torch.full((3,), float(found.epoch)))
        assert all(p.name.isdecimal() for p in root.iterdir()), "leftovers are cleared away"
        store.save(checkpoint(3))
        newest = store.newest()
        assert newest is not None and newest.epoch == 3
    assert operation > 15, "the operations were counted"


def test_a_copy_does_not_change_with_what_it_was_taken_of() -> None:
    original = checkpoint(1)
    copy = original.copy()
    original.weights["w"].zero_()
    original.state["x"].zero_()
    assert torch.equal(copy.weights["w"], torch.ones(3)) and torch.equal(copy.state["x"], torch.ones(2))


def test_a_disk_that_is_full_leaves_the_earlier_ones(small_disk: Path) -> None:
    store = CheckpointStore(small_disk / "c")
    store.save(checkpoint(1))
    large = {"w": torch.zeros(2**20)}
    for too_much in (Checkpoint(2, large, {}, {}), Checkpoint(2, {}, large, {}), Checkpoint(2, {}, {}, large)):
        with pytest.raises(UserError, match="epoch 2 cannot be written.*MB free.*Earlier checkpoints are intact"):
            store.save(too_much)
        assert store.epochs() == [1] and [p.name for p in (small_disk / "c").iterdir()] == ["1"]
    assert store.load(1).epoch == 1
