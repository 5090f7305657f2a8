"""The recommendation in words, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdpo.commands.signal.alternatives import CONFIGURED, CREDITS, FINAL, STEP
from sdpo.commands.signal.measured import REFERENCE, Measured
from sdpo.commands.signal.result import MEAN, SignalResult
from sdpo.method.credit import FutureCredit, GainCredit, StepCredit

SURE, LIKELY = 0.95, 0.8
"""Probabilities from which a difference is called clear, and likely."""

_ROUNDING = 1e-3  # a difference that is smaller in standard errors of the signal itself is none

BRANCHING = (
    "Branching at one step (one prefix, several noises, common noise after it) cannot be had from these trajectories: "
    "their branches part at the first step. Only at the first step, gain λ=0 is what such branches would give."
)


@dataclass(frozen=True)
class Recommendation:
    """The setting to train with, and how sure it is.

    Attributes:
        best: the name of the credit with the most signal at exact rewards and the run's number of branches.
        probabilities: the probability that its signal is above that of each other credit, by name.
        sentences: the recommendation in words.
    """

    best: str
    probabilities: dict[str, float]
    sentences: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """The entry `recommendation` of `signal.json`."""
        return {"best": self.best, "probability_above": self.probabilities, "text": " ".join(self.sentences)}


def recommend(result: SignalResult) -> Recommendation:
    """Rank the credits by their signal towards the main direction, and say how sure the first place is."""
    direction = result.main_direction
    credits = ranked_credits(result)
    best = credits[0]
    others = [*credits[1:], result.measured[0]]
    probabilities = {other.alternative.name: _probability_above(best, other, direction) for other in others}
    sentences = [
        _first_place(result, best, probabilities[CONFIGURED]),
        *_rivals(credits, probabilities),
        *_no_signal(best, direction),
        *_other_settings(result, best),
    ]
    return Recommendation(best.alternative.name, probabilities, sentences)


def ranked_credits(result: SignalResult) -> list[Measured]:
    """The credits at exact rewards and the run's number of branches, the one with the most signal first."""
    found = [credit for name in CREDITS if (credit := result.named(name)) is not None]
    return sorted(found, key=lambda m: m.towards[result.main_direction].value, reverse=True)


def describe_direction(name: str) -> str:
    """A direction in words."""
    if name == REFERENCE:
        return "the final reward, whose direction a reference credit measured on the other half of the groups"
    return "the mean reward over the step counts" if name == MEAN else f"the reward at {name}"


def settings_of(credit: str) -> str:
    """The overrides that train with a credit rule at exact rewards."""
    rule = CREDITS[credit]
    if credit == FINAL:
        return "algorithm.credit=future algorithm.reward_plan=final algorithm.discount=1"
    if isinstance(rule, GainCredit):
        options = f"algorithm.credit=gain algorithm.credit.gae_lambda={rule.gae_lambda:g}"
        if rule.baseline != "none":
            options += f" algorithm.credit.baseline={rule.baseline}"
        return f"{options} algorithm.reward_plan=all algorithm.discount=1"
    name = {StepCredit: STEP, FutureCredit: "future"}[type(rule)]
    return f"algorithm.credit={name} algorithm.reward_plan=all"


def _probability_above(best: Measured, other: Measured, direction: str) -> float:
    """The probability that one signal is above another; ½ where they are the same, as all gains are at two steps."""
    one, two = best.towards[direction], other.towards[direction]
    if abs(one.value - two.value) <= _ROUNDING * one.error:
        return 0.5
    return (one - two).probability_positive()


def _first_place(result: SignalResult, best: Measured, over_own: float) -> str:
    direction, own = result.main_direction, result.measured[0]
    ratio, now = best.towards[direction].value, own.towards[direction].value
    text = (
        f"The most signal towards {describe_direction(direction)} has {best.alternative.name}: "
        f"z = {_with_error(best, direction)}, against {_with_error(own, direction)} as configured "
        f"({_sureness(over_own)})."
    )
    if over_own == 0.5:
        return f"{text} The configured credit has the same signal: keep it."
    if over_own < LIKELY:
        return f"{text} The configured credit is not clearly worse: keep it, or measure more groups (--groups)."
    if ratio > 0 and now > 0:
        text += f" As configured, the same z takes {(ratio / now) ** 2:.1f} times as many samples."
    return f"{text} Its settings: {settings_of(best.alternative.credit)}."


def _rivals(credits: Sequence[Measured], probabilities: dict[str, float]) -> list[str]:
    """Which credits the first place is clearly above, and which may as well be the best."""
    names = [credit.alternative.name for credit in credits[1:]]
    clear = [f"{name} ({probabilities[name]:.1%})" for name in names if probabilities[name] >= SURE]
    same = [name for name in names if probabilities[name] == 0.5]
    others = [name for name in names if name not in same and probabilities[name] < SURE]
    open_ = [f"{name} ({probabilities[name]:.0%})" for name in others]
    found = [f"Its signal is clearly above that of {', '.join(clear)}."] if clear else []
    found += [f"These may be as good: {', '.join(open_)}."] if open_ else []
    return found + ([f"These have the same signal: {', '.join(same)}."] if same else [])


def _no_signal(best: Measured, direction: str) -> list[str]:
    z = best.z(direction)
    if z.interval[0] > 0:
        return []
    return ["Its own signal is within its error of 0: measure more groups (--groups) before training."]


def _other_settings(result: SignalResult, best: Measured) -> list[str]:
    """The effect of fewer queries and fewer branches on the first place."""
    direction, own = result.main_direction, best.alternative
    found = []
    same = [m for m in result.measured if m.alternative.credit == own.credit and m is not best]
    for other in same:
        if other.alternative.plan != own.plan:
            sure = (best.towards[direction] - other.towards[direction]).probability_positive()
            found.append(
                f"With algorithm.reward_plan={other.alternative.plan} its z is {_with_error(other, direction)}: exact "
                f"rewards are above it with {sure:.0%}."
            )
    for other in same:
        if other.alternative.branches != own.branches and other.alternative.plan == own.plan:
            more = (best.per_trajectory(direction) - other.per_trajectory(direction)).probability_positive()
            found.append(
                f"At equal samples, {own.branches} branches have more signal than {other.alternative.branches} with "
                f"{more:.0%}."
            )
    return found


def _with_error(measured: Measured, direction: str) -> str:
    z = measured.z(direction)
    return f"{z.value:.1f} ± {z.error:.1f}"


def _sureness(probability: float) -> str:
    if probability == 0.5:
        return "the same"
    word = "a clear difference" if probability >= SURE else "likely" if probability >= LIKELY else "not clear"
    return f"{word}: above with {probability:.1%}"
