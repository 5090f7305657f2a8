"""Evaluates the weights of a run: when, on which prompts and how many images, and what is recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sdpo.config.sections import EvaluateConfig
from sdpo.evaluation.evaluate import Drawing, evaluate
from sdpo.evaluation.record import Evaluation
from sdpo.prompts import Prompt
from sdpo.rewards.base import PlacedReward


@dataclass(frozen=True)
class Evaluator:
    """Evaluates the weights that would be saved: their average where the run keeps one.

    Attributes:
        settings: the section `evaluate` of the configuration.
        epochs: the last epoch of the run.
        prompts: the training prompts.
        unseen: the prompts that are evaluated before the first and after the last epoch only; may be empty.
        rewards: the trained rewards, the held-out rewards and the judge, by name.
        averaged: gives a context in which the network has the averaged weights.
    """

    settings: EvaluateConfig
    epochs: int
    prompts: Sequence[Prompt]
    unseen: Sequence[Prompt]
    rewards: Mapping[str, PlacedReward]
    averaged: Callable[[], AbstractContextManager[Any]]

    def is_due(self, epoch: int) -> bool:
        """Whether the weights after an epoch are evaluated."""
        return epoch in (0, self.epochs) or bool(self.settings.every and epoch % self.settings.every == 0)

    def __call__(
        self, epoch: int, drawing: Drawing, costs: Mapping[str, float], full: bool = False
    ) -> tuple[Evaluation, dict[int, Tensor]]:
        """Evaluate the weights after an epoch.

        Args:
            epoch: the epoch; 0 is the base model.
            drawing: the model and how it draws.
            costs: the costs of the run until then, by the names in `COSTS`.
            full: evaluate as before the first and after the last epoch: on more images, and on the unseen prompts too.

        Returns:
            The record, and the first images by number of steps, uint8 [n, H, W, 3].

        Raises:
            DivergenceError: if an image is not finite.
            RewardError: if a reward fails.
        """
        settings = self.settings
        full = full or epoch in (0, self.epochs)
        per_prompt = settings.images_per_prompt
        if not full and settings.images_per_prompt_between is not None:
            per_prompt = settings.images_per_prompt_between
        with self.averaged():
            seen = evaluate(
                drawing,
                self.prompts,
                self.rewards,
                steps=settings.steps,
                images_per_prompt=per_prompt,
                monitored=settings.monitored,
            )
            unseen = None
            if full and self.unseen:
                found = evaluate(drawing, self.unseen, self.rewards, steps=settings.steps, images_per_prompt=per_prompt)
                unseen = found.scores
        record = Evaluation(
            epoch=epoch,
            seen=seen.scores,
            unseen=unseen,
            costs=dict(costs),
            judge=settings.judge,
            monitors=seen.monitors,
            monitored=settings.monitored,
        )
        return record, seen.tiles
