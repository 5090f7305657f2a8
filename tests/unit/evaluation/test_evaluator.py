"""When and on how many images a run is evaluated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from sdpo.config.sections import EvaluateConfig
from sdpo.evaluation import evaluator as module
from sdpo.evaluation.conditions import Conditions
from sdpo.evaluation.evaluate import Drawing, EvaluatedImages
from sdpo.evaluation.evaluator import Evaluator
from sdpo.evaluation.record import Evaluation, ImageScores, Weights
from sdpo.evaluation.sampler import Sampler
from sdpo.prompts import Prompt

SEEN, UNSEEN = [Prompt("a"), Prompt("b")], [Prompt("c")]


def evaluator(every: int = 3, averaged: Any = contextlib.nullcontext, unseen: Sequence[Prompt] = UNSEEN) -> Evaluator:
    settings = EvaluateConfig(every=every, steps=[1], images_per_prompt=4, images_per_prompt_between=2)
    return Evaluator(settings, 10, SEEN, unseen, {}, averaged)


def test_the_base_model_and_the_last_epoch_are_always_evaluated() -> None:
    assert [epoch for epoch in range(11) if evaluator(3).is_due(epoch)] == [0, 3, 6, 9, 10]
    assert [epoch for epoch in range(11) if evaluator(0).is_due(epoch)] == [0, 10]


class Model:
    """A model whose own sampler is deterministic, and which knows when it is the base model."""

    own_eta = 0.0

    def __init__(self, calls: list[Any]) -> None:
        self._calls = calls

    @contextlib.contextmanager
    def base(self) -> Iterator[None]:
        self._calls.append("base")
        yield
        self._calls.append("no longer")


def conditions(sampler: Sampler) -> Conditions:
    kind = "own" if sampler.eta is None else "training"
    return Conditions(kind, sampler.eta or 0.0, None, {}, 1.0, [4, 4], "float32", {}, {})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The prompts, images of each and monitored images of each evaluation, and η where it is not the own sampler's."""
    calls: list[Any] = []

    def evaluate(drawing: Any, prompts: Sequence[Prompt], rewards: Any, **options: Any) -> EvaluatedImages:
        eta = () if drawing.sampler.eta is None else (drawing.sampler.eta,)
        calls.append((prompts, options["images_per_prompt"], options["monitored"], *eta))
        return EvaluatedImages(ImageScores([], [], {}), {}, {})

    monkeypatch.setattr(module, "evaluate", evaluate)
    return calls


def drawing(calls: list[Any], eta: float | None = None) -> Drawing:
    policy: Any = SimpleNamespace(backbone=Model(calls))
    unused: Any = None
    return Drawing(policy, unused, Sampler(eta), Sampler(1.0), conditions, 1, 1, unused)


def test_the_ends_have_more_images_the_unseen_prompts_and_both_samplers_under_the_averaged_weights(
    calls: list[Any],
) -> None:
    @contextlib.contextmanager
    def averaged() -> Iterator[None]:
        calls.append("averaged")
        yield
        calls.append("trained")

    def made(
        epoch: int, full: bool = False, unseen: Sequence[Prompt] = UNSEEN, eta: float | None = None
    ) -> tuple[list[Any], Evaluation]:
        calls.clear()
        run = evaluator(averaged=averaged, unseen=unseen)
        record, _ = run(epoch, drawing(calls, eta), {"images": 7}, full)
        assert record.costs == {"images": 7} and record.epoch == epoch and record.monitored == 2
        return calls[:], record

    ends = ["averaged", (SEEN, 4, 2), (UNSEEN, 4, 0), (SEEN, 2, 0, 1.0), "trained"]
    assert made(0)[0] == made(10)[0] == made(3, full=True)[0] == ends
    assert made(3)[0] == ["averaged", (SEEN, 2, 2), "trained"]
    assert made(0, unseen=[])[0] == ["averaged", (SEEN, 4, 2), (SEEN, 2, 0, 1.0), "trained"]
    assert made(0, eta=1.0)[0] == ["averaged", (SEEN, 4, 2, 1.0), (UNSEEN, 4, 0, 1.0), "trained"]
    own, training = made(10)[1], made(10, eta=1.0)[1]
    assert own.conditions == conditions(Sampler()) and own.training_sampler is not None
    assert own.training_sampler.conditions == training.conditions == conditions(Sampler(1.0))
    assert training.training_sampler is None and made(3)[1].training_sampler is None


def test_a_record_says_which_weights_drew_the_images(calls: list[Any]) -> None:
    plain, averaging = evaluator(), replace(evaluator(), keeps_average=True)
    from_lora = replace(evaluator(), starts_from_lora=True)
    assert plain(0, drawing(calls), {})[0].weights == from_lora.base(drawing(calls), {})[0].weights == Weights("base")
    assert from_lora(0, drawing(calls), {})[0].weights == Weights("start")
    assert plain(3, drawing(calls), {})[0].weights == Weights("trained")
    assert averaging(3, drawing(calls), {})[0].weights == Weights("trained", averaged=True)


def test_the_bare_base_model_is_evaluated_in_full(calls: list[Any]) -> None:
    record, _ = evaluator().base(drawing(calls), {})
    assert record.epoch == 0
    assert calls == ["base", (SEEN, 4, 2), (UNSEEN, 4, 0), (SEEN, 2, 0, 1.0), "no longer"]
