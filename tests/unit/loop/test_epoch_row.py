"""The costs of a run over several processes, and the row of an epoch."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.one_process import OneProcess
from torch import Tensor

from sdpo.loop.counters import Counters
from sdpo.loop.divergence import NotFiniteError
from sdpo.loop.epoch_row import EpochRewards, epoch_row


class OfThree(OneProcess):
    """One of three processes, of which the others have half as much."""

    count = 3

    def mean(self, tensor: Tensor) -> Tensor:
        return (tensor + tensor / 2 + tensor / 2) / 3


def scores(first: float | None = 1.0, last: float = 2.0) -> EpochRewards:
    ends = torch.full((2, 2), last)
    return EpochRewards(first=None if first is None else torch.full((2, 2), first), last=ends, raw={"a": ends.mean()})


def test_counts_add_up_over_processes_and_epochs_and_seconds_over_epochs() -> None:
    spent = Counters(images=4, reward_queries=10, denoiser_evaluations=2**40, seconds=1.5)
    once = Counters().plus(spent, OfThree())
    assert once == Counters(8, 20, 2**41, 1.5)
    assert once.plus(spent, OfThree()) == Counters(16, 40, 2**42, 3.0)
    assert {type(value) for value in vars(once).values()} == {int, float}, "counts are written as whole numbers"


def test_a_row_has_its_keys_in_order_and_means_over_processes() -> None:
    update = {"loss": torch.tensor(0.5)}
    row = epoch_row(3, Counters(1, 2, 3, 4.0), update, scores(first=1.5, last=3.0), 1e-3, OfThree())
    expected = {
        "epoch": 3,
        "images": 1,
        "reward_queries": 2,
        "denoiser_evaluations": 3,
        "seconds": 4.0,
        "train/loss": 0.5,
        "train/clip_fraction": None,
        "train/on_policy_log_ratio": None,
        "train/learning_rate": 1e-3,
        "reward/first_step": 1.0,
        "reward/last_step": 2.0,
        "reward/a": 2.0,
    }
    assert json.dumps(row) == json.dumps(expected)


def test_a_plan_without_the_first_step_claims_nothing_about_it() -> None:
    assert epoch_row(1, Counters(), {}, scores(first=None), 1e-3, OneProcess())["reward/first_step"] is None


def test_metrics_that_are_not_finite_are_named() -> None:
    update = {"loss": torch.tensor(float("nan")), "fine": torch.tensor(0.0)}
    with pytest.raises(NotFiniteError, match="^train/loss, reward/last_step, reward/a$"):
        epoch_row(1, Counters(), update, scores(last=float("inf")), 1e-3, OneProcess())
