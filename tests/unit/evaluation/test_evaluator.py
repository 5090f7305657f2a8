"""When and on how many images a run is evaluated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from sdpo.config.sections import EvaluateConfig
from sdpo.evaluation import evaluator as module
from sdpo.evaluation.evaluate import EvaluatedImages
from sdpo.evaluation.evaluator import Evaluator
from sdpo.evaluation.record import ImageScores
from sdpo.prompts import Prompt

SEEN, UNSEEN = [Prompt("a"), Prompt("b")], [Prompt("c")]


def evaluator(every: int = 3, averaged: Any = contextlib.nullcontext, unseen: Sequence[Prompt] = UNSEEN) -> Evaluator:
    settings = EvaluateConfig(every=every, steps=[1], images_per_prompt=4, images_per_prompt_between=2)
    return Evaluator(settings, 10, SEEN, unseen, {}, averaged)


def test_the_base_model_and_the_last_epoch_are_always_evaluated() -> None:
    assert [epoch for epoch in range(11) if evaluator(3).is_due(epoch)] == [0, 3, 6, 9, 10]
    assert [epoch for epoch in range(11) if evaluator(0).is_due(epoch)] == [0, 10]


def test_the_ends_have_more_images_and_the_unseen_prompts_under_the_averaged_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []

    @contextlib.contextmanager
    def averaged() -> Iterator[None]:
        calls.append("averaged")
        yield
        calls.append("trained")

    def evaluate(drawing: Any, prompts: Sequence[Prompt], rewards: Any, **options: Any) -> EvaluatedImages:
        calls.append((prompts, options["images_per_prompt"], options.get("monitored", 0)))
        return EvaluatedImages(ImageScores([], [], {}), {}, {})

    monkeypatch.setattr(module, "evaluate", evaluate)
    drawing: Any = None

    def made(epoch: int, full: bool = False, unseen: Sequence[Prompt] = UNSEEN) -> list[Any]:
        calls.clear()
        record, _ = evaluator(averaged=averaged, unseen=unseen)(epoch, drawing, {"images": 7}, full)
        assert record.costs == {"images": 7} and record.epoch == epoch and record.monitored == 2
        return calls[:]

    ends = ["averaged", (SEEN, 4, 2), (UNSEEN, 4, 0), "trained"]
    assert made(0) == made(10) == made(3, full=True) == ends
    assert made(3) == ["averaged", (SEEN, 2, 2), "trained"]
    assert made(0, unseen=[]) == ["averaged", (SEEN, 4, 2), "trained"]
