"""The memory layout of a network's weights: whole on this process, or sharded over the ranks of a launch."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

from torch import Tensor, nn


class NetworkWeights(ABC):
    """The weights of a denoising network. `WholeWeights` is the default; `distributed` has the sharded layout.

    Attributes:
        is_sharded: whether this process holds only its shard of each weight.
    """

    is_sharded: bool

    @abstractmethod
    def initial(self) -> AbstractContextManager[None]:
        """A context in which the network has the weights from before training, where all its weights are trained."""

    @abstractmethod
    def whole(self, gathered: Mapping[str, Tensor]) -> nn.Module:
        """The network with complete weights, ready to be written to files.

        Args:
            gathered: The complete trained weights by name, where the network itself holds only shards.
        """


class WholeWeights(NetworkWeights):
    """Every weight lies complete on this process.

    Args:
        network: the denoising network.
        keep_initial: whether to copy the present weights for `initial`. Without the copy, `initial` changes nothing.
    """

    is_sharded = False

    def __init__(self, network: nn.Module, keep_initial: bool = False) -> None:
        self._network = network
        parameters = network.named_parameters() if keep_initial else ()
        self._initial = {name: parameter.detach().clone() for name, parameter in parameters}

    @contextlib.contextmanager
    def initial(self) -> Iterator[None]:
        """Swap the initial weights in, and the trained ones back on leaving."""
        trained = {
            name: parameter.data for name, parameter in self._network.named_parameters() if name in self._initial
        }
        self._set(self._initial)
        try:
            yield
        finally:
            self._set(trained)

    def whole(self, gathered: Mapping[str, Tensor]) -> nn.Module:
        """The network itself."""
        del gathered
        return self._network

    def _set(self, weights: Mapping[str, Tensor]) -> None:
        parameters = dict(self._network.named_parameters())
        for name, weight in weights.items():
            parameters[name].data = weight
