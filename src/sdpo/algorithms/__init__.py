"""Learning algorithms: one small file each. Their fields are what the `algorithm` section of a config fills."""

from sdpo.algorithms.base import Algorithm
from sdpo.algorithms.sdpo import SDPO, sdpo_loss

ALGORITHMS: dict[str, type[Algorithm]] = {"sdpo": SDPO}

__all__ = ["ALGORITHMS", "SDPO", "Algorithm", "sdpo_loss"]
