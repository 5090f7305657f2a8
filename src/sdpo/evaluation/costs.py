"""The costs of a run's evaluations, which are counted apart from those of its training."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sdpo.evaluation.record import Evaluation
from sdpo.loop.counters import Counters


class EvaluationCosts:
    """Counts the images, reward queries, network evaluations and seconds of a run's evaluations.

    Attributes:
        total: the costs so far, over all processes; `images` are those that rewards scored.
    """

    def __init__(self) -> None:
        self.total = Counters()

    def counting(self, evaluate: Callable[[], tuple[Evaluation, Any]]) -> tuple[Evaluation, Any]:
        """Make an evaluation, and add its costs; returns what it returns."""
        start = time.perf_counter()
        evaluation, tiles = evaluate()
        images, queries = evaluation.scored
        self.total = Counters(
            images=self.total.images + images,
            reward_queries=self.total.reward_queries + queries,
            denoiser_evaluations=self.total.denoiser_evaluations + evaluation.network_evaluations,
            seconds=self.total.seconds + time.perf_counter() - start,
        )
        return evaluation, tiles

    def row(self) -> dict[str, float]:
        """The costs so far by their names in `metrics.jsonl`."""
        return {f"evaluation/{name}": value for name, value in vars(self.total).items()}
