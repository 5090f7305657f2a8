"""An algorithm's loss that is spoiled at a known call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sdpo.method.types import LossOutput

Loss = Callable[[Any, Any], LossOutput]


def spoiled_loss(loss: Loss, at: int | None, spoil: Callable[[Tensor], Tensor]) -> Loss:
    """A method that computes an algorithm's loss and changes the value of one call.

    Args:
        loss: the method `loss` of an algorithm's class.
        at: the call that is changed, from 1; 0 changes none, None changes all.
        spoil: returns the value that takes the place of a loss.
    """
    calls = 0

    def spoiled(algorithm: Any, batch: Any) -> LossOutput:
        nonlocal calls
        calls += 1
        output = loss(algorithm, batch)
        return dataclasses.replace(output, loss=spoil(output.loss)) if at in (None, calls) else output

    return spoiled
