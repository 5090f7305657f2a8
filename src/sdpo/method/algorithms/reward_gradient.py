"""The base of the algorithms that follow the reward's own gradient.

Every one of them maximises a weighted sum of rewards of predicted clean images, Σ_i w_i r(x̂_i), by its gradient
through the decoder and the last `through` network evaluations before each image; the latents that enter the first of
these are constants.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from sdpo.errors import UserError
from sdpo.method.augment import Augment

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Term:
    """One rewarded image of a trajectory: weight · r(x̂_step).

    Attributes:
        step: the step i whose predicted clean image x̂_i is rewarded, from 0.
        weight: w_i.
        through: the network evaluations that the gradient passes, from step i backwards, in 1 … i + 1.
        redraws: the number of times that x̂_i is noised again to the level of step i, and denoised; the reward is the
            mean over the image and these (DRaFT-LV). They need `through` 1 in all terms of an update.
    """

    step: int
    weight: float
    through: int = 1
    redraws: int = 0

    @property
    def first(self) -> int:
        """The first step whose network evaluation the gradient passes."""
        return self.step - self.through + 1


@dataclass(frozen=True, kw_only=True)
class RewardGradient(ABC):
    """An objective that is climbed by the gradient of the reward itself, which must be differentiable.

    Subclasses are frozen dataclasses; their fields are the settings of the section `algorithm`. A subclass that has a
    `__post_init__` calls this one's.

    Attributes:
        num_steps: numbers of steps among which every update draws one; empty takes `sample.num_steps` alone.
        reward_augment: random views of each image over which the reward is averaged.
        branches: trajectories of a group: one, as nothing is compared.

    Raises:
        ValueError: if a field is out of its range.
    """

    num_steps: list[int] = field(default_factory=list)
    reward_augment: Augment = Augment()

    branches: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if any(count < 1 for count in self.num_steps):
            raise ValueError("algorithm.num_steps must be a list of numbers of at least 1, such as [1, 2, 4]")
        if len(set(self.num_steps)) != len(self.num_steps):
            raise ValueError("algorithm.num_steps names a number twice: every update draws each with the same chance")

    def step_numbers(self, own: int) -> list[int]:
        """The numbers of steps among which every update draws one: `num_steps`, or `own` alone where it is empty."""
        return self.num_steps or [own]

    @abstractmethod
    def terms(self, num_steps: int, generator: Generator) -> list[Term]:
        """Choose the rewarded images of one update.

        Args:
            num_steps: T, the steps of this update's trajectories.
            generator: the source of random choices, the same on all processes.

        Returns:
            At least one term; no two have the same step.
        """

    def objective(self, rewards: Tensor) -> Tensor:
        """Turn the rewards of N images into what is maximised, elementwise, [N]; here the rewards themselves."""
        return rewards


def check_terms(algorithm: RewardGradient, terms: list[Term], num_steps: int) -> list[Term]:
    """Verify the terms that an algorithm, which may be the user's own, chose for an update.

    Args:
        algorithm: the algorithm, for the message.
        terms: the terms.
        num_steps: T.

    Returns:
        The terms.

    Raises:
        UserError: if there is no term, two have the same step, a step or `through` is out of its range, a number is not
            finite, or redraws stand beside a gradient through several evaluations.
    """
    who, steps = f"algorithm {type(algorithm).__name__}: terms({num_steps}, …)", [term.step for term in terms]
    if not terms or len(set(steps)) != len(steps):
        raise UserError(f"{who} returned the steps {steps}: return at least one term, and one for each step")
    for term in terms:
        if not (0 <= term.step < num_steps and 1 <= term.through <= term.step + 1 and math.isfinite(term.weight)):
            raise UserError(
                f"{who} returned {term}: use a step from 0 to {num_steps - 1}, a finite weight, and through from 1 to "
                "step + 1"
            )
    if any(term.redraws for term in terms) and any(term.through > 1 for term in terms):
        raise UserError(f"{who} returned redraws beside a gradient through several evaluations: set through=1 in all")
    return terms


def check_at_least_one(algorithm: RewardGradient, *fields: str) -> None:
    """Reject fields below 1.

    Raises:
        ValueError: naming the first such field.
    """
    for name in fields:
        if getattr(algorithm, name) < 1:
            raise ValueError(f"algorithm.{name} must be at least 1")
