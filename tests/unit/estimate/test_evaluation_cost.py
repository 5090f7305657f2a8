"""The cost of evaluations: what a dry run says is what a run spends, or at most that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.run_files import evaluation, rows
from helpers.small_run import config

from sdpo import Config, Trainer
from sdpo.estimate.evaluation_cost import EvaluationCost, describe_evaluations, evaluation_cost
from sdpo.evaluation.prompt_lists import PromptLists, prompt_lists
from sdpo.prompts import Prompt


def emoji(**evaluate: Any) -> Config:
    settings = dict(steps=[1, 4], images_per_prompt=3, images_per_prompt_between=1, judge="emoji_judge")
    return Config.load("emoji", evaluate={**settings, **evaluate})


def test_one_evaluation_by_hand() -> None:
    lists = PromptLists([Prompt("x")], [Prompt(f"{i}") for i in range(10)], [Prompt("u"), Prompt("v")])
    between, end = (evaluation_cost(emoji(), lists, full) for full in (False, True))
    # Between: 10 images scored, 20 drawn for the monitors; the drift takes 2 × 8 more at each of 1 + 4 steps.
    assert between == EvaluationCost(images=20, queries=40, evaluations=(20 + 16) * 5)
    # At an end: 10 × 3, the unseen 2 × 3, and 10 × 1 by the training sampler.
    assert end == EvaluationCost(images=46 * 2, queries=46 * 4, evaluations=(46 + 16) * 5)
    alone = evaluation_cost(emoji(eta=1.0), lists, True)
    assert alone.images == 36 * 2, "one sampler is both"


def test_the_run_by_hand() -> None:
    words = describe_evaluations(emoji(every=8, max_prompts=5))
    assert words.startswith("# evaluations: 2 at the ends of") and ", 4 in between;" in words  # of 40 epochs
    assert "a fixed choice of 5 prompts and 5 unseen ones, as evaluate.max_prompts=5; " in words


@pytest.mark.parametrize("unseen", [None, ["owl"]])
def test_the_estimate_is_what_a_run_spends(tiny_pipeline: Path, tmp_path: Path, unseen: list[str] | None) -> None:
    settings = config(
        tiny_pipeline,
        tmp_path / "run",
        epochs=2,
        prompts={"train": ["cat", "dog", "fox"], "unseen": unseen},
        evaluate={"every": 1, "steps": [1, 2], "max_prompts": 2},
    )
    Trainer(settings).train()
    first, last = rows(tmp_path / "run")
    lists = prompt_lists(settings)
    end, between = (evaluation_cost(settings, lists, full) for full in (True, False))
    for row, expected in ((first, end.plus(between)), (last, end.times(2).plus(between))):
        assert row["evaluation/images"] == expected.images
        assert row["evaluation/reward_queries"] == expected.queries
        assert row["evaluation/denoiser_evaluations"] == expected.evaluations
    assert 0 < first["evaluation/seconds"] < last["evaluation/seconds"]
    assert sorted(set(evaluation(tmp_path / "run", 0)["prompts"])) == sorted(p.text for p in lists.evaluated)
    assert f"2 at the ends of {end.images} images each, 1 in between" in describe_evaluations(settings)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "evaluations: images" in page and f"{last['evaluation/denoiser_evaluations']:,}" in page
