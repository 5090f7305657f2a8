"""Stopping rules against rows of metrics."""

from __future__ import annotations

from typing import Any

import pytest

from sdpo import Config
from sdpo.errors import UserError
from sdpo.evaluation.stopping import StoppingRules, check_rules, metric_names


def guarded(*rules: dict[str, Any], base: dict[str, float] | None = None) -> StoppingRules:
    guard = StoppingRules(Config.load("emoji", stop_when=list(rules)).stop_when)
    guard.start({"eval/x/1": 1.0, "monitor/diversity/4": 0.4} if base is None else base, [])
    return guard


def row(epoch: int, diversity: float, gain: float = 0.0) -> dict[str, Any]:
    return {"epoch": epoch, "eval/x/1": 1.0, "monitor/diversity/4": diversity, "eval_gain": gain}


HALVED = {"metric": "monitor/diversity/4", "below": 0.5, "relative_to": "base", "patience": 2}


def test_a_rule_must_hold_several_evaluations_in_a_row() -> None:
    guard = guarded(HALVED)
    values = [0.3, 0.19, 0.21, 0.1, None, 0.15]  # None: an epoch without an evaluation changes nothing
    for epoch, value in enumerate(values, start=1):
        assert guard.stop is None
        guard.observe({"epoch": epoch} if value is None else row(epoch, value, gain=epoch))
    assert guard.stop is not None and guard.stop.epoch == 6
    assert guard.stop.reason == (
        "monitor/diversity/4 is 0.15, below 0.2 (0.5 × the base model's 0.4), at 2 evaluations in a row"
    )
    # The best is the one with the largest gain among those at which the rule did not hold.
    assert guard.best(range(7)) == 3 and guard.best([1, 2, 4, 6]) == 1 and guard.best([2, 4]) is None
    assert [guard.score(row(epoch, 0)) for epoch in (1, 2, 3)] == [1, None, 3]


def test_a_resumed_run_decides_as_the_undisturbed_one() -> None:
    rows = [row(1, 0.19), row(2, 0.3), row(3, 0.19), row(4, 0.19)]
    whole = guarded(HALVED)
    for each in rows:
        whole.observe(each)
    for cut in range(1, 4):
        resumed = StoppingRules(whole._rules)
        resumed.start({"monitor/diversity/4": 0.4}, rows[:cut])
        for each in rows[cut:]:
            assert resumed.stop is None
            resumed.observe(each)
        assert resumed.stop == whole.stop and resumed.best(range(9)) == whole.best(range(9))


def test_rules_start_again_from_other_rows_and_another_base() -> None:
    guard = guarded({**HALVED, "patience": 1})
    guard.observe(row(1, 0.1, gain=9))
    assert guard.stop is not None
    guard.replay({"monitor/diversity/4": 0.1}, [row(2, 0.1, gain=3)])
    assert guard.stop is None and guard.best(range(9)) == 2
    guard.replay({}, [row(1, 0.0)])
    assert guard.stop is None, "a rule without a base holds nowhere"


def test_absolute_bounds_and_several_rules() -> None:
    guard = guarded({"metric": "monitor/diversity/4", "above": 0.5}, {"metric": "eval_gain", "below": -1})
    guard.observe(row(1, 0.5, gain=-1))
    assert guard.stop is None
    guard.observe(row(2, 0.6, gain=-2))
    assert guard.stop is not None and guard.stop.reason.count("; ") == 1


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"metric": "monitor/diversity/3", "below": 1}, "monitor/diversity/3.*monitor/diversity/4"),
        ({"metric": "eval/emoji_scor/1", "below": 1}, "eval/emoji_score/1"),
        ({"metric": "eval_gain", "below": 1, "relative_to": "base"}, "leave out relative_to"),
    ],
)
def test_rules_that_could_never_act_are_refused(rule: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_rules(Config.load("emoji", stop_when=[rule]))


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({}, "one bound: set below or above"),
        ({"below": 1, "above": 2}, "one bound: set below or above"),
        ({"belo": 1}, "unknown key 'stop_when.0.belo' .did you mean 'below'"),
        ({"below": 1, "patience": 0}, "stop_when.0.patience"),
    ],
)
def test_a_rule_has_one_bound(bounds: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Config.load("emoji", stop_when=[{"metric": "eval_gain", **bounds}])


def test_what_was_not_measured_is_named() -> None:
    with pytest.raises(UserError, match="no monitor/kl_to_base/1.*Use one of: eval/x/1"):
        guarded({"metric": "monitor/kl_to_base/1", "above": 1})
    with pytest.raises(UserError, match="is 0 for the base model: leave out relative_to"):
        guarded(HALVED, base={"monitor/diversity/4": 0.0})
    with pytest.raises(UserError, match="was not measured as it is now"):
        guarded(HALVED, base={"eval/x/1": 1.0})
    guard = guarded(HALVED)
    guard.check({"epoch": 1})
    with pytest.raises(UserError, match="no monitor/diversity/4"):
        guard.check({"epoch": 1, "eval/x/1": 0.0})


def test_rules_need_evaluations_in_between_and_a_checkpoint_to_go_back_to() -> None:
    rule = {"metric": "eval_gain", "below": 0}
    with pytest.raises(UserError, match="checkpoint.keep_best is 0"):
        check_rules(Config.load("emoji", checkpoint={"keep_best": 0}, stop_when=[rule]))
    with pytest.raises(UserError, match="evaluate.every is 0"):
        check_rules(Config.load("emoji", evaluate={"every": 0}, stop_when=[rule]))
    assert "eval/emoji_judge/8" in metric_names(Config.load("emoji"))
