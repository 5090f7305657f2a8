"""What a checkpoint holds, and what a resumed run takes from it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from sdpo import Config
from sdpo.assembly.micro_batches import MicroBatches
from sdpo.assembly.snapshot import Spent, restore_snapshot, take_snapshot
from sdpo.loop.counters import Counters


class Kept:
    """A part with a state."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


class Optimizer(Kept):
    def __init__(self, state: Any, value: float) -> None:
        super().__init__(state)
        self.value = {"w": torch.tensor(value)}

    def weights(self) -> dict[str, torch.Tensor]:
        return self.value

    def average(self) -> dict[str, torch.Tensor]:
        return {"w": self.value["w"] / 2}

    def take(self, weights: dict[str, torch.Tensor], average: dict[str, torch.Tensor]) -> None:
        self.value, self.taken = weights, average


def parts(state: str, value: float, sample: Any = "auto", update: Any = "auto") -> Any:
    config = Config.load("emoji", sample={"micro_batch": sample}, train={"micro_batch": update})
    return SimpleNamespace(
        config=config,
        optimization=Optimizer(state, value),
        normalizer=Kept(state),
        mix=Kept(state),
        gradient=None,
        micro_batches=MicroBatches(sample=7, update=8),
        backbone=SimpleNamespace(start_digest=lambda: None),
    )


def test_all_state_comes_back_and_micro_batches_that_were_found_are_kept() -> None:
    spent = Spent(Counters(1, 2, 3, 4.5), Counters(5, 6, 7, 8.5))
    checkpoint = take_snapshot(parts("before", 1.0), 5, spent, MicroBatches(2, 3), 0.25)
    assert (checkpoint.epoch, checkpoint.score) == (5, 0.25)
    assert checkpoint.state == {
        "updater": "before",
        "normalizer": "before",
        "mix": "before",
        "counters": {"images": 1, "reward_queries": 2, "denoiser_evaluations": 3, "seconds": 4.5},
        "evaluation_counters": {"images": 5, "reward_queries": 6, "denoiser_evaluations": 7, "seconds": 8.5},
        "micro_batches": {"sample": 2, "update": 3},
        "start": None,
    }, "the file format of a checkpoint"

    resumed = parts("fresh", 9.0)
    assert restore_snapshot(resumed, checkpoint) == (spent, MicroBatches(2, 3))
    assert {resumed.optimization.state, resumed.normalizer.state, resumed.mix.state} == {"before"}
    assert resumed.optimization.value["w"] == 1 and resumed.optimization.taken["w"] == 0.5
    assert restore_snapshot(parts("fresh", 9.0, sample=7), checkpoint)[1] == MicroBatches(7, 3)
    assert restore_snapshot(parts("fresh", 9.0, update=8), checkpoint)[1] == MicroBatches(2, 8)


def test_a_checkpoint_of_an_earlier_version_did_not_count_evaluations() -> None:
    spent = Spent(Counters(1, 2, 3, 4.5), Counters(5, 6, 7, 8.5))
    checkpoint = take_snapshot(parts("before", 1.0), 5, spent, MicroBatches(2, 3), None)
    del checkpoint.state["evaluation_counters"]
    assert restore_snapshot(parts("fresh", 9.0), checkpoint)[0] == Spent(spent.training, Counters())
