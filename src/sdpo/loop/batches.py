"""Deals the prompts of an epoch to the batches and processes of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdpo.method import seeds
from sdpo.prompts import Prompt


@dataclass(frozen=True)
class Batches:
    """The prompts of each epoch, in the order in which batches take them.

    Which prompts an epoch has, and their order, depend on the seed and the epoch alone, not on the number of processes.

    Attributes:
        prompts: the prompts of the run.
        prompts_per_epoch: groups an epoch, over all processes.
        batch_size: groups an optimizer step, over all processes; divides `prompts_per_epoch`.
        seed: the run's seed.
        rank: this process's rank.
        processes: the number of processes; divides `batch_size`.
    """

    prompts: Sequence[Prompt]
    prompts_per_epoch: int
    batch_size: int
    seed: int
    rank: int = 0
    processes: int = 1

    @property
    def groups(self) -> int:
        """Groups an epoch on this process."""
        return self.prompts_per_epoch // self.processes

    def deal(self, epoch: int) -> tuple[list[Prompt], list[int]]:
        """Deal this process's slice of every batch.

        Args:
            epoch: the epoch, from 1.

        Returns:
            The prompts of B groups, and their global sample indices.
        """
        share = self.batch_size // self.processes  # groups of a batch on one process
        order = seeds.permutation(self.prompts_per_epoch, self.seed, epoch, "batches").reshape(-1, self.batch_size)
        mine: list[int] = order[:, self.rank * share : (self.rank + 1) * share].flatten().tolist()
        return [self._draw(epoch, index) for index in mine], mine

    def _draw(self, epoch: int, index: int) -> Prompt:
        """Draw prompts in a random order that is new each time all of them have been used."""
        position = (epoch - 1) * self.prompts_per_epoch + index
        lap, place = divmod(position, len(self.prompts))
        return self.prompts[int(seeds.permutation(len(self.prompts), self.seed, lap, "prompts")[place])]
