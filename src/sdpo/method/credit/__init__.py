"""Credit rules, one small file each: from the dense rewards of a trajectory to the returns of its steps."""

from sdpo.method.credit.base import Credit
from sdpo.method.credit.future import FutureCredit, future_returns
from sdpo.method.credit.gain import GainCredit, gains
from sdpo.method.credit.step import StepCredit, discounted_returns
from sdpo.method.credit.temporal import temporal_weights

CREDITS: dict[str, type[Credit]] = {"step": StepCredit, "future": FutureCredit, "gain": GainCredit}

__all__ = [
    "CREDITS",
    "Credit",
    "FutureCredit",
    "GainCredit",
    "StepCredit",
    "discounted_returns",
    "future_returns",
    "gains",
    "temporal_weights",
]
