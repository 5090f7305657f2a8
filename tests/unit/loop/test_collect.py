"""Advantages over the groups of all processes, and scores that are gathered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.one_process import OneProcess
from torch import Tensor

from sdpo.errors import UserError
from sdpo.loop.collect import gather_scores
from sdpo.loop.normalization import normalize
from sdpo.method.advantages import Normalizer
from sdpo.method.types import Trajectories


class Ranks(Normalizer):
    """Gives each group its place in the batch, and keeps the prompts it was given."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def update(self, prompts: list[str], returns: Tensor) -> Tensor:
        self.prompts = prompts
        return torch.arange(len(prompts)).float().reshape(-1, 1, 1).expand_as(returns) + returns / 100


class Together(OneProcess):
    """A process whose collectives add the items of another one."""

    def __init__(self, others: list[Any], before: bool) -> None:
        super().__init__()
        self._others, self._before = others, before

    def gather(self, items: list[Any]) -> list[Any]:
        return self._others + items if self._before else items + self._others


def share(index: list[int]) -> tuple[Tensor, Trajectories]:
    returns = torch.tensor(index).float().reshape(-1, 1, 1).expand(-1, 2, 3)
    trajectories = Trajectories(
        [f"p{i}" for i in index], [{}] * len(index), torch.tensor(index), torch.zeros(0), returns,
        torch.ones(3, dtype=torch.bool),
    )  # fmt: skip
    return returns, trajectories


def test_the_normaliser_sees_all_groups_by_their_index_on_every_process() -> None:
    shares = [[5, 0, 3], [4, 2, 1]]
    for rank in range(2):
        (own, trajectories), (others, theirs) = share(shares[rank]), share(shares[1 - rank])
        items = list(zip(theirs.sample_index.tolist(), theirs.prompts, others, strict=True))
        normalizer = Ranks()
        found = normalize(own, trajectories, normalizer, Together(items, before=rank == 1))
        assert normalizer.prompts == [f"p{i}" for i in range(6)]
        torch.testing.assert_close(found, own * 1.01)


def test_scores_are_concatenated_by_rank() -> None:
    processes = Together([{"a": torch.tensor([1.0]), "b": torch.tensor([2.0])}], before=True)
    found = gather_scores({"b": torch.tensor([3.0, 4.0]), "a": torch.tensor([5.0, 6.0])}, processes)
    assert {name: values.tolist() for name, values in found.items()} == {"b": [2, 3, 4], "a": [1, 5, 6]}


class Wrong(Normalizer):
    """Returns what no algorithm can use."""

    def __init__(self, advantages: Tensor) -> None:
        self.advantages = advantages

    def update(self, prompts: list[str], returns: Tensor) -> Tensor:
        return self.advantages


@pytest.mark.parametrize(
    ("advantages", "words"),
    [(torch.zeros(2, 1, 3), r"shape \(2, 1, 3\)"), (torch.full((2, 2, 3), float("nan")), "values that are not finite")],
)
def test_a_normaliser_that_returns_something_else_is_named(advantages: Tensor, words: str) -> None:
    returns, trajectories = share([0, 1])
    with pytest.raises(UserError, match=f"the normaliser Wrong returned .*{words}"):
        normalize(returns, trajectories, Wrong(advantages), OneProcess())
