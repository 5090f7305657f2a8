"""The record of an evaluation, its JSON file, and the gain between two evaluations."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sdpo.errors import UserError
from sdpo.run.directory import RunDirectory, strip, strips
from sdpo.system.durable import sync_tree, write_whole

FloatArray = NDArray[np.float64]

COSTS = ("images", "reward_queries", "denoiser_evaluations", "seconds")
"""What the run had spent when an evaluation was made; keys of its JSON file."""


@dataclass(frozen=True)
class ImageScores:
    """The scores of N images, drawn from fixed prompts and seeds.

    Attributes:
        prompts: the N prompts.
        seeds: the N image seeds.
        scores: by reward, by number of steps, float64 [N].
    """

    prompts: list[str]
    seeds: list[int]
    scores: dict[str, dict[int, FloatArray]]

    def mean(self, reward: str, steps: int) -> float:
        """The mean score of a reward at a number of steps."""
        values = self.scores[reward][steps].tolist()
        return sum(values) / len(values)

    def as_json(self) -> dict[str, Any]:
        """A mapping of plain values; numbers of steps become strings."""
        scores = {name: {str(s): v.tolist() for s, v in by_steps.items()} for name, by_steps in self.scores.items()}
        return {"prompts": self.prompts, "seeds": self.seeds, "scores": scores}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ImageScores:
        """The inverse of `as_json`; numbers of steps ascend.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: if the record is damaged.
        """
        scores = {
            str(name): {int(s): np.asarray(by_steps[s], dtype=np.float64) for s in sorted(by_steps, key=int)}
            for name, by_steps in (record.get("scores") or {}).items()
        }
        prompts, seeds = record.get("prompts") or [], record.get("seeds") or []
        return cls([str(p) for p in prompts], [int(s) for s in seeds], scores)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a run after an epoch.

    Attributes:
        epoch: 0 is the base model.
        seen: the scores of the training prompts' images.
        unseen: the scores of other prompts' images, where the evaluation drew them.
        costs: what the run had spent until then, by the names in `COSTS`.
        judge: the reward that is 1 where the right thing is recognised, else 0.
        monitors: by name, by number of steps; see `monitors`.
        monitored: images of each prompt that the monitors were measured on.
        strips: pictures on disk by number of steps, each a row of square tiles.
    """

    epoch: int
    seen: ImageScores
    unseen: ImageScores | None = None
    costs: dict[str, float] = field(default_factory=dict)
    judge: str | None = None
    monitors: dict[str, dict[int, float]] = field(default_factory=dict)
    monitored: int = 0
    strips: dict[int, Path] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """The means as `eval/<reward>/<steps>`, and the monitors as `monitor/<name>/<steps>`."""
        scores = {f"eval/{r}/{s}": self.seen.mean(r, s) for r, by_steps in self.seen.scores.items() for s in by_steps}
        return scores | {f"monitor/{n}/{s}": v for n, by_steps in self.monitors.items() for s, v in by_steps.items()}

    def as_json(self) -> dict[str, Any]:
        """A mapping of plain values; numbers of steps become strings."""
        record = {"epoch": self.epoch, **self.costs, "judge": self.judge, **self.seen.as_json()}
        if self.unseen is not None:
            record["unseen"] = self.unseen.as_json()
        if self.monitored:
            record["monitored"] = self.monitored
            record["monitors"] = {n: {str(s): v for s, v in by.items()} for n, by in self.monitors.items()}
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any], file: Path) -> Evaluation:
        """The inverse of `as_json`, with the pictures that lie beside the file.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: if the record is damaged.
        """
        unseen, judge = record.get("unseen"), record.get("judge")
        return cls(
            epoch=int(record["epoch"]),
            seen=ImageScores.from_json(record),
            unseen=ImageScores.from_json(unseen) if unseen else None,
            costs={name: float(record[name]) for name in COSTS if record.get(name) is not None},
            judge=None if judge is None else str(judge),
            monitors={
                str(name): {int(steps): float(by_steps[steps]) for steps in sorted(by_steps, key=int)}
                for name, by_steps in (record.get("monitors") or {}).items()
            },
            monitored=int(record.get("monitored", 0)),
            strips=strips(file),
        )


def write_evaluation(run: RunDirectory, evaluation: Evaluation, tiles: Mapping[int, Tensor]) -> None:
    """Write an evaluation's pictures and then its scores, so that scores are never without pictures.

    Args:
        run: the run's directory.
        evaluation: the record.
        tiles: the first images by number of steps, uint8 [n, H, W, 3].
    """
    file = run.evaluation(evaluation.epoch)
    file.with_suffix("").mkdir(parents=True, exist_ok=True)
    for steps, images in tiles.items():
        Image.fromarray(torch.cat(list(images), dim=1).numpy()).save(strip(file, steps))
    sync_tree(file.with_suffix(""))
    write_whole(file, json.dumps(evaluation.as_json()))


def read_evaluation(run: RunDirectory, epoch: int) -> Evaluation | None:
    """An evaluation that was written, or None if there is none.

    Raises:
        UserError: if the file is damaged.
    """
    file = run.evaluation(epoch)
    if not file.is_file():
        return None
    try:
        return Evaluation.from_json(json.loads(file.read_text(encoding="utf-8")), file)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}): delete it; the run then continues without its values") from error


def discard_evaluations_after(run: RunDirectory, epoch: int) -> None:
    """Delete the evaluations of later epochs, which a resumed run makes again, and half-written ones.

    A folder of pictures to which other files were added stays, with those.
    """
    for path in run.evaluations_after(epoch):
        if path.is_dir():
            for picture in strips(path.with_suffix(".json")).values():
                picture.unlink()
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()
        else:
            path.unlink()


def weighted_gain(base: Evaluation, now: Evaluation, weights: Mapping[str, float]) -> float | None:
    """The gain of the weighted rewards over the base model, in the base model's standard deviations.

    It is a mean over the numbers of steps and the images that both evaluations have, so it can be compared within a
    run whatever the rewards' scales are.

    Returns:
        None if the evaluations share no number of steps, as when a resumed run evaluates at other ones.
    """
    total = 0.0
    for name, weight in weights.items():
        common = {s: v for s, v in base.seen.scores[name].items() if s in now.seen.scores[name]}
        if not common:
            return None
        for steps, before in common.items():
            old, new = torch.from_numpy(before), torch.from_numpy(now.seen.scores[name][steps])
            count = min(len(old), len(new))
            std = old.std(correction=0).item() + 1e-8
            total += weight * (new[:count] - old[:count]).mean().item() / std / len(common)
    return total
