"""The settings whose gradients can be had from the same trajectories: credits, reward plans and numbers of branches."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from sdpo.method.algorithms import Algorithm
from sdpo.method.credit import Credit, FutureCredit, GainCredit, StepCredit
from sdpo.method.reward_plans import REWARD_PLANS, AllSteps, FinalStep, RewardPlan

CONFIGURED = "as configured"
"""The name of the run's own setting."""

STEP, FINAL, UNBIASED = "step", "final", "gain λ=1"
"""Names of credits: the published one, the final reward alone, and the gain that stays unbiased."""

CREDITS: dict[str, Credit] = {
    STEP: StepCredit(),
    "future": FutureCredit(),
    FINAL: FutureCredit(),
    UNBIASED: GainCredit(1.0),
    "gain λ=0.5": GainCredit(0.5),
    "gain λ=0": GainCredit(0.0),
    "gain fitted": GainCredit(1.0, "fitted"),
}
"""The credit rules that are compared. `final` is the final reward at every step whose noise can still change it."""


@dataclass(frozen=True)
class Alternative:
    """One way to turn the trajectories into a gradient.

    Attributes:
        name: the name of the setting; unique.
        credit: the name of the credit rule.
        plan: the name of the reward plan.
        branches: the first so many branches of each group are used.
        algorithm: the run's algorithm with that credit rule, plan and number of branches.
    """

    name: str
    credit: str
    plan: str
    branches: int
    algorithm: Algorithm[Any]


@dataclass
class Alternatives:
    """The alternatives of a run.

    Attributes:
        legal: those that the algorithm has a meaning for.
        left_out: the reason of each that it has none for, by name.
    """

    legal: list[Alternative] = dataclasses.field(default_factory=list)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)


def list_alternatives(algorithm: Algorithm[Any], num_steps: int) -> Alternatives:
    """List the run's own setting, all credits at exact rewards, and then what plans and fewer branches would give.

    Args:
        algorithm: the algorithm of the run, with K branches.
        num_steps: T. The plans that query three images are exact for T up to 3, and are left out then.
    """
    found = Alternatives([Alternative(CONFIGURED, CONFIGURED, CONFIGURED, algorithm.branches, algorithm)])
    plans = {name: plan() for name, plan in REWARD_PLANS.items()}
    for credit, rule in CREDITS.items():
        if num_steps == 1 and not rule.trains_last_step:
            found.left_out[credit] = "gives the last step no return, and one step has no other"
            continue
        _add(found, algorithm, credit, "final" if credit == FINAL else "all", plans, algorithm.branches)
    for plan in ("anchors", "group_anchors") if num_steps > 3 else ():
        for credit in (name for name in CREDITS if name != FINAL):
            _add(found, algorithm, credit, plan, plans, algorithm.branches)
    for branches in fewer_branches(algorithm.branches):
        for credit in (name for name in CREDITS if name not in found.left_out):
            _add(found, algorithm, credit, "final" if credit == FINAL else "all", plans, branches)
    return found


def fewer_branches(branches: int) -> list[int]:
    """The powers of two from 2 to below K."""
    return [2**power for power in range(1, branches.bit_length()) if 2**power < branches]


def _add(
    found: Alternatives,
    algorithm: Algorithm[Any],
    credit: str,
    plan: str,
    plans: dict[str, RewardPlan],
    branches: int,
) -> None:
    """Add an alternative, or the reason why the algorithm has no meaning for it."""
    exact = isinstance(plans[plan], AllSteps | FinalStep)
    parts = [credit, *([] if exact else [plan]), *([] if branches == algorithm.branches else [f"K={branches}"])]
    name = ", ".join(parts)
    rule = CREDITS[credit]
    discount = 1.0 if credit == FINAL or isinstance(rule, GainCredit) else algorithm.discount
    try:
        changed = dataclasses.replace(
            algorithm, credit=rule, reward_plan=plans[plan], discount=discount, branches=branches
        )
    except ValueError as error:
        found.left_out[name] = str(error)
        return
    found.legal.append(Alternative(name, credit, plan, branches, changed))
