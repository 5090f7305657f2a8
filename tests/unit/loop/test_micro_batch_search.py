"""The search for a micro-batch: memory and time are played here, no GPU is needed."""

from __future__ import annotations

import pytest
import torch

from sdpo.loop import micro_batch_search as micro_batch

GPU = torch.device("cuda")


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """`each` groups cost 1/n + `slope` a group; more than `fits` raise; each takes 1 % of the memory."""
    settings = {"fits": 1e9, "floor": 0.0, "share": 0.01, "size": 0.0}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 100))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 100 * settings["share"] * settings["size"])
    seconds = lambda call, size, device: call(size) or 1.0 + settings["floor"] * size  # noqa: E731
    monkeypatch.setattr(micro_batch, "_seconds", seconds)
    return settings


def find(played: dict[str, float], most: int = 64) -> int:
    def call(size: int) -> None:
        played["size"] = size
        if size > played["fits"]:
            raise torch.OutOfMemoryError

    return micro_batch.search(call, most, GPU)


def test_the_search_ends_where_memory_does(played: dict[str, float]) -> None:
    assert find(played) == 64
    played["fits"] = 8
    assert find(played) == 8
    played["fits"] = 0
    assert find(played) == 1, "the run itself will then say what to do"


def test_the_search_leaves_memory_for_the_rest(played: dict[str, float]) -> None:
    played["share"] = 0.06
    assert find(played) == 8  # 16 would take 96 %


def test_the_search_ends_where_nothing_is_gained(played: dict[str, float]) -> None:
    played["floor"] = 1.0  # a call of n groups takes 1 + n
    assert find(played) == 16


def test_never_more_than_there_is(played: dict[str, float]) -> None:
    assert find(played, most=6) == 4
    assert micro_batch.even(90, 32) == 30 and micro_batch.even(15, 32) == 15 and micro_batch.even(7, 2) == 2
    assert micro_batch.common([128, 64], 12) == 8 and micro_batch.common([90, 30], 32) == 30
    assert micro_batch.common([7, 14], 4) == 1
    assert micro_batch.default_samples(1024, torch.device("cpu")) == 96
    assert micro_batch.default_samples(10**9, torch.device("cpu")) == 1
