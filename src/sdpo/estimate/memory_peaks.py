"""The peaks of a run's memory, estimated from the size of its model; nothing is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from sdpo.assembly.gradient_update import gradient_decode_batch
from sdpo.assembly.micro_batches import decode_batch
from sdpo.assembly.update import recorded_steps
from sdpo.backbones import is_embedded
from sdpo.config import Config
from sdpo.estimate.memory import FLOAT32, Memory, estimate_memory, held_groups, memory_knobs
from sdpo.estimate.model_sizes import latent_shape, model_size
from sdpo.estimate.published_models import ModelSize
from sdpo.rewards.models.weights import SOURCES
from sdpo.system.units import gigabytes

_QUANTISED = {"int8": 1, "nf4": 0.5625}  # bytes of a weight: nf4 has half a byte, and one float32 scale for 64 weights
# Maps of the decoder's widest full-resolution layer that autograd keeps for an image: on AutoencoderKL counted by the
# tensors that it saves (23), and with checkpointing those that are kept and those of the largest block, recomputed.
_DECODER_MAPS, _CHECKPOINTED_DECODER_MAPS = 23, 17
# Megabytes that autograd keeps for an image in the reward models, counted in the same way in float32.
_REWARD_ACTIVATIONS = {
    **dict.fromkeys(("aesthetic", "clipscore"), 440),
    **dict.fromkeys(("pickscore", "hpsv2", "hpsv2.1"), 690),
    "imagereward": 300,
}
_TILE = 1024**2  # pixels that the decoder works on at once; larger images are tiled


@dataclass(frozen=True)
class MemoryPeaks:
    """The memory of a process at the three peaks of a run, in bytes.

    Attributes:
        size: the sizes of the model's parts.
        memory: the memory that is held all the time.
        parts: bytes of the weights of each part of the model.
        start: the peak while the prompts are encoded.
        scoring: the peak while images are sampled, decoded and scored.
        update: the peak while gradients are computed.
        activations: bytes of the activations of one group in the update.
        decoding: bytes that one call of the decoder takes.
        rewards: bytes of the weights of all reward models.
        climbing: bytes that the decoder and the rewards keep for the gradient of the images of one call; 0 where no
            reward's gradient is followed.
    """

    size: ModelSize
    memory: Memory
    parts: dict[str, int]
    start: int
    scoring: int
    update: int
    activations: int
    decoding: int
    rewards: int
    climbing: int

    @property
    def peak(self) -> int:
        """The largest of the three peaks."""
        return max(self.start, self.scoring, self.update)


def estimate_peaks(config: Config, processes: int = 1) -> MemoryPeaks | None:
    """Estimate the peaks of a run's memory from tables and file headers.

    Weights, gradients, optimizer and stored latents are counted. Activations are estimated: in proportion to the
    latents, from what autograd keeps on the published architectures with fused attention. They may be off by a third;
    libraries and fragmentation take half a gigabyte or more besides. `micro_batch: auto` counts as one group, the
    least; a run raises it as far as free memory allows.

    Args:
        config: the configuration of a run.
        processes: number of processes that share the batches.

    Returns:
        The estimate; None where the size of the model is not known.

    Raises:
        UserError: if a file of a local model is damaged.
    """
    size = model_size(config)
    if size is None:
        return None
    parts = _weight_bytes(config, size)
    sampled, updated = _groups(config.sample.micro_batch), _groups(config.train.micro_batch)
    memory = estimate_memory(
        config,
        weight_bytes=sum(parts.values()),
        trained=_trained(config, size),
        latent_elements=math.prod(latent_shape(size)),
        micro_batch=sampled,
        processes=processes,
    )
    checkpointing = config.train.gradient_checkpointing
    each = size.checkpointed_activations if checkpointing else size.activations
    activations = _activations(config, size, each, _updated_samples(config, size))
    sampling = _activations(config, size, size.checkpointed_activations, _samples(config, size)) * sampled
    decoding, rewards, climbing = _decoding(config, size), _reward_bytes(config), _climbing(config, size)
    resident = 0 if config.scoring.offload else rewards
    stays = memory.total - (parts["text encoders"] if config.model.text_encoders != "keep" else 0)
    return MemoryPeaks(
        size=size,
        memory=memory,
        parts=parts,
        start=memory.weights + resident,  # a network is quantised layer by layer on its way to the device
        scoring=stays + rewards + max(decoding, sampling),
        update=stays + (rewards if climbing else resident) + activations * updated + climbing,
        activations=activations,
        decoding=decoding,
        rewards=rewards,
        climbing=climbing,
    )


def describe_memory(config: Config, processes: int = 1) -> str:
    """State the estimate in lines that YAML takes for comments.

    Args:
        config: the configuration of a run.
        processes: number of processes that share the batches.

    Raises:
        UserError: if a file of a local model is damaged.
    """
    found = estimate_peaks(config, processes)
    if found is None:
        return (
            f"# memory: not known for {config.model.path}; set model.path to a local copy, whose files tell its size. "
            "The cost above assumes a model whose last step has a density and whose guidance takes a second evaluation"
        )
    parts = ", ".join(f"{name} {gigabytes(n)}" for name, n in found.parts.items())
    kept, update, decoding = _details(config, found.size, processes)
    peaks = f"start {gigabytes(found.start)}, scoring {gigabytes(found.scoring)}, update {gigabytes(found.update)}"
    return (
        f"# memory of a process, estimated: weights {gigabytes(found.memory.weights)} ({parts}); gradients and "
        f"optimizer {gigabytes(found.memory.training)}; trajectories {gigabytes(found.memory.trajectories)} "
        f"({kept}); rewards {gigabytes(found.rewards)}; activations of a group {gigabytes(found.activations)} "
        f"({update}); decoding {gigabytes(found.decoding)} ({decoding}){_climbing_text(config, found)}\n"
        f"# peaks: {peaks}; activations may be off by a third, and libraries take half a gigabyte besides\n"
        f"# settings that save memory: {memory_knobs(config)}"
    )


def _details(config: Config, size: ModelSize, processes: int) -> tuple[str, str, str]:
    """The factors of the terms for trajectories, activations and decoding, in words."""
    groups = _groups(config.train.micro_batch)
    shape, (height, width) = " × ".join(map(str, latent_shape(size))), size.image_size
    held, branches = held_groups(config, processes), config.build_algorithm().branches
    return (
        f"{held} groups × {branches} × {recorded_steps(config) + 1} latents of {shape}"
        if held
        else f"latents of {shape}, which are not kept",
        f"{groups} group{'s' * (groups > 1)} of {_updated_samples(config, size)} samples"
        + (", recomputed" if config.train.gradient_checkpointing else ""),
        f"{decode_batch(config, size.image_size)} images of {height} × {width}",
    )


def _element_bytes(config: Config) -> int:
    dtype = config.model.dtype
    if dtype is None and (not torch.cuda.is_available() or is_embedded(config.model.path)):
        dtype = "float32"  # the model's own; on a GPU two bytes, but for LCM
    return FLOAT32 if dtype == "float32" else 2


def _trained(config: Config, size: ModelSize) -> int:
    """Number of trained parameters."""
    return size.network if config.lora is None else size.lora_per_rank * config.lora.rank


def _weight_bytes(config: Config, size: ModelSize) -> dict[str, int]:
    """Bytes of the weights by part; a network that is trained itself is in float32, and so is a LoRA."""
    each = _element_bytes(config)
    network = size.network * (FLOAT32 if config.lora is None else each)
    lora = {"LoRA": _trained(config, size) * FLOAT32} if config.lora is not None else {}
    return {
        "network": network - _saved_by_quantisation(config, size),
        **lora,
        "text encoders": size.text_encoders * each,
        "decoder": size.vae * each,
    }


def _saved_by_quantisation(config: Config, size: ModelSize) -> int:
    """Bytes by which quantisation makes the network's linear layers smaller."""
    how = config.model.quantize
    return round(size.linear * (_element_bytes(config) - _QUANTISED[how])) if how else 0


def _samples(config: Config, size: ModelSize) -> int:
    """Samples of one group in a network call; classifier-free guidance evaluates each twice."""
    guided = config.sample.guidance_scale not in (None, 1) and not size.embeds_guidance
    return config.build_algorithm().branches * (2 if guided else 1)


def _updated_samples(config: Config, size: ModelSize) -> int:
    """The same in the update, where branches that part at one step have one latent."""
    samples = _samples(config, size)
    return samples if config.sample.branch_at is None else samples // config.build_algorithm().branches


def _activations(config: Config, size: ModelSize, one: float, samples: int) -> int:
    """Bytes of the activations of the samples of one group, from `one` of a sample with latents of the usual size."""
    reference = 64 * 64 if size.latent_scale < 32 else 32 * 32
    grown = math.prod(latent_shape(size)[1:]) / reference * _element_bytes(config) / 2
    return round(one * grown * samples)


def _decoding(config: Config, size: ModelSize) -> int:
    """Bytes of one call: four maps of the widest full-resolution layer an image; three are live, one is workspace."""
    pixels = math.prod(size.image_size)
    images = decode_batch(config, size.image_size) if pixels <= _TILE else 1
    each = FLOAT32 if size.upcasts else _element_bytes(config)
    return images * 4 * size.decoder_channels * min(pixels, _TILE) * each


def _climbing(config: Config, size: ModelSize) -> int:
    """Bytes that the decoder and the reward models keep for the gradient of the images of one call."""
    algorithm = config.gradient_algorithm()
    if algorithm is None:
        return 0
    maps = _CHECKPOINTED_DECODER_MAPS if config.train.gradient_checkpointing else _DECODER_MAPS
    each = FLOAT32 if size.upcasts else _element_bytes(config)
    decoder = maps * size.decoder_channels * min(math.prod(size.image_size), _TILE) * each
    rewards = 1_000_000 * sum(_REWARD_ACTIVATIONS.get(name, 0) for name in config.rewards)
    return gradient_decode_batch(config, size.image_size) * (decoder + algorithm.reward_augment.copies * rewards)


def _climbing_text(config: Config, found: MemoryPeaks) -> str:
    """The term of reward gradients, in words; empty where there is none."""
    if not found.climbing:
        return ""
    images, (height, width) = gradient_decode_batch(config, found.size.image_size), found.size.image_size
    noun = "image" if images == 1 else "images"
    return f"; decoding and scoring with gradient {gigabytes(found.climbing)} ({images} {noun} of {height} × {width})"


def _reward_bytes(config: Config) -> int:
    names = {*config.rewards, *config.evaluate.observers}
    return sum(1_000_000 * source.megabytes for name in names for source in SOURCES.get(name, ()))


def _groups(micro_batch: Literal["auto"] | int) -> int:
    """Groups a network call; `auto` counts as one."""
    return 1 if micro_batch == "auto" else micro_batch
