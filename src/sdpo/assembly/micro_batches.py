"""The micro-batches of a run: the settings, with `auto` resolved for this machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from sdpo.config import Config
from sdpo.distributed.processes import Processes
from sdpo.loop.micro_batch_search import common, default_samples, even, sampling_call, search, update_call
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.method.denoisers import Denoiser
from sdpo.system.log import logger


@dataclass(frozen=True)
class MicroBatches:
    """The numbers of groups a network call.

    Attributes:
        sample: groups a call while sampling.
        update: groups a call in the update.
    """

    sample: int
    update: int


def choose_micro_batches(
    config: Config, policy: Policy, denoiser: Denoiser, embeddings: PromptEmbeddings, processes: Processes
) -> MicroBatches:
    """Resolve `sample.micro_batch` and `train.micro_batch`, on all processes alike.

    `auto` tries sizes on a GPU, and elsewhere goes by the size of the latents. A sharded network is not tried: when one
    process runs out of memory, the others would wait for ever.

    In half precision, sampling and update get the same micro-batch. Kernels that differ with the batch size round
    differently, which moves a step's log-probability by more than the clip range (the last step's by 4e-3 and more in
    bfloat16). In equal batches the log-ratio before the first update is exactly 0.

    Args:
        config: the configuration of a run.
        policy: the policy that samples and is trained.
        denoiser: the schedule that is trained on.
        embeddings: the embeddings of the prompts; any one serves to try sizes.
        processes: the processes that share the groups of an epoch.
    """
    branches, device = config.build_algorithm().branches, policy.backbone.device
    # Where images are decoded and scored with a gradient, their activations come beside those of the network.
    memory_share = 0.8 if config.gradient_algorithm() is None else 0.5
    shares = {
        "sample": config.sample.prompts_per_epoch // processes.count,
        "update": config.train.batch_size // processes.count,
    }
    settings = {"sample": config.sample.micro_batch, "update": config.train.micro_batch}
    calls = {"sample": sampling_call, "update": update_call}
    chosen: dict[str, int] = {}
    for name, setting in settings.items():
        if setting != "auto":
            chosen[name] = min(setting, shares[name])
        elif device.type == "cuda" and not policy.backbone.is_sharded:
            prompt = embeddings.take(torch.zeros(1, dtype=torch.long, device=device))
            call = calls[name](policy, denoiser, prompt, branches)
            found = search(call, shares[name], device, memory_share)
            chosen[name] = even(shares[name], found)
        else:
            samples = default_samples(math.prod(policy.backbone.latent_shape), device)
            chosen[name] = even(shares[name], max(1, samples // branches))
    if policy.dtype != torch.float32:
        if set(settings.values()) == {"auto"}:
            chosen = dict.fromkeys(chosen, common(shares.values(), min(chosen.values())))
        elif chosen["sample"] != chosen["update"] and processes.is_main:
            logger.warning(
                "sample.micro_batch (%d) and train.micro_batch (%d) differ: in %s the log-ratio before the first "
                "update is then not 0, by more than a narrow algorithm.clip_range; set both to the same value",
                chosen["sample"],
                chosen["update"],
                config.model.dtype,
            )
    return MicroBatches(**processes.broadcast(chosen))


def decode_batch(config: Config, image_size: tuple[int, int]) -> int:
    """Resolve `scoring.decode_batch`: `auto` is 8 images of 512 × 512, which fill a GPU, and at most 32 smaller ones.

    Args:
        config: the configuration of a run.
        image_size: height and width in pixels.
    """
    setting = config.scoring.decode_batch
    return max(1, min(32, 2**21 // math.prod(image_size))) if setting == "auto" else setting
