"""A network's weights, sharded over ranks by torch's FSDP2."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.backbones.training import TrainableBackbone
from sdpo.backbones.weights import NetworkWeights
from sdpo.errors import UserError

if torch.distributed.is_available():
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor


def shard_network(
    backbone: TrainableBackbone,
    mesh: DeviceMesh,
    device: torch.device,
    dtype: torch.dtype,
    blocks: Collection[str] | None,
    reshard_after_forward: bool,
) -> None:
    """Shard a backbone's network over ranks, and move the pipeline's other modules to this rank's device.

    Args:
        backbone: ready to train, in main memory; it is changed in place.
        mesh: the mesh of all ranks.
        device: this rank's device.
        dtype: data type that the network computes in.
        blocks: class names of the modules that become one unit each; None stands for the model's own blocks.
        reshard_after_forward: whether a unit's gathered weights are freed after its forward pass; otherwise they stay
            until its backward pass.

    Raises:
        UserError: if the network has no module of a class that `blocks` names.
    """
    network: Any = backbone.network_module
    unsharded_class = type(network)  # FSDP2 replaces the class
    if blocks is None:
        blocks = backbone.block_classes() or network._no_split_modules or ()
    else:
        check_blocks(network, blocks)
    shard_weights(network, mesh, device, dtype, blocks, reshard_after_forward)
    weights = ShardedWeights(network, unsharded_class, keep_initial=not backbone.has_lora)
    backbone.attach_sharded(weights, device)


def check_blocks(network: nn.Module, named: Collection[str]) -> None:
    """Refuse block classes from the user that the network does not have; a model's own list may hold unused ones.

    Raises:
        UserError: if the network has no module of a class in `named`.
    """
    missing = set(named) - {type(m).__name__ for m in network.modules() if m is not network}
    if missing:
        present = ", ".join(sorted({type(m).__name__ for m in network.modules() if any(m.children())}))
        raise UserError(
            f"accelerate's configuration wraps {', '.join(sorted(missing))}, which the network does not have: choose "
            f"fsdp_transformer_layer_cls_to_wrap from {present}"
        )


def shard_weights(
    network: nn.Module,
    mesh: DeviceMesh,
    device: torch.device,
    dtype: torch.dtype,
    blocks: Collection[str],
    reshard_after_forward: bool,
) -> None:
    """Keep only this rank's shard of each weight; a unit's weights are gathered when the unit is called.

    The trained weights of a LoRA stay whole on every rank: they are small beside the network.

    Args:
        network: the denoising network, changed in place.
        mesh: the mesh of all ranks.
        device: this rank's device, which the weights move to.
        dtype: data type in which trained float32 weights are gathered and used; frozen weights have it already.
        blocks: class names of the modules that become one unit each; all other weights are one more unit.
        reshard_after_forward: whether a unit's gathered weights are freed after its forward pass; otherwise they stay
            until its backward pass.
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
    for module in [*reversed(units), network]:  # inner units first
        fully_shard(module, ignored_params=whole, **options)
    for buffer in network.buffers():
        buffer.data = buffer.data.to(device)


class ShardedWeights(NetworkWeights):
    """The sharded layout of a network's weights.

    Args:
        network: the sharded network.
        unsharded_class: the network's class from before it was sharded.
        keep_initial: whether to copy the present shards for `initial`, which needs them where all weights are trained.
    """

    is_sharded = True

    def __init__(self, network: nn.Module, unsharded_class: type, keep_initial: bool) -> None:
        self._network: Any = network
        self._unsharded_class: Any = unsharded_class
        parameters = network.named_parameters() if keep_initial else ()
        self._initial = {name: local(parameter).clone() for name, parameter in parameters}

    @contextlib.contextmanager
    def initial(self) -> Iterator[None]:
        """Write the initial weights over this rank's shards, and the trained ones back on leaving."""
        forget_gathered(self._network)
        shards = {n: local(p) for n, p in self._network.named_parameters()}
        trained = {n: shard.clone() for n, shard in shards.items()}

        def write(values: dict[str, Tensor]) -> None:
            with torch.no_grad():
                for name, shard in shards.items():
                    shard.copy_(values[name])
            forget_gathered(self._network)

        write(self._initial)
        try:
            yield
        finally:
            write(trained)

    def whole(self, gathered: Mapping[str, Tensor]) -> nn.Module:
        """A new network of the unsharded class, with the gathered weights and this network's buffers."""
        with torch.device("meta"):
            network: Any = self._unsharded_class.from_config(self._network.config)
        buffers = {name: value for name, value in self._network.state_dict().items() if name not in gathered}
        network.load_state_dict({**buffers, **gathered}, assign=True)
        return network


def local(parameter: nn.Parameter) -> Tensor:
    """This rank's shard of a parameter, possibly empty; writing to it changes the parameter."""
    assert isinstance(parameter, DTensor)
    return parameter._local_tensor  # to_local() refuses in-place changes of a leaf that requires a gradient


def gathered(shard: Tensor, like: nn.Parameter) -> Tensor:
    """Gather a whole tensor from the shards of all ranks, which must all call this.

    Args:
        shard: this rank's shard, sharded in the same way as the parameter.
        like: a sharded parameter of the whole tensor's shape.
    """
    assert isinstance(like, DTensor)
    placed = DTensor.from_local(
        shard, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return placed.full_tensor()


def shard_of(whole: Tensor, like: nn.Parameter) -> Tensor:
    """This rank's shard of a tensor that every rank has whole, sharded in the same way as a parameter."""
    assert isinstance(like, DTensor)
    whole = whole.to(like.device_mesh.device_type, like.dtype)
    placed = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return placed.to_local()


def forget_gathered(network: nn.Module) -> None:
    """Free all gathered weights, so that the next call gathers changed shards again."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
