"""What several processes share: sums of tensors and gathered objects. One process needs neither."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from sdpo.errors import UserError


class Processes:
    """The processes of this run, as `accelerate launch` started them.

    Args:
        device: `auto`, or one that torch knows.

    Raises:
        UserError: if there is no such device, or every process would take the same accelerator.
    """

    def __init__(self, device: str = "auto") -> None:
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
        torch.distributed.all_reduce(total)
        return (total / self.count).to(tensor.device)

    def broadcast(self, value: Any) -> Any:
        """The first process's value, on every process."""
        return broadcast_object_list([value])[0] if self.count > 1 else value

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, by rank."""
        return items if self.count == 1 else list(gather_object(items))

    def barrier(self) -> None:
        """Wait for all."""
        self.state.wait_for_everyone()


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
