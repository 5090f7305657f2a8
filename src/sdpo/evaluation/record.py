"""The record of an evaluation, its JSON file, and the gain from one evaluation to another."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sdpo.errors import UserError
from sdpo.evaluation.conditions import Conditions, differences
from sdpo.loop.counters import Counters
from sdpo.run.directory import RunDirectory, strip, strips
from sdpo.system.durable import sync_tree, write_whole

FloatArray = NDArray[np.float64]

COSTS = tuple(field.name for field in dataclasses.fields(Counters))
"""The names of the costs of a run; keys in the JSON file of an evaluation, which has those until then."""

GAIN = "eval_gain"
"""The name of the weighted gain over the base model in `metrics.jsonl`."""


@dataclass(frozen=True)
class ImageScores:
    """The scores of N images, drawn from fixed prompts and seeds.

    Attributes:
        prompts: the N prompts.
        seeds: the N image seeds.
        scores: the scores by reward and number of steps, float64 [N].
    """

    prompts: list[str]
    seeds: list[int]
    scores: dict[str, dict[int, FloatArray]]

    def mean(self, reward: str, steps: int) -> float:
        """The mean score of a reward at a number of steps."""
        values = self.scores[reward][steps].tolist()
        return sum(values) / len(values)

    def pairs_with(self, other: ImageScores) -> bool:
        """Whether the images have equal prompts and seeds, as far as both evaluations have images."""
        count = min(len(self.prompts), len(other.prompts))
        mine, theirs = ((e.prompts[:count], e.seeds[:count]) for e in (self, other))
        return mine == theirs

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
class Weights:
    """The weights that an evaluation drew its images with.

    Attributes:
        model: `base`, the bare base model; `start`, the base model with the LoRA that the run starts from; `trained`.
        averaged: whether they are the average of the weights over the optimizer steps.
        lora_strength: the factor of the LoRA's change of the weights.
    """

    model: Literal["base", "start", "trained"]
    averaged: bool = False
    lora_strength: float = 1.0


@dataclass(frozen=True)
class Sampled:
    """The scores of images that another sampler than the evaluation's own drew.

    Attributes:
        scores: the scores.
        conditions: how the images were drawn and scored.
    """

    scores: ImageScores
    conditions: Conditions

    def as_json(self) -> dict[str, Any]:
        """A mapping of plain values."""
        return {"conditions": self.conditions.as_json(), **self.scores.as_json()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Sampled:
        """The inverse of `as_json`."""
        return cls(ImageScores.from_json(record), Conditions.from_json(record["conditions"]))


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a run after an epoch.

    Attributes:
        epoch: the epoch; 0 is before training.
        seen: the scores of the evaluated prompts' images.
        unseen: the scores of other prompts' images; None where the evaluation drew none.
        costs: the costs of the run until then, by the names in `COSTS`.
        judge: the reward that is 1 where an image shows what its prompt names, else 0; None where there is no such
            reward.
        monitors: the monitors by name and number of steps.
        monitored: the number of images of each prompt that the monitors were measured on.
        strips: the pictures on disk by number of steps, each a row of square tiles.
        conditions: how the images were drawn and scored; None in records of earlier versions.
        weights: the weights that drew the images; None in records of earlier versions.
        training_sampler: the evaluated prompts' images as the training sampler draws them; None where the evaluation
            drew none, or that sampler is the evaluation's own.
        network_evaluations: the network evaluations that the evaluation took, for one latent each; 0 in records of
            earlier versions.
    """

    epoch: int
    seen: ImageScores
    unseen: ImageScores | None = None
    costs: dict[str, float] = field(default_factory=dict)
    judge: str | None = None
    monitors: dict[str, dict[int, float]] = field(default_factory=dict)
    monitored: int = 0
    strips: dict[int, Path] = field(default_factory=dict)
    conditions: Conditions | None = None
    weights: Weights | None = None
    training_sampler: Sampled | None = None
    network_evaluations: int = 0

    @property
    def scored(self) -> tuple[int, int]:
        """The images that the evaluation scored, and the scores."""
        other = self.training_sampler.scores if self.training_sampler is not None else None
        scores = [v for s in (self.seen, self.unseen, other) if s for by in s.scores.values() for v in by.values()]
        images = [len(s.prompts) * len(next(iter(s.scores.values()), {})) for s in (self.seen, self.unseen, other) if s]
        return sum(images), sum(map(len, scores))

    def metrics(self) -> dict[str, float]:
        """The means as `eval/<reward>/<steps>`, and the monitors as `monitor/<name>/<steps>`."""
        scores = {f"eval/{r}/{s}": self.seen.mean(r, s) for r, by_steps in self.seen.scores.items() for s in by_steps}
        return scores | {f"monitor/{n}/{s}": v for n, by_steps in self.monitors.items() for s, v in by_steps.items()}

    def as_json(self) -> dict[str, Any]:
        """A mapping of plain values; numbers of steps become strings."""
        record = {"epoch": self.epoch, **self.costs, "judge": self.judge, **self.seen.as_json()}
        if self.conditions is not None:
            record["conditions"] = self.conditions.as_json()
        if self.weights is not None:
            record["weights"] = dataclasses.asdict(self.weights)
        if self.network_evaluations:
            record["network_evaluations"] = self.network_evaluations
        if self.training_sampler is not None:
            record["training_sampler"] = self.training_sampler.as_json()
        if self.unseen is not None:
            record["unseen"] = self.unseen.as_json()
        if self.monitored:
            record["monitored"] = self.monitored
            record["monitors"] = {n: {str(s): v for s, v in by.items()} for n, by in self.monitors.items()}
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any], file: Path) -> Evaluation:
        """The inverse of `as_json`, with the pictures that lie beside the file; numbers of steps ascend.

        Args:
            record: the content of the file.
            file: the file.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: if the record is damaged.
        """
        unseen, judge, other = record.get("unseen"), record.get("judge"), record.get("training_sampler")
        conditions, weights = record.get("conditions"), record.get("weights")
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
            conditions=Conditions.from_json(conditions) if conditions else None,
            weights=Weights(**weights) if weights else None,
            training_sampler=Sampled.from_json(other) if other else None,
            network_evaluations=int(record.get("network_evaluations", 0)),
        )


def write_evaluation(file: Path, evaluation: Evaluation, tiles: Mapping[int, Tensor]) -> None:
    """Write an evaluation's pictures and then its scores, so that scores are never without pictures.

    Args:
        file: the JSON file, in the run's folder of evaluations.
        evaluation: the record.
        tiles: the first images by number of steps, uint8 [n, H, W, 3].
    """
    file.with_suffix("").mkdir(parents=True, exist_ok=True)
    for steps, images in tiles.items():
        Image.fromarray(torch.cat(list(images), dim=1).numpy()).save(strip(file, steps))
    sync_tree(file.with_suffix(""))
    write_whole(file, json.dumps(evaluation.as_json()))


def read_evaluation(file: Path) -> Evaluation | None:
    """Read an evaluation; None if there is no such file.

    Raises:
        UserError: if the file is damaged.
    """
    if not file.is_file():
        return None
    try:
        return Evaluation.from_json(json.loads(file.read_text(encoding="utf-8")), file)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}): delete it, and the run continues without its values") from error


def discard_evaluations_after(run: RunDirectory, epoch: int) -> None:
    """Delete the evaluations of epochs after `epoch`, which a resumed run makes again, and half-written ones.

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


def unpaired(one: Evaluation, other: Evaluation) -> list[str]:
    """The reasons why the images of two evaluations do not form pairs, in words; empty if they do.

    Images are paired if they have the same prompt and seed, and were drawn and scored under the same conditions. One
    evaluation may have fewer images of each prompt than the other.
    """
    found = differences(one.conditions, other.conditions)
    return found if one.seen.pairs_with(other.seen) else [*found, "prompts or seeds"]


def weighted_gain(base: Evaluation, now: Evaluation, weights: Mapping[str, float]) -> float | None:
    """The gain of the weighted rewards over the base model, in the base model's standard deviations.

    The gain is a mean over the numbers of steps and the images that both evaluations have. It can be compared within a
    run, whatever the rewards' scales are.

    Args:
        base: the evaluation of the base model.
        now: the evaluation of the trained model, as it was made: its order of steps decides the order of summation, so
            that a resumed run, which reads `base` from its file, rounds as the uninterrupted one.
        weights: the weight of each trained reward by name.

    Returns:
        The gain, or None if the evaluations share no number of steps, as when a resumed run evaluates at other ones, or
        were made under conditions that differ.
    """
    if unpaired(base, now):
        return None
    total = 0.0
    for name, weight in weights.items():
        before, after = base.seen.scores.get(name, {}), now.seen.scores[name]
        common = [steps for steps in after if steps in before]
        if not common:
            return None
        for steps in common:
            old, new = torch.from_numpy(before[steps]), torch.from_numpy(after[steps])
            count = min(len(old), len(new))
            std = old.std(correction=0).item() + 1e-8
            total += weight * (new[:count] - old[:count]).mean().item() / std / len(common)
    return total
