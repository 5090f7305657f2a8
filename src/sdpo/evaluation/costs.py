"""The costs of a run's evaluations, which are counted apart from those of its training."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sdpo.distributed.processes import Processes
from sdpo.evaluation.record import Evaluation
from sdpo.loop.counters import Counters
from sdpo.loop.policy import Policy


class EvaluationCosts:
    """Counts the images, reward queries, network evaluations and seconds of a run's evaluations.

    Args:
        policy: the policy that draws the images.
        processes: the processes that share the work.

    Attributes:
        total: the costs so far, over all processes; `images` are those that rewards scored.
    """

    def __init__(self, policy: Policy, processes: Processes) -> None:
        self.total = Counters()
        self._policy = policy
        self._processes = processes

    def counting(self, evaluate: Callable[[], tuple[Evaluation, Any]]) -> tuple[Evaluation, Any]:
        """Make an evaluation, and add its costs; returns what it returns."""
        start, before = time.perf_counter(), self._policy.evaluations
        evaluation, tiles = evaluate()
        images, queries = evaluation.scored if self._processes.is_main else (0, 0)  # every process knows all images
        spent = Counters(images, queries, self._policy.evaluations - before, time.perf_counter() - start)
        self.total = self.total.plus(spent, self._processes)
        return evaluation, tiles

    def row(self) -> dict[str, float]:
        """The costs so far by their names in `metrics.jsonl`."""
        return {f"evaluation/{name}": value for name, value in vars(self.total).items()}
