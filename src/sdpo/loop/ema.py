"""The exponential moving average of the trained weights.

Without a warm-up, the weights that training starts from keep a share of decayⁿ after n optimizer steps. For a short run
the average then lies between the base model and the trained one, which keeps what the reward does not see (Wortsman et
al. 2022, Robust fine-tuning of zero-shot models, arXiv 2109.01903).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of parameters.

    Args:
        parameters: the parameters that are averaged.
        decay: the decay of an update.
        changed: called when the parameters have been replaced by their average, or back.
        warmup: whether update n uses min(decay, (1 + n) / (10 + n)), which soon forgets the weights of the start.

    Attributes:
        count: the number of updates so far.
        average: the averages, one a parameter.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        decay: float,
        changed: Callable[[], None] = lambda: None,
        warmup: bool = True,
    ) -> None:
        self.parameters = parameters
        self.decay = decay
        self.warmup = warmup
        self.count = 0
        self._changed = changed
        self.average = [p.detach().clone() for p in parameters]

    def resume(self, count: int) -> None:
        """Continue the warm-up of the decay after `count` updates; the averages are set by the caller."""
        self.count = count

    @torch.no_grad()
    def update(self) -> None:
        """Take the current weights into the average."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count)) if self.warmup else self.decay
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the parameters hold the average."""
        trained = [p.detach().clone() for p in self.parameters]
        self._set(self.average)
        try:
            yield
        finally:
            self._set(trained)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(list[Tensor](self.parameters), values)
        self._changed()
