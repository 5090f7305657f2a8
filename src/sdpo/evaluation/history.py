"""The evaluations of a run in order: each is written to the run's directory and compared with the base model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sdpo.errors import UserError
from sdpo.evaluation.conditions import Conditions, differences
from sdpo.evaluation.evaluate import image_seeds
from sdpo.evaluation.record import (
    GAIN,
    Evaluation,
    ImageScores,
    read_evaluation,
    unpaired,
    weighted_gain,
    write_evaluation,
)
from sdpo.run.directory import RunDirectory
from sdpo.system.log import logger


class EvaluationHistory:
    """Records the evaluations of a run.

    Args:
        run: the run's directory.
        weights: the weight of each trained reward by name.
        monitored: the number of images of each prompt that this run's monitors are measured on.
        writes: whether this process writes the files.

    Attributes:
        latest: the latest evaluation since the run was started or resumed; None before the first one.
    """

    def __init__(self, run: RunDirectory, weights: Mapping[str, float], monitored: int, writes: bool) -> None:
        self.latest: Evaluation | None = None
        self._base: Evaluation | None = None  # before the first epoch
        self._run = run
        self._weights = weights
        self._monitored = monitored
        self._writes = writes

    def resume(self, epoch: int) -> None:
        """Read the base model's and the latest evaluation of a run that is resumed.

        Args:
            epoch: the epoch after which the run is resumed.

        Raises:
            UserError: if the base model's evaluation is damaged; another damaged one is left out with a warning.
        """
        self.latest = read_evaluation(self._run.evaluation(0))
        self._base = read_evaluation(self._run.base_evaluation) or self.latest
        for number in range(1, epoch + 1):
            try:
                self.latest = read_evaluation(self._run.evaluation(number)) or self.latest
            except UserError as error:  # only callbacks see it; gain and stopping rules need the base model's
                logger.warning("%s", error)

    def lacks_base(self, conditions: Conditions, texts: Sequence[str]) -> list[str]:
        """The reasons why the next evaluations cannot be compared with the base model's, in words.

        Args:
            conditions: how the images of the next evaluations are drawn and scored.
            texts: the prompt of each image of the next evaluations.
        """
        if self._base is None:
            return ["the base model was not evaluated"]
        if self._base.weights is not None and self._base.weights.model != "base":
            return ["the run starts from a LoRA"]
        found = differences(self._base.conditions, conditions)
        planned = ImageScores(list(texts), image_seeds(texts), {})
        return found if planned.pairs_with(self._base.seen) else [*found, "prompts or seeds"]

    def comparable(self, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The rows of metrics without what was measured on images that do not form pairs with the base model's.

        Such rows are those of a run that was resumed with another sampler or other prompts, or whose first epochs an
        earlier version evaluated: they cannot be held against the base model's metrics.

        Args:
            rows: the rows of the epochs so far.
        """
        return [row if self._is_comparable(row) else _without_evaluation(row) for row in rows]

    def _is_comparable(self, row: Mapping[str, Any]) -> bool:
        if self._base is None or not any(name.startswith("eval/") for name in row):
            return True
        try:
            evaluation = read_evaluation(self._run.evaluation(row["epoch"]))
        except UserError:  # `resume` has warned of it
            return True
        return evaluation is None or not unpaired(self._base, evaluation)

    def record_base(self, evaluation: Evaluation, tiles: Mapping[int, Tensor]) -> None:
        """Write the evaluation of the bare base model, with which the following evaluations are compared."""
        self._base = evaluation
        if self._writes:
            write_evaluation(self._run.base_evaluation, evaluation, tiles)

    def record(self, evaluation: Evaluation, tiles: Mapping[int, Tensor]) -> dict[str, float]:
        """Write an evaluation, and compare it with the base model's.

        Args:
            evaluation: the evaluation; that of epoch 0 is the base model's unless the run starts from a LoRA.
            tiles: the first images by number of steps, uint8 [n, H, W, 3].

        Returns:
            The metrics of the evaluation, with the weighted gain where it can be compared with the base model's.
        """
        if evaluation.epoch == 0 and self._base is None:
            self._base = evaluation
        if self._writes:
            write_evaluation(self._run.evaluation(evaluation.epoch), evaluation, tiles)
        self.latest, metrics = evaluation, evaluation.metrics()
        gain = weighted_gain(self._base, evaluation, self._weights) if self._base is not None else None
        return metrics if gain is None else {**metrics, GAIN: gain}

    def base_metrics(self) -> dict[str, float]:
        """The base model's metrics, without monitors that were measured on another number of images than now."""
        if self._base is None:
            return {}
        same = self._base.monitored == self._monitored
        return {n: v for n, v in self._base.metrics().items() if same or not n.startswith("monitor/")}


def _without_evaluation(row: Mapping[str, Any]) -> dict[str, Any]:
    return {n: value for n, value in row.items() if n != GAIN and not n.startswith(("eval/", "monitor/"))}
