"""Checkpoints: a folder an epoch, written aside and renamed into place; nothing is pickled that is not data."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdpo.errors import UserError


@dataclass
class Checkpoint:
    """What a run needs to go on.

    Attributes:
        epoch: the epoch that was finished.
        weights: trained parameters by name, float32.
        ema: their average, or empty.
        state: optimizer, schedules and statistics; tensors and plain containers.
        score: evaluated gain at this epoch, or None where it was not evaluated.
    """

    epoch: int
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    state: dict[str, Any]
    score: float | None = None


class CheckpointStore:
    """`checkpoints/<epoch>/` of a run.

    Args:
        root: the folder.
        keep_last: newest ones that stay.
        keep_best: best evaluated ones that stay besides.
    """

    def __init__(self, root: Path, keep_last: int = 3, keep_best: int = 1) -> None:
        self.root = root
        self.keep_last = keep_last
        self.keep_best = keep_best

    def epochs(self) -> list[int]:
        """Epochs with a checkpoint, ascending."""
        return sorted(int(p.name) for p in self.root.glob("*") if p.name.isdigit()) if self.root.is_dir() else []

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; it appears whole or not at all.

        Raises:
            UserError: if the disk is full or not writable; earlier checkpoints stay.
        """
        target, temporary = self.root / str(checkpoint.epoch), self.root / f"{checkpoint.epoch}.tmp"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            save_file(_portable(checkpoint.weights), temporary / "weights.safetensors")
            if checkpoint.ema:
                save_file(_portable(checkpoint.ema), temporary / "ema.safetensors")
            torch.save(checkpoint.state, temporary / "state.pt")
            (temporary / "info.json").write_text(json.dumps({"epoch": checkpoint.epoch, "score": checkpoint.score}))
            for file in temporary.iterdir():
                _sync(file)
            shutil.rmtree(target, ignore_errors=True)
            temporary.replace(target)
            _sync(self.root)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(
                f"the checkpoint of epoch {checkpoint.epoch} cannot be written to {target}: {error}. "
                "Earlier checkpoints are intact; free some space and repeat the command to resume."
            ) from error
        self._prune()

    def load(self, epoch: int) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            UserError: if it is damaged.
        """
        folder = self.root / str(epoch)
        try:
            ema = folder / "ema.safetensors"
            return Checkpoint(
                epoch=epoch,
                weights=load_file(folder / "weights.safetensors"),
                ema=load_file(ema) if ema.exists() else {},
                state=torch.load(folder / "state.pt", weights_only=True, map_location="cpu"),
                score=json.loads((folder / "info.json").read_text())["score"],
            )
        except Exception as error:  # any damage, whatever the reader of the file calls it
            raise UserError(
                f"the checkpoint {folder} is damaged ({type(error).__name__}: {error}). Delete that folder to resume "
                "from the one before it."
            ) from error

    def _prune(self) -> None:
        epochs = self.epochs()
        keep = set(epochs[-self.keep_last :])
        if self.keep_best:
            scored = [(s, e) for e in epochs if (s := self._score(e)) is not None]
            keep |= {e for _, e in sorted(scored)[-self.keep_best :]}
        for epoch in epochs:
            if epoch not in keep:
                shutil.rmtree(self.root / str(epoch))

    def _score(self, epoch: int) -> float | None:
        try:
            score = json.loads((self.root / str(epoch) / "info.json").read_text())["score"]
        except (OSError, ValueError, KeyError):
            return None  # a damaged one is never the best
        return None if score is None else float(score)


def _portable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
