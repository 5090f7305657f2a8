"""Collects the state of a run's parts for a checkpoint, and restores the state on resume."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sdpo.assembly.micro_batches import MicroBatches
from sdpo.assembly.parts import Parts
from sdpo.errors import UserError
from sdpo.loop.counters import Counters
from sdpo.run.checkpoint import Checkpoint


@dataclass(frozen=True)
class Spent:
    """The costs of a run so far.

    Attributes:
        training: the costs of the epochs.
        evaluation: the costs of the evaluations.
    """

    training: Counters
    evaluation: Counters


def take_snapshot(
    parts: Parts, epoch: int, spent: Spent, micro_batches: MicroBatches, score: float | None
) -> Checkpoint:
    """Collect the state from which a run resumes; sharded weights are gathered by all processes.

    Args:
        parts: the parts of the run.
        epoch: the epoch that has ended.
        spent: the costs of the run so far.
        micro_batches: groups a network call.
        score: the gain by which the checkpoint can be the best; None where it cannot.
    """
    return Checkpoint(
        epoch=epoch,
        weights=parts.optimization.weights(),
        ema=parts.optimization.average(),
        state={
            "updater": parts.optimization.state_dict(),
            "normalizer": parts.normalizer.state_dict(),
            "mix": parts.mix.state_dict(),
            **({"gradient_mix": parts.gradient.head.mix.state_dict()} if parts.gradient is not None else {}),
            "counters": dataclasses.asdict(spent.training),
            "evaluation_counters": dataclasses.asdict(spent.evaluation),
            "micro_batches": dataclasses.asdict(micro_batches),
            "start": parts.backbone.start_digest(),
        },
        score=score,
    )


def restore_snapshot(parts: Parts, checkpoint: Checkpoint) -> tuple[Spent, MicroBatches]:
    """Restore the weights, the optimizer and the statistics of a run.

    Args:
        parts: the parts of the run, whose state is replaced.
        checkpoint: the state after an epoch.

    Returns:
        The costs of the run until then, and its micro-batches: numbers that `auto` found at the start of the run are
        kept, as other numbers would change the rounding. Evaluations cost nothing where an earlier version of sdpo,
        which did not count them, wrote the checkpoint.

    Raises:
        UserError: if the run refers to the LoRA that it started from, and that LoRA has changed.
    """
    state, config = checkpoint.state, parts.config
    if state.get("start") != parts.backbone.start_digest() and config.lora is not None:
        raise UserError(
            f"lora.path={config.lora.path} holds other weights than at the start of this run, which refers to them "
            "(train.reference=start): put the run's starting LoRA back there, or name another --output-dir"
        )
    parts.optimization.take(checkpoint.weights, checkpoint.ema)
    parts.optimization.load_state_dict(state["updater"])
    parts.normalizer.load_state_dict(state["normalizer"])
    parts.mix.load_state_dict(state["mix"])
    if parts.gradient is not None:
        parts.gradient.head.mix.load_state_dict(state["gradient_mix"])
    settings = {"sample": config.sample.micro_batch, "update": config.train.micro_batch}
    kept = {name: state["micro_batches"][name] for name, setting in settings.items() if setting == "auto"}
    spent = Spent(Counters(**state["counters"]), Counters(**state.get("evaluation_counters", {})))
    return spent, dataclasses.replace(parts.micro_batches, **kept)
