"""The text of a model card: code that nothing can break out of, and only what was measured."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from helpers.written_runs import write_run

from sdpo.commands.model_card import Exported, render_card
from sdpo.config.schema import Config
from sdpo.report.reader import Run, read_run

EXPORTED = Exported("name", "some/where", None, "those after epoch 2", True, 2, 4, {"height": 64})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return read_run(write_run(tmp_path / "run", {1: [0.2, 0.4, 0.6]}))


def test_backticks_in_settings_stay_within_the_code(run: Run) -> None:
    prompts = ["````", "a `cat`"]
    config = Config.load("emoji", overrides=None, prompts={"train": prompts})
    card = render_card(run, config, EXPORTED)
    fences = re.findall(r"^(`{3,})(\w*)$", card, re.MULTILINE)
    assert fences == [("```", "python"), ("```", ""), ("`````", "yaml"), ("`````", "")]


def test_a_model_path_with_backticks_is_one_code_span(run: Run, tmp_path: Path) -> None:
    config = Config.load("emoji")
    named = config.model_copy(update={"model": config.model.model_copy(update={"path": "owner/a``b"})})
    assert "``` owner/a``b ``` aligned with the reward" in render_card(run, named, EXPORTED)


def test_scores_and_costs_of_the_exported_epoch(run: Run) -> None:
    card = render_card(run, Config.load("emoji"), EXPORTED)
    assert "2 epochs, 200 samples, 600 reward queries. Weights: those after epoch 2." in card
    assert "Scores of the base model and of the tuned model after epoch 2.\n" in card
    heading = "| `aesthetic`, training prompts | before | after | gain |\n|---|---|---|---|\n"
    assert re.search(re.escape(heading) + r"\| 1 step \| 0\.30* \| 0\.70* \| \+0\.40* ± 0\.0+ \|\n\n", card)
    other = render_card(run, Config.load("emoji"), dataclasses.replace(EXPORTED, as_evaluated=False))
    assert "not of exactly the ones exported here" in other


def test_a_run_that_was_not_evaluated_has_no_tables(run: Run) -> None:
    card = render_card(dataclasses.replace(run, evaluations=[]), Config.load("emoji"), EXPORTED)
    assert "This run was not evaluated before and after training." in card and "|---|" not in card
