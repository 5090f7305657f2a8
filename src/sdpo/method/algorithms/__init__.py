"""Learning algorithms, one small file each. The section `algorithm` of a configuration sets their fields."""

from typing import Any

from sdpo.method.algorithms.base import Algorithm
from sdpo.method.algorithms.d3po import D3PO
from sdpo.method.algorithms.ddpo import DDPO
from sdpo.method.algorithms.grpo import GRPO
from sdpo.method.algorithms.prdp import PRDP
from sdpo.method.algorithms.rebel import REBEL
from sdpo.method.algorithms.sdpo import SDPO, sdpo_loss

ALGORITHMS: dict[str, type[Algorithm[Any]]] = {
    "sdpo": SDPO,
    "ddpo": DDPO,
    "d3po": D3PO,
    "rebel": REBEL,
    "prdp": PRDP,
    "grpo": GRPO,
}

__all__ = ["ALGORITHMS", "D3PO", "DDPO", "GRPO", "PRDP", "REBEL", "SDPO", "Algorithm", "sdpo_loss"]
