"""Learning algorithms: one small file each. Their fields are what the `algorithm` section of a config fills."""

from typing import Any

from sdpo.algorithms.base import Algorithm
from sdpo.algorithms.d3po import D3PO
from sdpo.algorithms.ddpo import DDPO
from sdpo.algorithms.grpo import GRPO
from sdpo.algorithms.rebel import PRDP, REBEL
from sdpo.algorithms.sdpo import SDPO, sdpo_loss

ALGORITHMS: dict[str, type[Algorithm[Any]]] = {
    "sdpo": SDPO,
    "ddpo": DDPO,
    "d3po": D3PO,
    "rebel": REBEL,
    "prdp": PRDP,
    "grpo": GRPO,
}

__all__ = ["ALGORITHMS", "D3PO", "DDPO", "GRPO", "PRDP", "REBEL", "SDPO", "Algorithm", "sdpo_loss"]
