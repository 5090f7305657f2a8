"""Evaluation: fixed images, whatever the number of processes; gains that compare rewards of any scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.plane_model import Plane
from helpers.threaded_processes import on_every_rank
from torch import Tensor

from sdpo.evaluation.evaluate import Drawing, EvaluatedImages, evaluate, image_seeds
from sdpo.evaluation.record import Evaluation, ImageScores, weighted_gain
from sdpo.evaluation.sampler import Sampler
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.prompts import Prompt
from sdpo.rewards import PlacedReward

PROMPTS = [Prompt("a", {"n": 1}), Prompt("b", {"n": 2}), Prompt("c", {"n": 3})]


class Pictures(Plane):
    """Draws images of 2 × 2 grey pixels in 0 … 1."""

    def decode(self, latents: Tensor) -> Tensor:
        return latents.mean(1, keepdim=True).sigmoid().expand(-1, 3, 2, 2)


def evaluated(
    ranks: int = 1, micro_batch: int = 4, prompts: list[Prompt] = PROMPTS, eta: float | None = 1.0
) -> list[EvaluatedImages]:
    """The results of each rank after an evaluation of two images a prompt, of which the first is monitored."""

    def first(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        assert [m["n"] for m in metadata] == ["abc".index(p) + 1 for p in prompts]
        return images[:, 0, 0, 0]

    def evaluate_on(processes: Any) -> EvaluatedImages:
        policy = Policy(Pictures())
        drawing = Drawing(
            policy=policy,
            embeddings=PromptEmbeddings(policy.backbone),
            sampler=Sampler(eta),
            training=Sampler(1.0),
            conditions=lambda sampler: pytest.fail("an evaluation's images do not need the record of its conditions"),
            micro_batch=micro_batch,
            decode_batch=32,
            processes=processes,
        )
        rewards = {"first": PlacedReward("first", first)}
        found = evaluate(drawing, prompts, rewards, steps=[2], images_per_prompt=2, monitored=1)
        if ranks == 1:
            assert policy.evaluations == found.network_evaluations
        return found

    return on_every_rank(ranks, evaluate_on)


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 1), (4, 4), (4, 1), (8, 4)])
def test_an_evaluation_depends_neither_on_the_ranks_nor_on_the_micro_batch(ranks: int, micro_batch: int) -> None:
    """With eight ranks for six images, two draw none and take part all the same."""
    (whole,) = evaluated()
    values = whole.scores.scores["first"][2]
    assert len(set(values.tolist())) == 6 and whole.tiles[2].shape == (6, 2, 2, 3) and whole.monitors
    for found in evaluated(ranks, micro_batch):
        assert found.scores.prompts == whole.scores.prompts == ["a", "b", "c"] * 2
        assert found.scores.seeds == whole.scores.seeds and len(set(found.scores.seeds)) == 6
        assert found.scores.scores["first"][2] == pytest.approx(values)
        assert (found.tiles[2].int() - whole.tiles[2].int()).abs().max() <= 1
        assert found.monitors.keys() == whole.monitors.keys()
        assert found.network_evaluations == whole.network_evaluations == (6 + 2 * 3) * 2
        for name, by_steps in whole.monitors.items():
            assert found.monitors[name] == pytest.approx(by_steps), name


@pytest.mark.parametrize("eta", [None, 1.0])
def test_the_images_of_a_prompt_do_not_depend_on_the_other_prompts(eta: float | None) -> None:
    def scores(prompts: list[Prompt]) -> dict[tuple[str, int], float]:
        (found,) = evaluated(prompts=prompts, eta=eta)
        keys = zip(found.scores.prompts, found.scores.seeds, strict=True)
        return dict(zip(keys, found.scores.scores["first"][2].tolist(), strict=True))

    forwards, backwards, one = scores(PROMPTS), scores(PROMPTS[::-1]), scores(PROMPTS[1:2])
    assert len(set(forwards.values())) == 6
    assert forwards == pytest.approx(backwards)
    assert one == pytest.approx({key: value for key, value in forwards.items() if key[0] == "b"})


def test_seeds_come_from_the_text_and_its_repeat_number() -> None:
    first, second, other, third = image_seeds(["a", "a", "b", "a"])
    assert image_seeds(["b", "a", "a"]) == [other, first, second]
    assert len({first, second, third, other}) == 4 and max(first, second, third, other) < 2**32


def test_another_sampler_draws_other_images_from_the_same_seeds() -> None:
    (own,), (training,) = evaluated(eta=None), evaluated(eta=1.0)
    assert own.scores.seeds == training.scores.seeds
    assert (own.scores.scores["first"][2] != training.scores.scores["first"][2]).all()
    assert own.monitors["kl_to_base"] == {2: 0.0}, "the drift is measured whether the sampler is random or not"


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
