"""The recommendation: its ranking, its words, and how sure it says it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdpo import Config
from sdpo.commands.signal.alternatives import CONFIGURED, CREDITS, Alternative, fewer_branches, list_alternatives
from sdpo.commands.signal.measured import Measured, measure
from sdpo.commands.signal.recommend import Recommendation, recommend, settings_of
from sdpo.commands.signal.result import Options, SignalResult
from sdpo.method.algorithms import GRPO, REBEL, SDPO

NOISE = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
OTHER = torch.randn(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def measured(name: str, projections: Tensor) -> Measured:
    """An alternative of two branches and one step whose gradient is these numbers."""
    choice = Alternative(name, name, "all", 2, SDPO())
    factors = torch.ones(200, 2, 1)
    along = (projections / 2).reshape(200, 1, 1, 1).expand(200, 2, 1, 1)
    return measure(choice, factors, along.float(), along, ["mean"], None)


def recommended(**projections: Tensor) -> Recommendation:
    names = {"own": CONFIGURED, "gain": "gain λ=1"}
    found = [measured(names.get(name, name), values) for name, values in projections.items()]
    return recommend(SignalResult(Config.load("emoji"), Options(200), 2, ["mean"], found, {}, 1.0))


def test_a_clear_difference_on_the_same_groups() -> None:
    found = recommended(own=NOISE + 0.1, step=NOISE + 0.1, gain=NOISE + 0.4)
    text = " ".join(found.sentences)
    assert found.best == "gain λ=1" and found.probabilities["step"] > 0.99
    assert "clear difference" in text and "algorithm.credit=gain algorithm.credit.gae_lambda=1" in text
    assert "As configured, the same z takes" in text


def test_a_difference_within_its_error_keeps_the_configured_credit() -> None:
    found = recommended(own=NOISE + 0.3, step=OTHER + 0.25, gain=OTHER.flip(0) + 0.3)
    assert max(found.probabilities.values()) < 0.95
    assert "not clearly worse: keep it" in found.sentences[0] and "--groups" in found.sentences[0]


def test_equal_signals_are_called_the_same() -> None:
    values = NOISE + 0.3
    found = recommended(own=values, step=values - 0.3, future=values * 2, gain=values * (1 + 1e-9))
    assert found.probabilities[CONFIGURED] == 0.5 and "the same signal: keep it" in found.sentences[0]
    assert any("These have the same signal" in sentence for sentence in found.sentences)


def test_no_signal_at_all_is_said() -> None:
    values = NOISE - NOISE.mean()
    found = recommended(own=values, step=values)
    assert any("within its error of 0" in sentence for sentence in found.sentences)


@pytest.mark.parametrize("credit", CREDITS)
def test_the_settings_of_every_credit_are_legal_and_mean_it(credit: str) -> None:
    config = Config.load("emoji", ["sample.num_steps=4", *settings_of(credit).split()])
    algorithm = config.policy_algorithm()
    assert algorithm is not None and algorithm.credit == CREDITS[credit]
    (listed,) = (c for c in list_alternatives(algorithm, 4).legal if c.name == credit)
    assert listed.algorithm == algorithm


def test_fewer_branches_are_powers_of_two() -> None:
    assert [fewer_branches(k) for k in (2, 3, 4, 8, 12)] == [[], [2], [2], [2, 4], [2, 4, 8]]
    names = [choice.name for choice in list_alternatives(GRPO(branches=8), 2).legal]
    assert "step, K=2" in names and "final, K=4" in names and "step, anchors" not in names


def test_what_has_no_meaning_is_left_out_with_its_reason() -> None:
    found = list_alternatives(REBEL(), 4)
    assert "whole trajectory" in found.left_out["gain λ=1"]
    assert {"step", "future", "final"} <= {choice.name for choice in found.legal}
