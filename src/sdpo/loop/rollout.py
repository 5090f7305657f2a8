"""Dual-state trajectory sampling: groups of branches that share a prompt and a starting noise.

Source: SDPO (Zhang et al., arXiv 2411.11727), dual-state trajectory sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from sdpo.backbones import Conditioning
from sdpo.loop.policy import Policy, PromptEmbeddings, to_device
from sdpo.loop.shared_first_step import network_rows
from sdpo.method import gaussian, seeds
from sdpo.method.denoisers import Denoiser, Transition
from sdpo.method.types import Trajectories
from sdpo.prompts import Prompt

StepObserver = Callable[[slice, int, Tensor, Transition, Conditioning], None]
"""Called at each step of a batch with the places of its trajectories, the step i, x_i [N, C, H, W], the transition from
x_i, and the conditioning."""


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
    shared_noise: bool = True,
    share_first_step: bool = False,
) -> Iterator[Trajectories]:
    """Sample B groups of K trajectories, a micro-batch at a time.

    A trajectory's noise comes from (seed, epoch, global sample index) alone.

    Args:
        policy: the sampling policy.
        denoiser: the schedule of T steps.
        embeddings: the embeddings of the prompts.
        prompts: B prompts.
        sample_index: the global sample indices of the B groups.
        seed: the run's seed.
        epoch: the epoch, from 1.
        branches: K.
        micro_batch: groups a network call, which affects speed and memory only.
        shared_noise: whether the branches of a group begin at one latent; else each begins at its own.
        share_first_step: whether the network is evaluated once a group at the first step, where all branches have one
            latent.

    Yields:
        Trajectories of at most `micro_batch` groups, in order.
    """
    for rows in slices(len(prompts), micro_batch):
        texts, index = [p.text for p in prompts[rows]], sample_index[rows]
        start, noise = draw_noise(policy, denoiser, [(seed, epoch, i) for i in index], branches, shared_noise)
        walk = _walk(policy, denoiser, embeddings, embeddings.rows(texts), start, noise, share_first_step)
        del noise  # the walk holds it, and lets go of it after the last step
        states, x0, log_prob = _record(walk, start, denoiser.num_steps)
        yield Trajectories(
            prompts=texts,
            metadata=[p.metadata for p in prompts[rows]],
            sample_index=torch.tensor(list(index)),
            states=states,
            log_prob=log_prob,
            stochastic=denoiser.stochastic,
            x0=x0,
            shared_first_step=share_first_step,
        )


def final_images(
    policy: Policy,
    denoiser: Denoiser,
    embeddings: PromptEmbeddings,
    prompts: Sequence[str],
    image_seeds: Sequence[int],
    micro_batch: int,
    decode_batch: int = 32,
    observer: StepObserver | None = None,
) -> Iterator[Tensor]:
    """Draw images of N single trajectories on fixed seeds, decoded from the last step's x̂.

    Where the last step is deterministic, as with η = 0, its latents are the image, as in the pipeline's own call.
    Image i depends on prompts[i], image_seeds[i] and the weights alone. Its noise is what the pipeline's own call draws
    from `torch.Generator().manual_seed(image_seeds[i])`, so that the model's own sampler gives the same image here.

    Args:
        policy: the sampling policy.
        denoiser: the schedule of T steps.
        embeddings: the embeddings of the prompts.
        prompts: N prompts.
        image_seeds: N seeds.
        micro_batch: trajectories a network call.
        decode_batch: images a decoder call.
        observer: called at each step of each batch.

    Yields:
        float32 [n, 3, H, W] in [0, 1], n at most `micro_batch` and `decode_batch`, in order.
    """
    for rows in slices(len(prompts), micro_batch):
        start, noise = _draw_own_noise(policy, denoiser, image_seeds[rows])
        places, x = embeddings.rows(prompts[rows]), start[:, 0]
        for step, (transition, following) in enumerate(_walk(policy, denoiser, embeddings, places, start, noise)):
            if observer is not None:
                observer(rows, step, x, transition, embeddings.take(places))
            last, x = (transition.x0 if denoiser.ends_random else following), following
        for latents in last.split(decode_batch):
            yield policy.backbone.decode(latents)


def _walk(
    policy: Policy,
    denoiser: Denoiser,
    embeddings: PromptEmbeddings,
    prompt_rows: Tensor,
    start: Tensor,
    noise: Tensor,
    share_first_step: bool = False,
) -> Iterator[tuple[Transition, Tensor]]:
    """Walk n groups of K trajectories through all steps.

    Args:
        policy: the sampling policy.
        denoiser: the schedule of T steps.
        embeddings: the embeddings of the prompts.
        prompt_rows: the places of the n prompts among the embeddings, int64 [n].
        start: x_0, [n, K, C, H, W].
        noise: the noise of each step, [T, n K, C, H, W].
        share_first_step: whether the network is evaluated once a group at the first step.

    Yields:
        The transition of n K latents, and the latents drawn from it, [n K, C, H, W].
    """
    (groups, branches), device = start.shape[:2], start.device
    group, branch, place = network_rows(torch.zeros(groups, dtype=torch.long), branches, share_first_step)
    group, branch = to_device(group, device), to_device(branch, device)
    with policy.no_gradient():
        everyone = torch.arange(groups, device=device).repeat_interleave(branches)
        conditioning = embeddings.take(prompt_rows[everyone])
        of_first_step = conditioning if place is None else embeddings.take(prompt_rows[group])
        indices = torch.arange(denoiser.num_steps, device=device)
        x = start[group, branch]
    for step in range(denoiser.num_steps):
        first = step == 0
        with policy.no_gradient():
            own = of_first_step if first else conditioning
            transition = policy.transition(denoiser, x, indices[step].expand(len(x)), own)
            if first and place is not None:
                transition = transition[to_device(place, device)]
            x = gaussian.sample(transition.mean, transition.std, noise[step])
        yield transition, x


def draw_noise(
    policy: Policy,
    denoiser: Denoiser,
    keys: Sequence[tuple[int | str, ...]],
    branches: int = 1,
    shared_noise: bool = True,
) -> tuple[Tensor, Tensor]:
    """Draw the starting latents, and the noise of all steps at once, so that no step waits for a copy.

    Args:
        policy: the sampling policy.
        denoiser: the schedule of T steps.
        keys: the beginning of the keys from which the draws of n groups come.
        branches: K.
        shared_noise: whether the branches of a group begin at one latent; else each begins at its own.

    Returns:
        x_0 of each trajectory, [n, K, C, H, W], and the noise of each step, [T, n K, C, H, W], on the device.
    """
    shape, device = policy.backbone.latent_shape, policy.backbone.device
    own = 1 if shared_noise else branches  # starting latents a group
    start = to_device(seeds.normal((own, *shape), [(*key, "start") for key in keys]), device)
    noise = torch.empty(denoiser.num_steps, len(keys), branches, *shape)
    for step in range(denoiser.num_steps):
        noise[step] = seeds.normal((branches, *shape), [(*key, f"step {step}") for key in keys])
    scaled = denoiser.initial_scale * start
    return scaled.expand(-1, branches, *shape), to_device(noise.flatten(1, 2), device)


def _draw_own_noise(policy: Policy, denoiser: Denoiser, image_seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Draw the noise of n images as the pipeline's own call does.

    Returns:
        x_0 of each image, [n, 1, C, H, W], and the noise of each step, [T, n, C, H, W], on the device.
    """
    backbone = policy.backbone
    drawn = torch.stack([backbone.own_noise(seed, denoiser.num_steps) for seed in image_seeds], dim=1)
    noise = to_device(drawn, backbone.device)
    return denoiser.initial_scale * noise[0, :, None], noise[1:]


def _record(walk: Iterator[tuple[Transition, Tensor]], start: Tensor, num_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Record a walk of n groups of K trajectories.

    The tensors are filled step by step: a list of steps, stacked in the end, would hold everything twice.

    Args:
        walk: the transition and the following latents of each of T steps.
        start: x_0, [n, K, C, H, W].
        num_steps: T.

    Returns:
        The noisy latents x_0 … x_T, [n, K, T+1, C, H, W], the predicted clean latents, [n, K, T, C, H, W], and the
        log-probabilities, [n, K, T].
    """
    groups, branches, *shape = start.shape
    states = start.new_empty(groups, branches, num_steps + 1, *shape)
    x0, log_prob = torch.empty_like(states[:, :, 1:]), start.new_empty(groups, branches, num_steps)
    states[:, :, 0] = start
    for step, (transition, following) in enumerate(walk):
        density = gaussian.log_prob(following, transition.mean, transition.std)
        log_prob[:, :, step] = density.unflatten(0, (-1, branches))
        x0[:, :, step] = transition.x0.unflatten(0, (-1, branches))
        states[:, :, step + 1] = following.unflatten(0, (-1, branches))
    return states, x0, log_prob


def slices(count: int, size: int) -> Iterator[slice]:
    """The consecutive slices of at most `size` items of `count`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
