"""What several processes share: sums of tensors and gathered objects. One process needs neither."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from sdpo.errors import LostProcessError, UserError

# What `accelerate launch` sets for the sharding that its configuration asks for, and what that is called.
FSDP = ("ACCELERATE_USE_FSDP", "FSDP")
DEEPSPEED = ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")
MEGATRON = ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")
PARALLELISM = ("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism_config")


_LOST = (
    "another process of this run has ended: killed, or out of memory, unless it says otherwise above. The same command "
    "goes on from the last checkpoint."
)


class Processes:
    """The processes of this run, as `accelerate launch` started them.

    Args:
        device: `auto`, or one that torch knows.
        sharded: whether the caller does what a launch that asks for sharding wants, see `sharding`.

    Raises:
        UserError: if there is no such device, every process would take the same accelerator, or the launch asks for
            sharding that the caller does not do.
    """

    def __init__(self, device: str = "auto", sharded: bool = False) -> None:
        if not sharded:
            _check_launch()
        chosen = check_device(device, "device")
        # accelerate starts a group of CPU processes only when told that they are to use the CPU.
        self.state = PartialState(cpu=device == "cpu" or not torch.accelerator.is_available())
        self.count: int = self.state.num_processes
        self.rank: int = self.state.process_index
        self.is_main: bool = self.state.is_main_process
        if self.count > 1 and chosen is not None and chosen.index is not None:
            raise UserError(f"device={device} would put all {self.count} processes on one: leave device=auto")
        # `cuda` among several processes means this process's own.
        same = chosen is None or chosen.type == self.state.device.type and chosen.index is None
        self.device: torch.device = self.state.device if same or chosen is None else chosen

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.count == 1:
            return tensor
        total = tensor.to(self.state.device, copy=True)  # NCCL reduces nothing that lies on a CPU
        with _together():
            torch.distributed.all_reduce(total)
        return (total / self.count).to(tensor.device)

    def broadcast(self, value: Any) -> Any:
        """The first process's value, on every process."""
        with _together():
            return broadcast_object_list([value])[0] if self.count > 1 else value

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, by rank."""
        with _together():
            return items if self.count == 1 else list(gather_object(items))

    def barrier(self) -> None:
        """Wait for all."""
        with _together():
            self.state.wait_for_everyone()


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """A collective fails where another process has failed first; that one has said why, unless it was killed."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostProcessError(_LOST) from error


@contextlib.contextmanager
def maybe_together() -> Iterator[None]:
    """As `_together`, of work that has collectives among other things: a sharded network's calls, say."""
    try:
        yield
    except RuntimeError as error:
        named = isinstance(error, torch.distributed.DistError) if torch.distributed.is_available() else False
        if named or any(sign in str(error) for sign in ("gloo", "NCCL", "Connection closed by peer")):
            raise LostProcessError(f"{_LOST} ({str(error).splitlines()[0]})") from error
        raise


def first_to_fail() -> bool:
    """Whether no other process of this run has asked this before; of those that cannot ask, one a machine."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        return torch.distributed.distributed_c10d._get_default_store().add("sdpo/failures", 1) == 1
    except RuntimeError:  # it ended with the process that held it
        return True


def is_set(variable: str) -> bool:
    """Whether an environment variable says yes, as accelerate writes it."""
    return os.environ.get(variable, "false").lower() in ("true", "1")


def _check_launch() -> None:
    """Refuse a launch that would silently get less than it asks for."""
    for variable, name in (FSDP, DEEPSPEED, MEGATRON, PARALLELISM):
        if is_set(variable):
            raise UserError(
                f"accelerate's configuration asks for {name}, which shards a model over the processes; of sdpo only "
                "`train` does that. Launch this with distributed_type MULTI_GPU, as examples/accelerate/ does."
            )


def check_device(name: str, where: str) -> torch.device | None:
    """The device of that name; None for `auto`.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:1`, …
        where: the setting it comes from, for messages.

    Raises:
        UserError: if torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return None
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's two ways to say no
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{where}={name}: not a device of this machine ({reason}); auto chooses one") from error
    return device
