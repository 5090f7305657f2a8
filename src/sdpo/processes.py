"""What several processes share: sums of tensors and gathered objects. One process needs neither."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor


class Processes:
    """The processes of this run, as `accelerate launch` started them."""

    def __init__(self, device: str = "auto") -> None:
        # accelerate starts a group of CPU processes only when told that they are to use the CPU.
        self.state = PartialState(cpu=device == "cpu" or not torch.accelerator.is_available())
        self.count: int = self.state.num_processes
        self.rank: int = self.state.process_index
        self.is_main: bool = self.state.is_main_process
        self.device: torch.device = self.state.device if device == "auto" else torch.device(device)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.count == 1:
            return tensor
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total / self.count

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, by rank."""
        return items if self.count == 1 else list(gather_object(items))

    def barrier(self) -> None:
        """Wait for all."""
        self.state.wait_for_everyone()
