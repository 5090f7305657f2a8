"""Credit for what a step changes: the dense reward is the critic of generalized advantage estimation.

Source: GAE (Schulman et al. 2016, arXiv 1506.02438) without a discount, where the reward of x̂_i takes the place of a
learned value function. Credit for the gain of a step is published for flow models as Stepwise-Flow-GRPO (arXiv
2603.28718) and DenseGRPO (arXiv 2601.20218).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sdpo.method.credit.base import Credit
from sdpo.method.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

    from sdpo.method.reward_plans import RewardPlan


def gains(values: Tensor, gae_lambda: float) -> Tensor:
    """A_i = Σ_k λ^k δ_{i+k} with δ_i = V_{i+1} − V_i; 0 at the last step, which nothing follows.

    λ = 1 is V_{T−1} − V_i, λ = 0 is V_{i+1} − V_i.

    Args:
        values: V, [..., T] in sampling order.
        gae_lambda: λ in 0 … 1.

    Returns:
        [..., T].
    """
    advantages = torch.zeros_like(values)
    for i in range(values.shape[-1] - 2, -1, -1):
        advantages[..., i] = values[..., i + 1] - values[..., i] + gae_lambda * advantages[..., i + 1]
    return advantages


def fitted_values(dense: Tensor) -> Tensor:
    """V_i = m_i + c_i (R̂_i − m_i), where m_i is the mean of R̂_i over the branches of the group.

    c_i comes from `other_groups_slopes`: 1 leaves R̂_i as it is, 0 leaves the mean that all branches share. At the last
    step V is the reward itself.

    Subtracting V_i adds no bias to the policy gradient: R̂_i and m_i are fixed before step i draws its noise, and c_i
    does not depend on the group. c_i R̂_i would be unbiased too, and the same up to a number that all branches share.
    But the error of c_i would then be multiplied by the level of the rewards, which can be many times their spread, and
    normalisers that do not compare branches would see it.

    Args:
        dense: R̂, [B, K, T] with at least two groups and two branches, those of all processes.

    Returns:
        float64 [B, K, T].

    Raises:
        ValueError: if there are fewer groups or branches.
    """
    if dense.shape[0] < 2 or dense.shape[1] < 2:
        raise ValueError(f"a fitted baseline needs two groups of two branches, got shape {tuple(dense.shape)}")
    rewards = dense.double()
    mean = rewards.mean(1, keepdim=True)
    deviations = rewards - mean
    slopes = other_groups_slopes(deviations)
    slopes[..., -1] = 1
    return mean + slopes * deviations


def other_groups_slopes(deviations: Tensor) -> Tensor:
    """c_i = Σ x y / (Σ x² + Σ y² / ν), the slope of y on x over all branches of all *other* groups.

    x is the deviation of R̂_i from the mean over its group's branches, y that of R̂_{T−1}, and ν = (B − 1)(K − 1) the
    number of degrees of freedom. Deviations within the group are what branches are compared by, and the sums of each
    group are its own, so that leaving it out is exact.

    The second term of the denominator is a ridge: one more deviation of the size of y that says nothing about y. Its
    share falls as 1/ν. It keeps the slope small where there are few groups, and at 0 where the R̂_i of the branches
    differ by rounding alone, as at a first step that they share.

    Args:
        deviations: [B, K, T], of mean 0 over the K branches.

    Returns:
        [B, 1, T], one slope for each group and step.
    """
    groups, branches = deviations.shape[:2]
    last = deviations[..., -1:]

    def over_others(products: Tensor) -> Tensor:
        own = products.sum(1, keepdim=True)  # [B, 1, T]
        return own.sum(0, keepdim=True) - own

    freedom = (groups - 1) * (branches - 1)
    ridge = over_others(last.square()).clamp(min=0) / freedom
    scale = over_others(deviations.square()).clamp(min=0) + ridge
    return over_others(deviations * last) / scale.where(scale > 0, 1.0)


@dataclass(frozen=True)
class GainCredit(Credit):
    """The change of the reward that a step brings about: `gains` of the dense rewards.

    Attributes:
        gae_lambda: λ in 0 … 1. 1 is the final reward less the step's own, without bias; 0 is the next step's reward
            less the step's own, which leaves out the noise of later steps, but takes the next reward for the final one.
        baseline: what the gains are taken of: `none` takes the rewards R̂_i as they are; `fitted` scales the differences
            of R̂_i between branches by a coefficient c_i for each step, fitted to the other groups of the epoch, so that
            they predict those of the final reward (`fitted_values`).

    Raises:
        ValueError: if λ is outside 0 … 1.
    """

    trains_last_step: ClassVar[bool] = False

    gae_lambda: float = 1.0
    baseline: Literal["none", "fitted"] = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"gae_lambda must be in 0 … 1, got {self.gae_lambda}")

    @property
    def min_groups(self) -> int:
        """Two where the coefficients come from other groups."""
        return 2 if self.baseline == "fitted" else 1

    def check_algorithm(
        self, *, branches: int, discount: float, reward_plan: RewardPlan, takes_trajectories: bool
    ) -> None:
        """Refuse algorithms whose advantages or rewards are not those of single steps; see `Credit.check_algorithm`."""
        if takes_trajectories:
            raise ValueError(
                "algorithm.credit=gain is the gain of single steps, but the loss of this algorithm takes one advantage "
                "for a whole trajectory: use algorithm.credit=step or future"
            )
        _check_discount(discount)
        if reward_plan.step_rewards == "zero":
            raise ValueError(
                "algorithm.credit=gain subtracts the reward of each step's own image, but the reward plan scores the "
                "last image alone, so that nothing would be subtracted: set algorithm.reward_plan=all, or use "
                "algorithm.credit=future, which gives the final reward to every step"
            )
        if self.baseline == "none":
            return
        if reward_plan.step_rewards != "scored":
            raise ValueError(
                "algorithm.credit.baseline=fitted needs the score of each step's own image, but the reward plan "
                "predicts rewards from those of later images, the final one among them: the fit would subtract what is "
                "to be learned; set algorithm.reward_plan=all"
            )
        if branches < 2:
            raise ValueError(
                "algorithm.credit.baseline=fitted is fitted to differences between the branches of a group, but "
                f"algorithm.branches is {branches}: use 2 or more, or algorithm.credit.baseline=none"
            )

    def __call__(self, dense: Tensor, discount: float) -> Tensor:
        """Compute `gains`; where the baseline is fitted, `dense` has the groups of all processes.

        Raises:
            ValueError: if the discount is not 1, or a fitted baseline gets fewer than two groups or branches.
        """
        _check_discount(discount)
        values = fitted_values(dense) if self.baseline == "fitted" else dense
        return gains(values, self.gae_lambda).to(dense.dtype)


def _check_discount(discount: float) -> None:
    """Refuse a discount, which has no consistent meaning here.

    R̂_i estimates the final reward itself, so the value of that reward discounted over the T−1−i steps that remain is
    γ^{T−1−i} R̂_i. With these values the discount only scales each step's gain, which normalisation undoes. The form
    γ R̂_{i+1} − R̂_i is for a critic that estimates discounted rewards: here it would add −(1 − γ) R̂_{i+1}, which depends
    on the level of the rewards.
    """
    if discount != 1:
        raise ValueError(
            "algorithm.credit=gain treats each step's reward as an estimate of the undiscounted final reward, but "
            f"algorithm.discount is {discount:g}: set algorithm.discount=1 (algorithm.credit.gae_lambda weighs distant "
            "steps)"
        )
