"""Epochs of the bench, on a time that the test sets: the phases, and what an epoch's work is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sdpo.commands.bench.epoch import PHASES, EpochWork, run_epoch, time_epoch
from sdpo.loop import clock as module
from sdpo.loop.clock import Clock


class FakeTrainer:
    """Three epochs' worth of known phases: every phase takes a power of two seconds."""

    def __init__(self, now: list[float], processes: int = 1) -> None:
        self.now = now
        self.parts = SimpleNamespace(
            clock=Clock(),
            policy=SimpleNamespace(evaluations=1000, with_gradient=100),
            processes=SimpleNamespace(count=processes),
        )
        self.session = SimpleNamespace(counters=SimpleNamespace(reward_queries=50))

    def train_epoch(self) -> None:
        clock = self.parts.clock
        with clock("sample"):
            self.now[0] += 1
            with clock("decode"):
                self.now[0] += 2
            with clock("reward"):
                self.now[0] += 4
        with clock("advantage"):
            self.now[0] += 8
        with clock("update"):
            self.now[0] += 16
        self.now[0] += 32  # the row of metrics, the checkpoint
        self.parts.policy.evaluations += 30
        self.parts.policy.with_gradient += 12
        counters = self.session.counters
        self.session.counters = SimpleNamespace(reward_queries=counters.reward_queries + 20)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in a list of one."""
    time = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: time[0])
    return time


def test_phases_count_their_own_time_and_add_up_to_the_epoch(now: list[float]) -> None:
    trainer: Any = FakeTrainer(now)
    expected = {"sample": 1, "decode": 2, "reward": 4, "advantage": 8, "update": 16, "bookkeeping": 32, "epoch": 63}
    assert time_epoch(trainer) == expected
    assert time_epoch(trainer) == expected, "the clock starts anew with each epoch"
    assert now == [226.0]


def test_a_phase_without_time_is_0(now: list[float]) -> None:
    trainer: Any = FakeTrainer(now)
    trainer.train_epoch = lambda: None
    assert time_epoch(trainer) == dict.fromkeys([*PHASES, "epoch"], 0.0)


@pytest.mark.parametrize(("processes", "queries"), [(1, 20), (2, 10)])
def test_the_work_of_an_epoch_is_what_the_counters_gained(now: list[float], processes: int, queries: int) -> None:
    trainer: Any = FakeTrainer(now, processes)
    assert run_epoch(trainer) == EpochWork(forward=18, backward=12, queries=queries)
