"""What a run takes in memory and on the disk, from a few numbers; nothing is loaded for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sdpo.assembly.micro_batches import MicroBatches, decode_batch
from sdpo.config.schema import Config
from sdpo.estimate.model_sizes import ModelSize, latent_shape, model_size
from sdpo.rewards.models.weights import SOURCES
from sdpo.system.units import gigabytes

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


@dataclass(frozen=True)
class Estimate:
    """What a run takes of a device's memory at its three peaks, in bytes; see `estimate`.

    Attributes:
        memory: what stays all the time.
        parts: the weights by part.
        start: while the prompts are encoded.
        scoring: while images are sampled, decoded and scored.
        update: while gradients are taken.
        activations: of one group in the update.
        decoding: of one call of the decoder.
        rewards: weights of all reward models.
        lines: how it was reckoned.
    """

    memory: Memory
    parts: dict[str, int]
    start: int
    scoring: int
    update: int
    activations: int
    decoding: int
    rewards: int
    lines: tuple[str, ...]

    @property
    def peak(self) -> int:
        """The largest of the three."""
        return max(self.start, self.scoring, self.update)


def estimate(config: Config, processes: int = 1) -> Estimate | None:
    """What a run will take of a device's memory, from tables and file headers; None where the model is not known.

    Weights, gradients, optimizer and stored latents are counted. Activations are reckoned: in proportion to the
    latents from what autograd keeps on the published architectures under fused attention (see `model_sizes`), and may
    be off by a third; libraries and fragmentation take half a gigabyte or more besides. `micro_batch: auto` counts as
    one group, the least; it grows into what is free.

    Args:
        config: of the run.
        processes: that share its batches.

    Raises:
        UserError: if a file of a local model is damaged.
    """
    size = model_size(config)
    if size is None:
        return None
    model, lora, shape = config.model, config.lora, latent_shape(size)
    half = 4 if model.dtype == "float32" else 2
    trained = size.network if lora is None else size.lora * lora.rank
    network = size.network * (_FLOAT if lora is None else half)
    saved = half - {"int8": 1, "nf4": 0.5625}[model.quantize] if model.quantize else 0
    quantised = network - round(size.linear * saved)
    parts = {
        "network": quantised,
        **({"LoRA": trained * _FLOAT} if lora is not None else {}),
        "text encoders": size.text * half,
        "decoder": size.decoder * half,
    }
    branches, micro = config.build_algorithm().branches, _micro(config.train.micro_batch)
    base = estimate_memory(
        config,
        weight_bytes=sum(parts.values()),
        trained=trained,
        latent_elements=math.prod(shape),
        micro_batch=_micro(config.sample.micro_batch),
        processes=processes,
    )
    reference = 64 * 64 if size.latent[1] < 32 else 32 * 32
    samples = branches * (2 if config.sample.guidance_scale != 1 and not size.embeds_guidance else 1)
    one = size.checkpointed if config.train.gradient_checkpointing else size.kept
    grown = math.prod(shape[1:]) / reference * half / 2
    activations = round(one * grown * samples)
    decoding = _decoding(config, size, half)
    names = {*config.rewards, *config.evaluate.observers}
    rewards = sum(1_000_000 * source.megabytes for name in names for source in SOURCES.get(name, ()))
    stays = base.total - (parts["text encoders"] if model.text_encoders != "keep" else 0)
    resident = 0 if config.scoring.offload else rewards
    sampling = round(size.checkpointed * grown * samples) * _micro(config.sample.micro_batch)
    return Estimate(
        memory=base,
        parts=parts,
        start=base.weights + network - quantised + resident,
        scoring=stays + rewards + max(decoding, sampling),
        update=stays + resident + activations * micro,
        activations=activations,
        decoding=decoding,
        rewards=rewards,
        lines=(
            f"{config.sample.prompts_per_epoch // processes} groups × {branches} × {config.sample.num_steps + 1} "
            f"latents of {' × '.join(map(str, shape))}",
            f"{micro} group{'s' * (micro > 1)} of {samples} samples"
            + (", recomputed" if config.train.gradient_checkpointing else ""),
            f"{decode_batch(config, size.size)} images of {size.size[0]} × {size.size[1]}",
        ),
    )


def describe(config: Config, processes: int = 1) -> str:
    """The estimate in lines that YAML takes for comments.

    Raises:
        UserError: see `estimate`.
    """
    found = estimate(config, processes)
    if found is None:
        return (
            f"# memory: not known for {config.model.path}; with model.path a local copy of it, its files tell. The "
            "cost above is that of a model whose last step has a density and whose guidance takes a second evaluation"
        )
    parts = ", ".join(f"{name} {gigabytes(n)}" for name, n in found.parts.items())
    kept, update, decoding = found.lines
    peaks = f"start {gigabytes(found.start)}, scoring {gigabytes(found.scoring)}, update {gigabytes(found.update)}"
    return (
        f"# memory of a process, estimated: weights {gigabytes(found.memory.weights)} ({parts}); gradients and "
        f"optimizer {gigabytes(found.memory.training)}; trajectories {gigabytes(found.memory.trajectories)} "
        f"({kept}); rewards {gigabytes(found.rewards)}; activations of a group {gigabytes(found.activations)} "
        f"({update}); decoding {gigabytes(found.decoding)} ({decoding})\n"
        f"# peaks: {peaks}; activations may be off by a third, and libraries take half a gigabyte besides\n"
        f"# where it does not fit: {memory_knobs(config)}"
    )


def _micro(setting: Literal["auto"] | int) -> int:
    return 1 if setting == "auto" else setting


def _decoding(config: Config, size: ModelSize, half: int) -> int:
    """For each image four maps of the widest full-resolution layer: three live, one workspace; large ones are tiled."""
    height, width = size.size
    images = decode_batch(config, size.size) if height * width <= 1024**2 else 1
    pixels = min(height * width, 1024**2)
    return images * 4 * size.channels * pixels * (4 if size.upcasts else half)


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
