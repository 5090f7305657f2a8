"""Evaluation: fixed images, whatever the number of processes; gains that compare rewards of any scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.plane_model import Plane
from torch import Tensor

from sdpo.evaluation.evaluate import Drawing, evaluate
from sdpo.evaluation.record import Evaluation, ImageScores, weighted_gain
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.prompts import Prompt
from sdpo.rewards import PlacedReward

PROMPTS = [Prompt("a", {"n": 1}), Prompt("b", {"n": 2}), Prompt("c", {"n": 3})]


class One:
    """One of several processes; what it hands in is kept."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count, self.given = rank, count, []  # type: ignore[var-annotated]

    def gather(self, items: list[Any]) -> list[Any]:
        self.given.append(items)
        return items if self.count == 1 else items + [(i, 0.0) for i in range(99) if i not in dict(items)]


def scored(rank: int, count: int, micro_batch: int = 4) -> dict[int, float]:
    def first(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        assert [m["n"] for m in metadata] == ["abc".index(p) + 1 for p in prompts]
        return images[:, 0, 0, 0]

    process = One(rank, count)
    policy = Policy(Plane())
    given: Any = process
    try:
        drawing = Drawing(policy, PromptEmbeddings(policy.backbone), 1.0, micro_batch, 32, given)
        evaluate(drawing, PROMPTS, {"first": PlacedReward("first", first)}, steps=[2], images_per_prompt=2)
    except TypeError:
        pass  # the tiles of the other processes, which are not there
    return dict(process.given[0])


def test_an_image_depends_on_its_seed_alone() -> None:
    whole = scored(0, 1)
    assert sorted(whole) == list(range(6)) and len(set(whole.values())) == 6
    assert scored(0, 1, micro_batch=1) == pytest.approx(whole)
    shared: dict[int, float] = {}
    for rank in range(4):
        shared |= scored(rank, 4)
    assert shared == pytest.approx(whole)


def test_a_process_without_images_takes_part() -> None:
    assert scored(7, 8) == {}


def evaluation(scores: dict[str, dict[int, list[float]]]) -> Evaluation:
    arrays = {name: {s: np.array(v) for s, v in by_steps.items()} for name, by_steps in scores.items()}
    return Evaluation(0, ImageScores([], [], arrays))


def test_the_gain_weighs_rewards_in_standard_deviations_of_the_base() -> None:
    base = evaluation({"a": {1: [0.0, 2.0], 2: [0.0, 2.0]}, "b": {1: [0.0, 200.0], 2: [0.0, 200.0]}})
    now = evaluation({"a": {1: [1.0], 2: [3.0]}, "b": {1: [100.0], 2: [-100.0]}})
    assert weighted_gain(base, now, {"a": 1.0}) == pytest.approx(2.0)  # of the first image alone, which both have
    assert weighted_gain(base, now, {"a": -1.0}) == pytest.approx(-2.0)
    assert weighted_gain(base, now, {"a": 1.0, "b": 5.0}) == pytest.approx(2.0)
    assert weighted_gain(base, base, {"a": 1.0, "b": 5.0}) == 0
    assert torch.tensor(weighted_gain(base, now, {"b": 1.0})) == pytest.approx(0.0)
