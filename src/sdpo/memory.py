"""What a run takes in memory and on the disk, from a few numbers; nothing is loaded for it."""

from __future__ import annotations

from dataclasses import dataclass

from sdpo.config import Config

_FLOAT = 4
_OPTIMIZER = {"adamw": 8, "adamw8bit": 2}  # bytes of state a trained parameter


@dataclass(frozen=True)
class Memory:
    """Bytes on the device of one process; activations and what rewards take come on top.

    Attributes:
        weights: of all parts of the model, the trained ones included.
        training: gradients, optimizer state, average and, where all weights are trained, the copy of the base model.
        trajectories: an epoch's latents, which the update reads, and one micro-batch while it is sampled.
    """

    weights: int
    training: int
    trajectories: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.training + self.trajectories


def estimate_memory(
    config: Config, *, weight_bytes: int, trained: int, latent_elements: int, micro_batch: int = 1, processes: int = 1
) -> Memory:
    """What a process of a run holds.

    Args:
        config: of the run.
        weight_bytes: of all weights as they are loaded.
        trained: parameters that are trained, in float32.
        latent_elements: C · H · W.
        micro_batch: groups that are sampled at once.
        processes: that share the groups of an epoch.
    """
    sample, branches = config.sample, config.build_algorithm().branches
    each = _FLOAT + _OPTIMIZER[config.train.optimizer]
    each += _FLOAT * (config.train.ema_decay is not None) + _FLOAT * (config.lora is None)
    latent = _FLOAT * latent_elements * branches
    kept = sample.prompts_per_epoch // processes * (sample.num_steps + 1) * latent
    sampling = micro_batch * (3 * sample.num_steps + 1) * latent  # states, x̂ and noise
    return Memory(weight_bytes, trained * each, kept + sampling)


def checkpoint_bytes(config: Config, trained: int) -> int:
    """Of one checkpoint: weights, their average, and the optimizer's state."""
    average = _FLOAT * (config.train.ema_decay is not None)
    return trained * (_FLOAT + average + _OPTIMIZER[config.train.optimizer])
