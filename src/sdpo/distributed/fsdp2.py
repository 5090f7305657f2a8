"""A network's weights spread over processes by torch's FSDP2, and what of them is at hand here."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sdpo.backbones.training import TrainableBackbone
from sdpo.errors import UserError


def spread(
    network: nn.Module,
    mesh: DeviceMesh,
    device: torch.device,
    dtype: torch.dtype,
    blocks: Collection[str],
    reshard_after_forward: bool,
) -> None:
    """Keep only this process's part of the network's weights; each unit is gathered when it is called.

    Small trained weights, those of a LoRA, stay whole on every process: beside the network they are nothing.

    Args:
        network: changed in place.
        mesh: of all processes.
        device: this process's, where the weights go.
        dtype: what weights that are all trained, in float32, are gathered and used in; frozen ones have it already.
        blocks: names of the classes whose modules are units; what is left is one more.
        reshard_after_forward: give a unit's other parts back after its forward pass; else after its backward pass.
    """
    units = [m for m in network.modules() if m is not network and type(m).__name__ in blocks]
    trained = {p for p in network.parameters() if p.requires_grad}
    whole = trained if len(trained) < len(list(network.parameters())) else set[nn.Parameter]()
    for parameter in network.parameters():
        if not parameter.is_contiguous():
            parameter.data = parameter.data.contiguous()  # channels-last weights cannot be sharded
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    precision = MixedPrecisionPolicy(
        param_dtype=None if whole else dtype, reduce_dtype=None if whole else torch.float32, cast_forward_inputs=False
    )
    options: dict[str, Any] = dict(mesh=mesh, reshard_after_forward=reshard_after_forward, mp_policy=precision)
    for module in [*reversed(units), network]:  # inner ones first
        fully_shard(module, ignored_params=whole, **options)
    for buffer in network.buffers():
        buffer.data = buffer.data.to(device)


def check_blocks(network: nn.Module, named: Collection[str]) -> None:
    """Each class that the user names must be there; a model's own list may have more than it uses.

    Raises:
        UserError: if no module is of such a class.
    """
    missing = set(named) - {type(m).__name__ for m in network.modules() if m is not network}
    if missing:
        there = ", ".join(sorted({type(m).__name__ for m in network.modules() if any(m.children())}))
        raise UserError(
            f"accelerate's configuration wraps {', '.join(sorted(missing))}, which the network does not have: {there}"
        )


class Spread:
    """A backbone whose network is spread over processes, and what takes more care there than it does elsewhere.

    Making it spreads the network and moves all else of the pipeline to the device.

    Args:
        backbone: ready to train, in main memory.
        mesh: of all processes.
        device: this process's.
        dtype: what the network computes in.
        blocks: names of the classes that become units; None is those that the network repeats.
        reshard_after_forward: see `spread`.

    Raises:
        UserError: see `check_blocks`.
    """

    def __init__(
        self,
        backbone: TrainableBackbone,
        mesh: DeviceMesh,
        device: torch.device,
        dtype: torch.dtype,
        blocks: Collection[str] | None,
        reshard_after_forward: bool,
    ) -> None:
        network: Any = backbone.network_module
        self.network = network
        self._class = type(network)
        if blocks is None:
            own = backbone.repeated_blocks or getattr(network, "_repeated_blocks", None) or network._no_split_modules
            blocks = own or ()
        else:
            check_blocks(network, blocks)
        spread(network, mesh, device, dtype, blocks, reshard_after_forward)
        self._initial = {} if backbone.has_lora else {n: local(p).clone() for n, p in network.named_parameters()}
        for module in backbone.pipeline.components.values():
            if isinstance(module, nn.Module) and module is not network:
                module.to(device)
        backbone.device, backbone.is_sharded, backbone.spread = device, True, self

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """The base model where all weights are trained and split: the parts are written over, and back."""
        forget_gathered(self.network)
        parts = {n: local(p) for n, p in self.network.named_parameters()}
        trained = {n: part.clone() for n, part in parts.items()}

        def write(values: dict[str, Tensor]) -> None:
            with torch.no_grad():
                for name, part in parts.items():
                    part.copy_(values[name])
            forget_gathered(self.network)

        write(self._initial)
        try:
            yield
        finally:
            write(trained)

    @contextlib.contextmanager
    def whole(self, pipeline: Any, component: str, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """A context in which the pipeline's network is whole; `weights` are its gathered ones."""
        with torch.device("meta"):
            whole: Any = self._class.from_config(self.network.config)
        buffers = {name: value for name, value in self.network.state_dict().items() if name not in weights}
        whole.load_state_dict({**buffers, **weights}, assign=True)
        setattr(pipeline, component, whole)
        try:
            yield
        finally:
            setattr(pipeline, component, self.network)


def local(parameter: nn.Parameter) -> Tensor:
    """This process's part of a parameter, which writing to changes; it may be empty."""
    assert isinstance(parameter, DTensor)
    return parameter._local_tensor  # to_local() refuses in-place changes of a leaf that requires a gradient


def gathered(part: Tensor, like: nn.Parameter) -> Tensor:
    """The whole tensor, of which every process has a part as it has one of `like`; all must ask for it."""
    assert isinstance(like, DTensor)
    placed = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return placed.full_tensor()


def part_of(whole: Tensor, like: nn.Parameter) -> Tensor:
    """This process's part of a tensor that all have whole."""
    assert isinstance(like, DTensor)
    whole = whole.to(like.device_mesh.device_type, like.dtype)
    placed = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return placed.to_local()


def forget_gathered(network: nn.Module) -> None:
    """Give back what has been gathered, so that it is gathered anew when the parts have been changed."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
