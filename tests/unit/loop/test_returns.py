"""Returns over the groups of all processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.one_process import OneProcess
from helpers.threaded_processes import on_every_rank
from torch import Tensor

from sdpo.loop.normalization import normalize
from sdpo.loop.returns import epoch_returns
from sdpo.method.advantages import StepwiseNormalizer
from sdpo.method.algorithms import GRPO
from sdpo.method.credit import Credit, GainCredit
from sdpo.method.reward_plans import AllSteps
from sdpo.method.types import Trajectories

INDEX = [5, 0, 3, 1, 4, 2]
DENSE = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))  # by place in INDEX


def share(rows: slice) -> tuple[Tensor, Trajectories]:
    """The groups of one process: dense rewards and trajectories."""
    index, dense = INDEX[rows], DENSE[rows]
    stochastic = torch.ones(4, dtype=torch.bool)
    prompts = [f"p{i % 2}" for i in index]
    return dense, Trajectories(prompts, [{}] * len(index), torch.tensor(index), torch.zeros(0), dense, stochastic)


def by_index(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts)[torch.tensor(INDEX).argsort()]


@pytest.mark.parametrize("credit", [GainCredit(0.5), GainCredit(0.5, "fitted")])
def test_any_number_of_processes_makes_the_returns_and_advantages_of_one(credit: GainCredit) -> None:
    algorithm = GRPO(credit=credit, reward_plan=AllSteps(), branches=3)

    def on(processes: Any, rows: slice) -> tuple[Tensor, Tensor]:
        dense, trajectories = share(rows)
        returns = epoch_returns(algorithm, dense, trajectories, processes)
        normalizer = StepwiseNormalizer(buffer_size=8, min_count=4)
        return returns, normalize(returns, trajectories, normalizer, processes)

    alone = on(OneProcess(), slice(None))
    assert torch.equal(by_index([alone[0]]), algorithm.returns(by_index([DENSE])))
    for count in (2, 3):
        size = 6 // count
        shared = on_every_rank(count, lambda p, n=size: on(p, slice(p.rank * n, (p.rank + 1) * n)))  # type: ignore[misc]
        for one, together in zip(alone, zip(*shared, strict=True), strict=True):
            assert torch.equal(torch.cat(together), one)


@dataclass(frozen=True)
class Own(Credit):
    """A rule of a user's own, which knows nothing of other groups."""

    def __call__(self, dense: Tensor, discount: float) -> Tensor:
        assert dense is DENSE
        return dense * discount


def test_another_rule_gets_the_rewards_of_its_process_as_they_are() -> None:
    dense, trajectories = DENSE, share(slice(None))[1]

    class Apart(OneProcess):
        def gather(self, items: list[Any]) -> list[Any]:
            raise AssertionError

    algorithm = GRPO(credit=Own(), discount=0.5)
    assert torch.equal(epoch_returns(algorithm, dense, trajectories, Apart()), dense / 2)
