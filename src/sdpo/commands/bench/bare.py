"""The bare work of an epoch: the same network evaluations, decoding and rewards without the loop around them."""

from __future__ import annotations

from collections.abc import Mapping

from sdpo.commands.bench.epoch import EpochWork
from sdpo.commands.bench.images import EpochImages
from sdpo.commands.bench.network import BareNetwork
from sdpo.trainer import Trainer


class BareWork:
    """Times the bare work of a run's epochs.

    Args:
        trainer: the run.
        work: the work of one of its epochs.
        own: samples in a network call of the run, by pass: `forward` and `backward`.

    Attributes:
        best: samples in a network call at which the network is fastest, by pass.
    """

    def __init__(self, trainer: Trainer, work: EpochWork, own: Mapping[str, int]) -> None:
        self._own = own
        self._count = {"forward": work.forward, "backward": work.backward}
        self._precision = trainer.parts.precision
        with self._precision():
            self._network = BareNetwork(trainer.parts)
            self._images = EpochImages(trainer, work.queries)
            self.best = {kind: self._network.best_size(kind, size, self._count[kind]) for kind, size in own.items()}

    def times(self) -> dict[str, float]:
        """Do the bare work of one epoch.

        Returns:
            `bare_…`, the fields of `BenchResult.bare`, and `limit`, in seconds.
        """
        times: dict[str, float] = {}
        with self._precision():
            for kind, count in self._count.items():
                for where, size in (("same", self._own[kind]), ("best", self.best[kind])):
                    times[f"bare_{kind}_{where}"] = self._network.seconds_per_sample(kind, size, count)
            times["bare_decode"], times["bare_reward"] = self._images.times()
        network = sum(count * times[f"bare_{kind}_best"] for kind, count in self._count.items())
        return {**times, "limit": network + times["bare_decode"] + times["bare_reward"]}
