"""Branching at one step in a configuration: its settings, and the combinations that are refused with the fix."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdpo import Config
from sdpo.assembly.quiet_steps import describe_quiet_steps
from sdpo.config.branching_checks import branching_of, check_branching
from sdpo.errors import UserError
from sdpo.estimate.cost import describe_cost, epoch_cost
from sdpo.method.advantages import PairNormalizer
from sdpo.method.branching import Branching

BRANCHED = [
    "sample.num_steps=4",
    "sample.branch_at=1",
    "algorithm.credit=gain",
    "algorithm.reward_plan=all",
    "algorithm.discount=1",
    "algorithm.branches=4",
    "train.kl_weight=0",
]
RANDOM = "sample.branch_at=random"


def load(*overrides: str) -> Config:
    changed = {override.partition("=")[0] for override in overrides}
    return Config.load("emoji", [*(o for o in BRANCHED if o.partition("=")[0] not in changed), *overrides])


@pytest.mark.parametrize("name", ["sdpo", "ddpo", "d3po", "grpo"])
def test_every_algorithm_of_single_steps_takes_it(name: str) -> None:
    config = load(f"algorithm.name={name}", RANDOM, "sample.branch_weights=[1,0,3]", "sample.lookahead=2")
    assert branching_of(config.sample) == Branching((1.0, 0.0, 3.0), "common", 2)
    assert Config.parse(config.model_dump(mode="json")) == config


def test_the_steps_of_the_settings() -> None:
    assert branching_of(load("sample.after_branch=none").sample) == Branching((0.0, 1.0, 0.0), "none")
    assert branching_of(load(RANDOM).sample) == Branching((1.0, 1.0, 1.0))
    assert branching_of(Config.load("emoji").sample) is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["sample.branch_at=null", "sample.after_branch=none"],
            "sample.after_branch is none, but the branches part at",
        ),
        (["sample.branch_at=null", "sample.lookahead=1"], "sample.lookahead is 1, but the branches part at no single"),
        (
            ["sample.branch_at=null", "sample.branch_weights=[1,1,1]"],
            "(sample.branch_at is null): set sample.branch_at",
        ),
        (["sample.branch_at=3"], "no image follows the last of 4 steps"),
        (["sample.branch_at=9"], "use 0 to 2"),
        (["sample.branch_at=first"], "sample.branch_at"),
        (["sample.num_steps=1"], "use algorithm.credit=step or more steps"),
        (["sample.num_steps=1", "algorithm.credit=step", "algorithm.reward_plan=final"], "use sample.num_steps=2"),
        (["sample.branch_weights=[1,1,1]"], "use sample.branch_at=random, or leave it out"),
        ([RANDOM, "sample.branch_weights=[1,1]"], "sample.branch_weights has 2 weights"),
        ([RANDOM, "sample.branch_weights=[0,0,0]"], "sample.branch_weights are all 0"),
        ([RANDOM, "sample.branch_weights=[1,-1,0]"], "sample.branch_weights"),
        (["sample.lookahead=3"], "at most 2 steps follow the one at which branches part"),
        ([RANDOM, "sample.branch_weights=[0,1,1]", "sample.lookahead=3"], "at most 2 steps follow"),
        (["sample.lookahead=1", "sample.after_branch=independent"], "nothing is drawn after the step"),
        (["sample.shared_noise=false"], "sample.shared_noise is false"),
        (["sample.share_first_step=true"], "sample.share_first_step is True"),
        (["sample.eta=0"], "sample.eta is 0"),
        (["algorithm.name=rebel", "algorithm.credit=future"], "the loss of rebel joins all steps of a trajectory"),
        (["algorithm.name=prdp", "algorithm.credit=future"], "the loss of prdp joins all steps of a trajectory"),
        (
            ["algorithm.name=ddpo", "algorithm.branches=1"],
            "algorithm.branches is 1, and one trajectory does not branch",
        ),
        (["algorithm.credit=step"], "use algorithm.credit=future, or gain"),
        (["algorithm.credit.baseline=fitted"], "use algorithm.credit.baseline=none"),
        (["algorithm={name: srg}"], "sample.branch_at is 1, a setting of policy updates"),
        (["train.timestep_fraction=0.5"], "train.timestep_fraction is 0.5"),
        (["train.first_steps=2"], "with sample.branch_at each group trains one step: set it to null"),
        (["train.step_shuffle=false"], "with sample.branch_at each group trains one step: set it to true"),
        (["train.accumulate_steps=all"], "train.accumulate_steps is all"),
    ],
)
def test_what_means_nothing_is_refused(overrides: list[str], message: str) -> None:
    kept = () if "algorithm={name: srg}" not in overrides else BRANCHED[:2]
    with pytest.raises(UserError, match=re.escape(message)):
        Config.load("emoji", [*kept, *overrides]) if kept else load(*overrides)


def test_statistics_that_do_not_know_their_step_are_refused() -> None:
    class Running(PairNormalizer):
        def state_dict(self) -> dict[str, Any]:
            return {"moments": None}

    class Separate(Running):
        def update_at(self, prompts: list[str], returns: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
            return returns

    config = load()
    algorithm = config.policy_algorithm()
    assert algorithm is not None
    with pytest.raises(ValueError, match="Running keeps statistics, but has no update_at"):
        check_branching(config.sample, config.train, algorithm, "sdpo", Running())
    check_branching(config.sample, config.train, algorithm, "sdpo", Separate())


def test_final_rewards_need_no_other_credit_than_the_published() -> None:
    assert load("algorithm.credit=step", "algorithm.reward_plan=final").build_algorithm().returns is not None


def test_the_cost_of_an_epoch_by_hand() -> None:
    groups = "sample.prompts_per_epoch=6"
    cost = epoch_cost(load(groups, "train.batch_size=3"))
    # Two evaluations of the prefix, four branches of two steps; the image of step 1 once a group, two of each branch.
    assert (cost.trajectories, cost.forward, cost.backward) == (24, 6 * (2 + 4 * 2), 6)
    assert cost.queries == 6 * (1 + 4 * 2) and cost.optimizer_steps == 2
    seen = epoch_cost(load(groups, "train.batch_size=3", "sample.lookahead=1", "train.kl_weight=0.1"))
    assert (seen.forward, seen.backward, seen.queries) == (6 * (2 + 4) + 6, 6, 6 * (1 + 4))
    final = epoch_cost(load(groups, "train.batch_size=3", "algorithm.reward_plan=final", "algorithm.credit=future"))
    assert final.queries == 6 * 4


def test_the_cost_of_a_run_is_that_of_the_steps_that_it_draws() -> None:
    groups = ["sample.prompts_per_epoch=6", "train.batch_size=6", "epochs=5"]
    config = load(RANDOM, "sample.branch_weights=[1,2,1]", *groups)
    branching = branching_of(config.sample)
    assert branching is not None
    drawn = [step for epoch in range(1, 6) for step in branching.draw(config.seed, epoch, range(6)).tolist()]
    by_hand = sum(step + 1 + 4 * (3 - step) for step in drawn) + len(drawn)
    assert f"# the run: 5 epochs, {5 * 24} trajectories, {by_hand} network evaluations" in describe_cost(config)
    assert "on average" in describe_cost(config)


def test_a_quiet_step_is_warned_of_where_branches_can_part_there() -> None:
    steps: Any = SimpleNamespace(num_steps=4, ends_random=True, std=torch.tensor([0.9, 0.5, 0.01, 0.001]))
    assert describe_quiet_steps(load(), steps) == ""
    assert describe_quiet_steps(load(RANDOM, "sample.branch_weights=[1,1,0]"), steps) == ""
    warned = describe_quiet_steps(load(RANDOM), steps)
    assert "step 3 (0.01) of 4" in warned and "let the branches part at noisier ones (sample.branch_at" in warned
