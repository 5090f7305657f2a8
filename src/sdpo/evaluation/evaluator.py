"""Evaluates the weights of a run: when, on which prompts and how many images, and what is recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from sdpo.config.sections import EvaluateConfig
from sdpo.evaluation.evaluate import Drawing, EvaluatedImages, evaluate
from sdpo.evaluation.record import Evaluation, Sampled, Weights
from sdpo.prompts import Prompt
from sdpo.rewards.base import PlacedReward


@dataclass(frozen=True)
class Evaluator:
    """Evaluates the weights that would be saved: their average where the run keeps one.

    Attributes:
        settings: the section `evaluate` of the configuration.
        epochs: the last epoch of the run.
        prompts: the prompts that every evaluation draws.
        unseen: the prompts that are evaluated before the first and after the last epoch only; may be empty.
        rewards: the trained rewards, the held-out rewards and the judge, by name.
        averaged: gives a context in which the network has the averaged weights.
        keeps_average: whether the run keeps an average of the weights.
        starts_from_lora: whether the weights before training are those of a LoRA, and not the bare base model.
    """

    settings: EvaluateConfig
    epochs: int
    prompts: Sequence[Prompt]
    unseen: Sequence[Prompt]
    rewards: Mapping[str, PlacedReward]
    averaged: Callable[[], AbstractContextManager[Any]]
    keeps_average: bool = False
    starts_from_lora: bool = False

    @property
    def texts(self) -> list[str]:
        """The prompt of each image that is scored before the first and after the last epoch."""
        return [prompt.text for prompt in self.prompts] * self.settings.images_per_prompt

    def is_due(self, epoch: int) -> bool:
        """Whether the weights after an epoch are evaluated."""
        return epoch in (0, self.epochs) or bool(self.settings.every and epoch % self.settings.every == 0)

    def __call__(
        self, epoch: int, drawing: Drawing, costs: Mapping[str, float], full: bool = False
    ) -> tuple[Evaluation, dict[int, Tensor]]:
        """Evaluate the weights after an epoch.

        Args:
            epoch: the epoch; 0 is before training.
            drawing: the model and how it draws.
            costs: the costs of the run until then, by the names in `COSTS`.
            full: evaluate as before the first and after the last epoch: on more images, and on the unseen prompts too.

        Returns:
            The record, and the first images by number of steps, uint8 [n, H, W, 3].

        Raises:
            DivergenceError: if an image is not finite.
            RewardError: if a reward fails.
        """
        full = full or epoch in (0, self.epochs)
        model: Literal["base", "start", "trained"] = (
            "trained" if epoch else "start" if self.starts_from_lora else "base"
        )
        with self.averaged():
            return self._evaluate(epoch, drawing, costs, full, Weights(model, self.keeps_average and epoch > 0))

    def base(self, drawing: Drawing, costs: Mapping[str, float]) -> tuple[Evaluation, dict[int, Tensor]]:
        """Evaluate the bare base model as before the first epoch, whatever the weights are now.

        Args:
            drawing: the model and how it draws.
            costs: the costs of the run until then, by the names in `COSTS`.

        Returns:
            The record, with epoch 0, and the first images by number of steps, uint8 [n, H, W, 3].

        Raises:
            DivergenceError: if an image is not finite.
            RewardError: if a reward fails.
        """
        with drawing.policy.backbone.base():
            return self._evaluate(0, drawing, costs, True, Weights("base"))

    def _evaluate(
        self, epoch: int, drawing: Drawing, costs: Mapping[str, float], full: bool, weights: Weights
    ) -> tuple[Evaluation, dict[int, Tensor]]:
        settings, backbone = self.settings, drawing.policy.backbone
        per_prompt = settings.images_per_prompt if full else settings.images_between

        def score(drawing: Drawing, prompts: Sequence[Prompt], images: int, monitored: int = 0) -> EvaluatedImages:
            return evaluate(
                drawing,
                prompts,
                self.rewards,
                steps=settings.steps,
                images_per_prompt=images,
                monitored=monitored,
            )

        seen = score(drawing, self.prompts, per_prompt, settings.monitored)
        parts = [seen]
        unseen = score(drawing, self.unseen, per_prompt) if full and self.unseen else None
        other = None
        if full and drawing.training.level(backbone) != drawing.sampler.level(backbone):
            by_training = replace(drawing, sampler=drawing.training)
            parts.append(score(by_training, self.prompts, settings.images_between))
            other = Sampled(parts[-1].scores, drawing.conditions(drawing.training))
        record = Evaluation(
            epoch=epoch,
            seen=seen.scores,
            unseen=unseen.scores if unseen is not None else None,
            costs=dict(costs),
            judge=settings.judge,
            monitors=seen.monitors,
            monitored=settings.monitored,
            conditions=drawing.conditions(drawing.sampler),
            weights=weights,
            training_sampler=other,
            network_evaluations=sum(part.network_evaluations for part in [*parts, *([unseen] if unseen else [])]),
        )
        return record, seen.tiles
