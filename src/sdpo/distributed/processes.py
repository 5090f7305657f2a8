"""The processes of a run: their devices, and collectives among them. A single process communicates with nobody."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from sdpo.distributed.launch import check_unsharded
from sdpo.errors import LostProcessError, UserError, cause

_LOST = (
    "another process of this run has ended: it was killed or ran out of memory, unless it printed another reason "
    "above. Rerun the command to resume from the last checkpoint."
)


class Processes:
    """The processes of this run, as `accelerate launch` started them.

    Args:
        device: `auto`, or the name of a torch device.
        sharded: whether the caller shards what the launch asks it to shard.

    Attributes:
        state: accelerate's state of this process.
        count: number of processes.
        rank: this process's number, from 0.
        is_main: whether this process has rank 0.
        device: this process's device.

    Raises:
        UserError: if there is no such device, all processes would use the same accelerator, or the launch asks for
            sharding and the caller does not shard.
    """

    def __init__(self, device: str = "auto", sharded: bool = False) -> None:
        if not sharded:
            check_unsharded()
        chosen = check_device(device, "device")
        # accelerate starts a group of CPU processes only when told that they use the CPU.
        self.state = PartialState(cpu=device == "cpu" or not torch.accelerator.is_available())
        self.count: int = self.state.num_processes
        self.rank: int = self.state.process_index
        self.is_main: bool = self.state.is_main_process
        if self.count > 1 and chosen is not None and chosen.index is not None:
            raise UserError(f"device={device} would put all {self.count} processes on one device: set device=auto")
        # `cuda` without an index stands for this process's own GPU.
        same = chosen is None or chosen.type == self.state.device.type and chosen.index is None
        self.device: torch.device = self.state.device if same or chosen is None else chosen

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all processes, on the tensor's device."""
        if self.count == 1:
            return tensor
        total = tensor.to(self.state.device, copy=True)  # NCCL does not reduce tensors on a CPU
        with _collective():
            torch.distributed.all_reduce(total)
        return (total / self.count).to(tensor.device)

    def broadcast(self, value: Any) -> Any:
        """The main process's value, on every process."""
        with _collective():
            return broadcast_object_list([value])[0] if self.count > 1 else value

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, in the order of their ranks."""
        with _collective():
            return items if self.count == 1 else list(gather_object(items))

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        with _collective():
            self.state.wait_for_everyone()


@contextlib.contextmanager
def _collective() -> Iterator[None]:
    """Translate the error of a collective, which fails because another process ended before it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostProcessError(_LOST) from error


@contextlib.contextmanager
def explaining_lost_process() -> Iterator[None]:
    """Translate errors of collectives inside other work, such as calls of a sharded network; let other errors pass.

    Raises:
        LostProcessError: if the error says that another process ended.
    """
    try:
        yield
    except RuntimeError as error:
        named = isinstance(error, torch.distributed.DistError) if torch.distributed.is_available() else False
        if named or any(sign in str(error) for sign in ("gloo", "NCCL", "Connection closed by peer")):
            raise LostProcessError(f"{_LOST} ({cause(error)})") from error
        raise


def first_to_fail() -> bool:
    """Whether this process is the first of the run to call this, and so should print why the run failed.

    Where the processes cannot reach each other, the first process of each machine is.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        return torch.distributed.distributed_c10d._get_default_store().add("sdpo/failures", 1) == 1
    except RuntimeError:  # the store ended with the process that held it
        return True


def check_device(name: str, where: str) -> torch.device | None:
    """The torch device of a name; None for `auto`.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:1`, …
        where: the config key that names the device, for messages.

    Raises:
        UserError: if torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return None
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either
        raise UserError(
            f"{where}={name}: not a device of this machine ({cause(error)}); set {where}=auto to choose one"
        ) from error
    return device
