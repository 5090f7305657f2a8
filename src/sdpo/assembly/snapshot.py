"""Between the parts of a run and a checkpoint: what is saved, and how it is restored."""

from __future__ import annotations

import dataclasses

from sdpo.assembly.micro_batches import MicroBatches
from sdpo.assembly.parts import Parts
from sdpo.loop.epoch_row import Counters
from sdpo.run.checkpoint import Checkpoint


def take_snapshot(
    parts: Parts, epoch: int, counters: Counters, micro_batches: MicroBatches, score: float | None
) -> Checkpoint:
    """Collect what a run needs to resume after an epoch; sharded weights are gathered by all processes.

    Args:
        parts: the parts of the run.
        epoch: the epoch that has ended.
        counters: what the run has spent.
        micro_batches: groups a network call.
        score: the gain by which the checkpoint can be the best one, or None.
    """
    return Checkpoint(
        epoch=epoch,
        weights=parts.optimization.weights(),
        ema=parts.optimization.average(),
        state={
            "updater": parts.optimization.state_dict(),
            "normalizer": parts.normalizer.state_dict(),
            "mix": parts.mix.state_dict(),
            "counters": dataclasses.asdict(counters),
            "micro_batches": dataclasses.asdict(micro_batches),
        },
        score=score,
    )


def restore_snapshot(parts: Parts, checkpoint: Checkpoint) -> tuple[Counters, MicroBatches]:
    """Restore the weights, the optimizer and the statistics of a run.

    Args:
        parts: the parts of the run, whose state is replaced.
        checkpoint: the state after an epoch.

    Returns:
        What the run had spent, and its micro-batches: those that `auto` found before are kept, as another choice would
        change the rounding.
    """
    state, config = checkpoint.state, parts.config
    parts.optimization.take(checkpoint.weights, checkpoint.ema)
    parts.optimization.load_state_dict(state["updater"])
    parts.normalizer.load_state_dict(state["normalizer"])
    parts.mix.load_state_dict(state["mix"])
    settings = {"sample": config.sample.micro_batch, "update": config.train.micro_batch}
    kept = {name: state["micro_batches"][name] for name, setting in settings.items() if setting == "auto"}
    return Counters(**state["counters"]), dataclasses.replace(parts.micro_batches, **kept)
