"""Gradients of single samples from one batched backward pass, for parameters of linear and convolutional layers.

The gradient of such a layer's weights for one sample is the product of that sample's inputs and the gradients at its
outputs (Goodfellow 2015, arXiv 1510.01799). A LoRA consists of such layers alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional


class LayerCalls:
    """Records the inputs and outputs of the layers that own trained parameters.

    Args:
        network: the network that owns the parameters.
        parameters: the trained parameters.

    Attributes:
        possible: whether every parameter is the weight or the bias of a linear layer or of a plain 2-D convolution.
    """

    def __init__(self, network: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        wanted, owners = {id(p) for p in parameters}, dict[int, tuple[nn.Module, str]]()
        for module in network.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in wanted and _is_simple(module):
                    owners[id(parameter)] = (module, name)
        self.possible = len(owners) == len(wanted)
        self._owners = owners
        self._calls: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """A context in which the calls of the layers are recorded; earlier ones are forgotten."""
        self._calls = {module: [] for module, _ in self._owners.values()}
        hooks = [module.register_forward_hook(self._record) for module in self._calls]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _record(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._calls[module].append((inputs[0].detach(), output))

    def gradients(self, values: Tensor, scale: float = 1.0) -> list[Tensor] | None:
        """The gradient of each of n values at every parameter.

        Args:
            values: [n], each a function of its own sample alone; sample j is row j of every layer's inputs, or the rows
                j, j + n, … where the network saw each sample several times.
            scale: a factor of the backward pass, which is taken out again.

        Returns:
            [n, *shape] for every parameter; None where a layer's inputs do not have rows of n samples.
        """
        calls = [(module, call) for module, calls in self._calls.items() for call in calls]
        count = len(values)
        if any(inputs.shape[0] % count or inputs.ndim < 2 for _, (inputs, _) in calls):
            return None
        outputs = [output for _, (_, output) in calls]
        arriving = torch.autograd.grad(scale * values.sum(), outputs, allow_unused=True)
        by_module: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {module: [] for module in self._calls}
        for (module, (inputs, _)), gradient in zip(calls, arriving, strict=True):
            if gradient is not None:
                by_module[module].append((inputs.float(), gradient.float() / scale))
        return [self._of_parameter(parameter, by_module, count) for parameter in self._parameters]

    def _of_parameter(
        self, parameter: nn.Parameter, calls: dict[nn.Module, list[tuple[Tensor, Tensor]]], count: int
    ) -> Tensor:
        """The sum over the calls of a parameter's layer, [n, *shape]."""
        module, name = self._owners[id(parameter)]
        total = torch.zeros(count, *parameter.shape, device=parameter.device)
        for inputs, gradient in calls[module]:
            columns, arriving = _as_columns(module, inputs, gradient)  # [rows, in, L], [rows, out, L]
            each = arriving.unflatten(0, (-1, count))
            if name == "bias":
                total += each.sum((0, 3))
            else:
                product = torch.einsum("cnol,cnil->noi", each, columns.unflatten(0, (-1, count)))
                total += product.reshape_as(total)
        return total


def _is_simple(module: nn.Module) -> bool:
    """Whether a layer is linear in its inputs and its weights, row by row."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)


def _as_columns(module: nn.Module, inputs: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs and the gradients at the outputs as products over L places, [rows, in, L] and [rows, out, L]."""
    if isinstance(module, nn.Conv2d):
        if module.kernel_size != (1, 1) or module.stride != (1, 1):
            assert not isinstance(module.padding, str), "_is_simple refuses those"
            columns = functional.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)
            return columns, gradient.flatten(2)
        return inputs.flatten(2), gradient.flatten(2)
    rows = len(inputs)
    return inputs.reshape(rows, -1, inputs.shape[-1]).mT, gradient.reshape(rows, -1, gradient.shape[-1]).mT
