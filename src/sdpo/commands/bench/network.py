"""The network alone: the time of its forward and backward passes at a batch size, and the best batch size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdpo.assembly import Parts
from sdpo.commands.bench.stopwatch import seconds

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # samples in a network call, among which the best is searched


class BareNetwork:
    """Calls the network of a run on random latents.

    Args:
        parts: the parts of the run.
    """

    def __init__(self, parts: Parts) -> None:
        self._backbone = parts.backbone
        self._policy = parts.policy
        self._prompt = parts.prompts[0].text
        self._embeddings = parts.embeddings

    def seconds_per_sample(self, kind: str, size: int, count: int) -> float:
        """Time calls of `size` samples each; returns the seconds of one sample.

        Args:
            kind: `forward` for a forward pass without gradient, `backward` for a forward and a backward pass.
            size: samples in a call.
            count: about this number of samples are used in all.
        """
        call = {"forward": self._forward, "backward": self._backward}[kind](size)
        calls = max(1, round(count / size))

        def all_calls() -> None:
            for _ in range(calls):
                call()

        return seconds(self._backbone.device, all_calls) / (calls * size)

    def best_size(self, kind: str, own: int, limit: int) -> int:
        """Find the batch size with the least time a sample, as far as memory suffices.

        Args:
            kind: `forward` or `backward`, as in `seconds_per_sample`.
            own: the run's batch size, which is tried too.
            limit: the largest batch size.
        """
        found: dict[int, float] = {}
        for size in sorted({*_SIZES, own}):
            if size > limit:
                break
            try:
                self.seconds_per_sample(kind, size, size)
                found[size] = min(self.seconds_per_sample(kind, size, 2 * size) for _ in range(3))
            except torch.OutOfMemoryError:
                break
        return min(found, key=found.__getitem__)

    def _forward(self, size: int) -> Callable[[], None]:
        inputs = self._inputs(size)

        def call() -> None:
            with self._policy.no_gradient(), self._policy.autocast():
                self._backbone.network(*inputs)

        return call

    def _backward(self, size: int) -> Callable[[], None]:
        inputs = self._inputs(size)
        parameters = list(self._backbone.trainable_parameters().values())

        def call() -> None:
            with self._policy.autocast():
                output = self._backbone.network(*inputs)
            output.float().square().mean().backward()
            for parameter in parameters:
                parameter.grad = None

        return call

    def _inputs(self, size: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        device = self._backbone.device
        latents = torch.randn(size, *self._backbone.latent_shape, device=device)
        return latents, torch.full((size,), 500, device=device), self._embeddings([self._prompt] * size)
