"""The common base of sharded optimizers: a checkpoint's tensors are gathered, and kept by the main process alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sdpo.loop.optimizer import Make, Optimization


class ShardedOptimization(Optimization):
    """The optimizer's side of an update whose state is sharded over ranks; all ranks gather it together.

    Args:
        main: whether this process is the main one, which keeps the gathered tensors.
        parameters: the trained parameters by name.
        make: makes the optimizer and its schedule over given tensors.
        options: the keyword arguments of `Optimization`.
    """

    collective = True

    def __init__(self, main: bool, parameters: Mapping[str, nn.Parameter], make: Make, **options: Any) -> None:
        self.main = main
        super().__init__(parameters, make, **options)

    def _kept(self, whole: Tensor) -> Tensor | None:
        """A gathered tensor in main memory, on the main process; None on the others."""
        return whole.cpu() if self.main else None
