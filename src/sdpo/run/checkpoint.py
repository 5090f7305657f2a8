"""Checkpoints: one folder an epoch, complete or absent, verified by checksums; only plain data is pickled."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdpo.errors import UserError
from sdpo.system.durable import WRITE_ERRORS, recover_folder, replace_folder, sha256
from sdpo.system.log import logger

_CHECKSUMS = "checksums.json"
_NEEDED = {"weights.safetensors", "state.pt", "info.json"}


@dataclass
class Checkpoint:
    """The state that a run resumes from.

    Attributes:
        epoch: the epoch that has ended.
        weights: trained parameters by name, float32.
        ema: the average of the trained parameters by name; empty where no average is kept.
        state: optimizer, schedules and statistics; tensors and plain containers.
        score: the evaluated gain after this epoch; None where the epoch was not evaluated, or a stopping rule held.
    """

    epoch: int
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    state: dict[str, Any]
    score: float | None = None

    def copy(self) -> Checkpoint:
        """A copy on the CPU that further training does not change."""
        return replace(self, weights=_copied(self.weights), ema=_copied(self.ema), state=_copied(self.state))


class CheckpointStore:
    """The folder `checkpoints/` of a run.

    Args:
        root: the folder.
        keep_last: the number of newest checkpoints that are kept.
        keep_best: the number of best evaluated checkpoints that are kept besides.
    """

    def __init__(self, root: Path, keep_last: int = 3, keep_best: int = 1) -> None:
        self.root = root
        self.keep_last = keep_last
        self.keep_best = keep_best
        self._whole: dict[int, bool] = {}  # by epoch: whether this process wrote it or found it undamaged

    def epochs(self) -> list[int]:
        """The epochs with a checkpoint, damaged ones included, ascending."""
        return sorted(int(p.name) for p in self.root.glob("*") if p.name.isdecimal()) if self.root.is_dir() else []

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, completely or not at all, and delete old ones that are not kept.

        Raises:
            UserError: if the disk is full or not writable; earlier checkpoints stay.
        """
        target, temporary = self.root / str(checkpoint.epoch), self.root / f"{checkpoint.epoch}.tmp"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            _write(checkpoint, temporary)
            replace_folder(temporary, target)
        except (*WRITE_ERRORS, RuntimeError) as error:  # torch.save raises RuntimeError where the disk is full
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(
                f"the checkpoint of epoch {checkpoint.epoch} cannot be written to {target}: {error} "
                f"({_free(self.root)}). Earlier checkpoints are intact: fix the problem and rerun the command to "
                "resume."
            ) from error
        self._whole[checkpoint.epoch] = True
        self._prune()

    def newest(self) -> Checkpoint | None:
        """Load the newest undamaged checkpoint, and warn of newer ones that are damaged.

        Returns:
            The checkpoint, or None if there is none.

        Raises:
            UserError: if there are checkpoints, and all of them are damaged.
        """
        for aside in self._leftovers(".old"):
            recover_folder(aside.with_suffix(""))
        for leftover in [*self._leftovers(".old"), *self._leftovers(".tmp")]:
            shutil.rmtree(leftover, ignore_errors=True)
        damaged: list[str] = []
        for epoch in reversed(self.epochs()):
            damage = self._verify(epoch)
            if damage is not None:
                damaged.append(f"the checkpoint {self.root / str(epoch)} is damaged: {damage}")
                continue
            found = self._read(epoch)
            if damaged:
                logger.warning("%s\nResuming from the checkpoint of epoch %d.", "\n".join(damaged), epoch)
            self._prune()  # an earlier save may have been killed before it
            return found
        if damaged:
            reasons = "\n".join(damaged)
            raise UserError(
                f"none of the checkpoints in {self.root} can be read:\n{reasons}\n"
                "Delete that folder to start over, or name another --output-dir."
            )
        return None

    def load(self, epoch: int) -> Checkpoint:
        """Read the checkpoint of an epoch.

        Raises:
            UserError: if the checkpoint is damaged.
        """
        damage = self._verify(epoch)
        if damage is not None:
            folder = self.root / str(epoch)
            raise UserError(f"the checkpoint {folder} is damaged: {damage}. Delete that folder and rerun the command.")
        return self._read(epoch)

    def _read(self, epoch: int) -> Checkpoint:
        """Read a checkpoint that is not damaged."""
        folder = self.root / str(epoch)
        ema = folder / "ema.safetensors"
        return Checkpoint(
            epoch=epoch,
            weights=load_file(folder / "weights.safetensors"),
            ema=load_file(ema) if ema.exists() else {},
            state=torch.load(folder / "state.pt", weights_only=True, map_location="cpu"),
            score=json.loads((folder / "info.json").read_text())["score"],
        )

    def _leftovers(self, ending: str) -> list[Path]:
        """The folders that a killed save left; another folder with that ending, such as `best.old`, is the user's."""
        return [path for path in self.root.glob(f"*{ending}") if path.stem.isdecimal()]

    def _verify(self, epoch: int) -> str | None:
        """Compare a checkpoint with its checksums; returns a description of the damage, or None."""
        folder = self.root / str(epoch)
        try:
            expected = json.loads((folder / _CHECKSUMS).read_text(encoding="utf-8"))
            missing = sorted(_NEEDED - set(expected))
            wrong = missing or [name for name in sorted(expected) if sha256(folder / name) != expected[name]]
            damage = f"{', '.join(wrong)}: the checksum differs from the one that was written" if wrong else None
        except (OSError, ValueError, TypeError) as error:  # absent, unreadable, not JSON, or not a mapping
            damage = str(error)
        self._whole[epoch] = damage is None
        return damage

    def _prune(self) -> None:
        """Delete all but the newest and the best checkpoints, and damaged ones older than an undamaged one."""
        epochs = self.epochs()
        whole = [e for e in epochs if (self._whole[e] if e in self._whole else self._verify(e) is None)]
        keep = set(whole[-self.keep_last :])
        if self.keep_best:
            scored = [(s, e) for e in whole if (s := self._score(e)) is not None]
            keep |= {e for _, e in sorted(scored)[-self.keep_best :]}
        for epoch in epochs:
            if epoch not in keep and epoch < whole[-1]:
                shutil.rmtree(self.root / str(epoch), ignore_errors=True)

    def _score(self, epoch: int) -> float | None:
        score = json.loads((self.root / str(epoch) / "info.json").read_text())["score"]
        return None if score is None else float(score)


def _write(checkpoint: Checkpoint, folder: Path) -> None:
    save_file(_portable(checkpoint.weights), folder / "weights.safetensors")
    if checkpoint.ema:
        save_file(_portable(checkpoint.ema), folder / "ema.safetensors")
    torch.save(checkpoint.state, folder / "state.pt")
    (folder / "info.json").write_text(json.dumps({"epoch": checkpoint.epoch, "score": checkpoint.score}))
    sums = {file.name: sha256(file) for file in sorted(folder.iterdir())}
    (folder / _CHECKSUMS).write_text(json.dumps(sums, indent=1))


def _portable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value


def _free(folder: Path) -> str:
    """The free space on a folder's disk, for a message."""
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:.0f} MB free there"
    except OSError:
        return "free space unknown"
