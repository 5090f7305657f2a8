"""The base of credit rules: what a rule declares to the algorithm and to the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from sdpo.method.reward_plans import RewardPlan


class Credit(ABC):
    """Turns dense rewards into returns: how far each step of a trajectory is responsible for each reward.

    Subclasses are frozen dataclasses; their fields are the settings of `algorithm.credit`.

    Attributes:
        trains_last_step: whether the last step's return can depend on that step's noise. The update skips the last step
            where it cannot.
    """

    trains_last_step: ClassVar[bool] = True

    @property
    def min_groups(self) -> int:
        """The fewest groups of an epoch that the rule can work with.

        A rule for which it is above 1 compares groups: it gets those of all processes, on the CPU, by global sample
        index. Any other rule gets those of its own process.
        """
        return 1

    def check_algorithm(  # noqa: B027 (most rules mean something with every algorithm)
        self, *, branches: int, discount: float, reward_plan: RewardPlan, takes_trajectories: bool
    ) -> None:
        """Refuse the settings of an algorithm with which the rule has no meaning.

        Args:
            branches: K.
            discount: γ in 0 … 1.
            reward_plan: the plan that makes the dense rewards.
            takes_trajectories: whether the algorithm takes one advantage for a whole trajectory.

        Raises:
            ValueError: naming the setting, the reason and the fix.
        """

    @abstractmethod
    def __call__(self, dense: Tensor, discount: float) -> Tensor:
        """Compute the return of every step.

        Args:
            dense: a reward for every step, float32 [B, K, T], in sampling order.
            discount: γ in 0 … 1.

        Returns:
            float32 [B, K, T].
        """
