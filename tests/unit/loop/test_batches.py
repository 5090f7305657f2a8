"""The dealing of prompts to batches and processes."""

from __future__ import annotations

from collections import Counter

from sdpo.loop.batches import Batches
from sdpo.prompts import Prompt

PROMPTS = [Prompt(name) for name in ("a", "b", "c")]


def batches(rank: int = 0, processes: int = 1) -> Batches:
    return Batches(PROMPTS, prompts_per_epoch=12, batch_size=4, seed=7, rank=rank, processes=processes)


def test_an_epoch_has_every_group_once_and_epochs_differ() -> None:
    prompts, indices = batches().deal(1)
    assert sorted(indices) == list(range(12)) and len(prompts) == 12
    assert batches().deal(1) == (prompts, indices) != batches().deal(2)


def test_prompts_come_equally_often_in_an_order_that_changes() -> None:
    drawn = []
    for epoch in (1, 2):
        prompts, indices = batches().deal(epoch)
        in_order = [prompt.text for _, prompt in sorted(zip(indices, prompts, strict=True), key=lambda pair: pair[0])]
        laps = [tuple(in_order[i : i + 3]) for i in range(0, 12, 3)]
        assert all(sorted(lap) == ["a", "b", "c"] for lap in laps)
        drawn += laps
    assert len(set(drawn)) > 1
    assert set(Counter(drawn)) <= {(x, y, z) for x in "abc" for y in "abc" for z in "abc" if len({x, y, z}) == 3}


def test_processes_share_every_batch() -> None:
    _, whole = batches().deal(3)
    shares = [batches(rank, 2).deal(3)[1] for rank in range(2)]
    assert batches(0, 2).groups == len(shares[0]) == 6
    for batch in range(3):
        theirs = shares[0][2 * batch : 2 * batch + 2] + shares[1][2 * batch : 2 * batch + 2]
        assert theirs == whole[4 * batch : 4 * batch + 4]
