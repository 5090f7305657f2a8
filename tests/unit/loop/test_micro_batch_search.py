"""The search for a micro-batch, on a GPU whose time and memory the test sets."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from sdpo.loop import micro_batch_search as micro_batch

DEVICE = torch.device("cuda")


class FakeGPU:
    """A GPU that works asynchronously: the time of a call passes when the host waits for it.

    Attributes:
        seconds: the time of a call of n groups.
        compiling: the time that the first call of a size takes besides.
        share: the share of the memory that a call of n groups holds, for each group.
        fits: the most groups that fit into the memory.
        calls: the sizes that were called.
        emptied: how often unused memory was given back.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds: Callable[[int], float] = lambda size: 1.0
        self.compiling, self.share, self.fits = 0.0, 0.01, 10**9
        self.calls: list[int] = []
        self.emptied = 0
        self._now = self._pending = self._peak = 0.0
        for name, function in dict(
            mem_get_info=lambda device: (1000, 1000),
            reset_peak_memory_stats=self._reset_peak,
            max_memory_allocated=lambda device: self._peak,
            synchronize=self._synchronize,
            empty_cache=self._empty,
        ).items():
            monkeypatch.setattr(torch.cuda, name, function)
        monkeypatch.setattr(micro_batch, "time", SimpleNamespace(perf_counter=lambda: self._now))

    def __call__(self, size: int) -> None:
        if size > self.fits:
            raise torch.OutOfMemoryError
        self._pending += self.seconds(size) + (0 if size in self.calls else self.compiling)
        self._peak = max(self._peak, 1000 * self.share * size)
        self.calls.append(size)

    def _reset_peak(self, device: torch.device) -> None:
        self._peak = 0.0

    def _synchronize(self, device: torch.device) -> None:
        self._now, self._pending = self._now + self._pending, 0.0

    def _empty(self) -> None:
        self.emptied += 1

    def find(self, most: int = 64) -> int:
        return micro_batch.search(self, most, DEVICE)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGPU:
    return FakeGPU(monkeypatch)


@pytest.mark.parametrize(("fits", "found"), [(10**9, 64), (63, 32), (8, 8), (1, 1), (0, 1)])
def test_the_search_ends_where_memory_does(gpu: FakeGPU, fits: int, found: int) -> None:
    """Where not even one group fits, the run itself says what to do."""
    gpu.fits = fits
    assert gpu.find() == found and gpu.emptied == 1


def test_the_search_leaves_memory_for_the_rest(gpu: FakeGPU) -> None:
    gpu.share = 0.06
    assert gpu.find() == 8  # 16 would take 96 %
    assert max(gpu.calls) == 16


def test_the_search_ends_where_a_group_takes_as_long(gpu: FakeGPU) -> None:
    gpu.seconds = lambda size: 1.0 + size
    assert gpu.find() == 16  # 32 groups take 33 s instead of 34 s
    gpu.seconds = lambda size: size**1.5
    assert gpu.find() == 1


def test_neither_the_first_call_of_a_size_nor_the_slower_of_two_counts(gpu: FakeGPU) -> None:
    gpu.compiling = 1000.0
    assert gpu.find() == 64
    gpu.seconds = lambda size: 1.0 if gpu.calls.count(size) % 3 == 1 else 1000.0
    assert gpu.find() == 64


def test_never_more_groups_than_there_are(gpu: FakeGPU) -> None:
    assert gpu.find(most=6) == 4 and max(gpu.calls) == 4


@pytest.mark.parametrize(("groups", "most", "found"), [(90, 32, 30), (15, 32, 15), (7, 2, 2)])
def test_groups_are_cut_into_equal_parts(groups: int, most: int, found: int) -> None:
    assert micro_batch.even(groups, most) == found


@pytest.mark.parametrize(("shares", "most", "found"), [([128, 64], 12, 8), ([90, 30], 32, 30), ([7, 14], 4, 1)])
def test_shares_have_a_common_part(shares: list[int], most: int, found: int) -> None:
    assert micro_batch.common(shares, most) == found


def test_samples_a_call_on_a_cpu() -> None:
    assert micro_batch.default_samples(1024, torch.device("cpu")) == 96
    assert micro_batch.default_samples(10**9, torch.device("cpu")) == 1
