"""The memory that a run holds all the time, the size of a checkpoint, and the settings that save memory."""

from __future__ import annotations

from dataclasses import dataclass

from sdpo.assembly.micro_batches import MicroBatches
from sdpo.assembly.update import recorded_steps
from sdpo.config import Config

FLOAT32 = 4
"""Bytes of a number in float32."""

_OPTIMIZER_STATE = {"adamw": 8, "adamw8bit": 2}  # bytes for each trained parameter


@dataclass(frozen=True)
class Memory:
    """Bytes on the device of one process, without activations and reward models.

    Attributes:
        weights: bytes of all parts of the model, the trained ones included.
        training: bytes of gradients, optimizer state, average and, where all weights are trained, the copy of the base
            model.
        trajectories: bytes of an epoch's latents, which the update reads, and of one micro-batch that is being sampled.
    """

    weights: int
    training: int
    trajectories: int

    @property
    def total(self) -> int:
        """The sum of the three, in bytes."""
        return self.weights + self.training + self.trajectories


def estimate_memory(
    config: Config, *, weight_bytes: int, trained: int, latent_elements: int, micro_batch: int = 1, processes: int = 1
) -> Memory:
    """Count the bytes that one process of a run holds.

    Args:
        config: the configuration of a run.
        weight_bytes: bytes of all weights as they are loaded.
        trained: number of trained parameters, which are in float32.
        latent_elements: C · H · W of the latents of one sample.
        micro_batch: groups that are sampled in one network call.
        processes: number of processes that share the groups of an epoch.
    """
    sample, branches = config.sample, config.build_algorithm().branches
    each = FLOAT32 + _OPTIMIZER_STATE[config.train.optimizer]
    each += FLOAT32 * (config.train.ema_decay is not None) + FLOAT32 * (config.lora is None)
    latent = FLOAT32 * latent_elements * branches
    kept = held_groups(config, processes) * (recorded_steps(config) + 1) * latent
    sampling = micro_batch * (2 * sample.num_steps + recorded_steps(config) + 1) * latent  # x̂, noise and states
    return Memory(weight_bytes, trained * each, kept + sampling)


def held_groups(config: Config, processes: int) -> int:
    """The groups whose latents one process holds for an epoch: none where only reward gradients are followed."""
    return 0 if config.policy_algorithm() is None else config.sample.prompts_per_epoch // processes


def checkpoint_bytes(config: Config, trained: int) -> int:
    """The size of one checkpoint in bytes: the weights, their average, and the optimizer's state.

    Args:
        config: the configuration of a run.
        trained: number of trained parameters.
    """
    average = FLOAT32 * (config.train.ema_decay is not None)
    return trained * (FLOAT32 + average + _OPTIMIZER_STATE[config.train.optimizer])


def memory_knobs(config: Config, now: MicroBatches | None = None) -> str:
    """List the settings to change when memory runs out, from the cheapest on.

    Args:
        config: the configuration of a run.
        now: the micro-batches that `auto` found, where they are known.
    """
    scoring = config.scoring
    update, sample = (now.update, now.sample) if now else (config.train.micro_batch, config.sample.micro_batch)
    return (
        f"These do not change the result (in half precision the first two must be equal): train.micro_batch (now "
        f"{update}), sample.micro_batch (now {sample}), train.gradient_checkpointing=true, scoring.decode_batch (now "
        f"{scoring.decode_batch}), scoring.batch_size (now {scoring.batch_size}), scoring.offload=true, "
        "model.text_encoders=cpu. These do: model.dtype=bfloat16, model.quantize=int8 or nf4, "
        "train.optimizer=adamw8bit, a smaller lora.rank, model.height and model.width."
    )
