"""Dual-state trajectory sampling: groups of branches that share a prompt and a starting noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from sdpo import gaussian, seeds
from sdpo.backbones import Conditioning
from sdpo.denoisers import Denoiser, Transition
from sdpo.policy import Policy, PromptEmbeddings
from sdpo.prompts import Prompt
from sdpo.types import Trajectories


def branch_conditioning(embeddings: PromptEmbeddings, prompts: Sequence[str], branches: int) -> dict[str, Tensor]:
    """Embeddings in the order of latents that were flattened from [B, K, ...]."""
    return embeddings([p for p in prompts for _ in range(branches)])


def rollout(
    policy: Policy,
    denoiser: Denoiser,
    embeddings: PromptEmbeddings,
    prompts: Sequence[Prompt],
    sample_index: Sequence[int],
    *,
    seed: int,
    epoch: int,
    branches: int,
    micro_batch: int,
) -> Iterator[Trajectories]:
    """Sample B groups of K trajectories, a micro-batch at a time.

    The noise of each comes from (seed, epoch, global sample index) alone.

    Args:
        policy: samples.
        denoiser: the schedule of T steps.
        embeddings: of the prompts.
        prompts: B prompts.
        sample_index: their B global indices.
        seed: of the run.
        epoch: of the run.
        branches: K.
        micro_batch: groups in one network call; changes speed and memory only.

    Yields:
        Trajectories of at most `micro_batch` groups, in order.
    """
    shape, device = policy.backbone.latent_shape, policy.backbone.device
    for rows in _slices(len(prompts), micro_batch):
        texts, index = [p.text for p in prompts[rows]], sample_index[rows]
        conditioning = branch_conditioning(embeddings, texts, branches)
        start = seeds.normal(shape, [(seed, epoch, i, "start") for i in index]).to(device)

        def noise(step: int, index: Sequence[int] = index) -> Tensor:
            keys = [(seed, epoch, i, f"step {step}") for i in index]
            return seeds.normal((branches, *shape), keys).flatten(0, 1)

        states, x0, log_prob = [start.repeat_interleave(branches, 0)], [], []
        for transition, following in _walk(policy, denoiser, states[0], conditioning, noise):
            log_prob.append(gaussian.log_prob(following, transition.mean, transition.std))
            x0.append(transition.x0)
            states.append(following)
        yield Trajectories(
            prompts=texts,
            metadata=[p.metadata for p in prompts[rows]],
            sample_index=torch.tensor(list(index)),
            states=torch.stack(states, dim=1).unflatten(0, (-1, branches)),
            x0=torch.stack(x0, dim=1).unflatten(0, (-1, branches)),
            log_prob=torch.stack(log_prob, dim=1).unflatten(0, (-1, branches)),
            stochastic=denoiser.stochastic,
        )


def final_images(
    policy: Policy,
    denoiser: Denoiser,
    embeddings: PromptEmbeddings,
    prompts: Sequence[str],
    image_seeds: Sequence[int],
    micro_batch: int,
) -> Iterator[Tensor]:
    """Images of N single trajectories on fixed seeds, decoded from the last step's x̂.

    Image i depends on prompts[i], image_seeds[i] and the weights alone.

    Yields:
        float32 [n, 3, H, W] in [0, 1], n at most `micro_batch`, in order.
    """
    shape, device = policy.backbone.latent_shape, policy.backbone.device
    for rows in _slices(len(prompts), micro_batch):
        conditioning = embeddings(prompts[rows])
        index = image_seeds[rows]

        def noise(step: int, index: Sequence[int] = index) -> Tensor:
            return seeds.normal(shape, [(i, "image", f"step {step}") for i in index])

        start = seeds.normal(shape, [(i, "image", "start") for i in index]).to(device)
        for transition, _ in _walk(policy, denoiser, start, conditioning, noise):
            last = transition.x0
        yield policy.backbone.decode(last)


def _walk(
    policy: Policy, denoiser: Denoiser, x: Tensor, conditioning: Conditioning, noise: Callable[[int], Tensor]
) -> Iterator[tuple[Transition, Tensor]]:
    """Each step's transition and the latent drawn from it, from x_0 [N, C, H, W]; `noise` gives a step's."""
    for step in range(denoiser.num_steps):
        with torch.inference_mode():
            steps = torch.full((len(x),), step, device=x.device)
            transition = policy.transition(denoiser, x, steps, conditioning)
            x = gaussian.sample(transition.mean, transition.std, noise(step).to(x.device))
        yield transition, x


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
