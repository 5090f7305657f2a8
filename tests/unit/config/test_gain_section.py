"""The credit rule `gain` in a configuration: its settings, and the combinations that are refused with the fix."""

from __future__ import annotations

import re

import pytest

from sdpo import Config
from sdpo.errors import UserError
from sdpo.estimate.cost import epoch_cost
from sdpo.method.credit import GainCredit
from sdpo.method.reward_plans import AllSteps

GAIN = ["sample.num_steps=4", "algorithm.credit=gain", "algorithm.reward_plan=all", "algorithm.discount=1"]
FITTED = "algorithm.credit.baseline=fitted"


@pytest.mark.parametrize("name", ["sdpo", "ddpo", "d3po", "grpo"])
def test_every_algorithm_of_single_steps_takes_it(name: str) -> None:
    config = Config.load("emoji", [f"algorithm.name={name}", *GAIN, "algorithm.credit.gae_lambda=0.9"])
    assert config.algorithm["credit"] == {"name": "gain", "gae_lambda": 0.9, "baseline": "none"}
    algorithm = config.build_algorithm()
    assert algorithm.credit == GainCredit(0.9) and algorithm.reward_plan == AllSteps()
    assert Config.parse(config.model_dump(mode="json")) == config
    fitted = Config.load("emoji", [f"algorithm.name={name}", *GAIN, FITTED, "algorithm.branches=2"])
    assert fitted.build_algorithm().credit == GainCredit(baseline="fitted")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.credit.gae_lambda=1.5"], "algorithm.credit: gae_lambda must be in 0 … 1, got 1.5"),
        (["algorithm.credit.gae_lambda=high"], "algorithm.credit.gae_lambda: Input should be a valid number"),
        (["algorithm.credit.baseline=some"], "algorithm.credit.baseline: Input should be 'none' or 'fitted'"),
        (["algorithm.credit.lambda=1"], "unknown key 'lambda' of credit rule gain"),
        (["algorithm.discount=0.9"], "algorithm.discount is 0.9: set algorithm.discount=1"),
        (["algorithm.reward_plan=final"], "set algorithm.reward_plan=all, or use algorithm.credit=future"),
        (["algorithm.name=rebel"], "takes one advantage for a whole trajectory: use algorithm.credit=step or future"),
        (["algorithm.name=prdp"], "takes one advantage for a whole trajectory: use algorithm.credit=step or future"),
        (["sample.num_steps=1"], "use algorithm.credit=step or more steps"),
        ([FITTED, "algorithm.reward_plan=group_anchors"], "set algorithm.reward_plan=all"),
        ([FITTED, "algorithm.name=ddpo"], "algorithm.branches is 1: use 2 or more, or algorithm.credit.baseline=none"),
        (
            [FITTED, "sample.prompts_per_epoch=1", "train.batch_size=1"],
            "algorithm.credit=gain compares groups, and sample.prompts_per_epoch is 1: use 2 or more",
        ),
    ],
)
def test_what_means_nothing_is_refused(overrides: list[str], message: str) -> None:
    changed = {override.partition("=")[0] for override in overrides}
    kept = [setting for setting in GAIN if setting.partition("=")[0] not in changed]
    with pytest.raises(UserError, match=re.escape(message)):
        Config.load("emoji", [*kept, *overrides])


def test_the_last_step_is_not_trained() -> None:
    optimizer_steps = {
        credit: epoch_cost(Config.load("emoji", [*GAIN, f"algorithm.credit={credit}"])).optimizer_steps
        for credit in ("step", "gain")
    }
    assert optimizer_steps == {"step": 12, "gain": 9}


def test_one_group_an_epoch_is_enough_without_a_fit() -> None:
    Config.load("emoji", [*GAIN, "sample.prompts_per_epoch=1", "train.batch_size=1"])
