"""Checkpoints: whole or not at all, the newest and the best stay, damage is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdpo.checkpoint import Checkpoint, CheckpointStore
from sdpo.errors import UserError


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


@pytest.mark.parametrize("name", ["weights.safetensors", "ema.safetensors", "state.pt", "info.json"])
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    store = CheckpointStore(tmp_path / "c")
    store.save(checkpoint(1))
    file = tmp_path / "c" / "1" / name
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match="is damaged.*Delete that folder"):
        store.load(1)


def test_a_disk_that_fails_leaves_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path / "c")
    store.save(checkpoint(1))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sdpo.checkpoint.torch.save", full)
    with pytest.raises(UserError, match="No space left.*Earlier checkpoints are intact"):
        store.save(checkpoint(2))
    assert store.epochs() == [1] and [p.name for p in (tmp_path / "c").iterdir()] == ["1"]
    assert store.load(1).epoch == 1
