"""Finds the number of groups a network call, the micro-batch, which affects speed and memory only.

In half precision the result depends on the micro-batch too, unless sampling and update use equal ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from sdpo.backbones import Conditioning
from sdpo.loop.policy import Policy
from sdpo.method.denoisers import Denoiser

_GAIN = 1.05  # a doubled batch must be faster by this factor a sample, else the smaller one is kept
_ELEMENTS = {"cpu": 3 * 2**15}  # latent elements a call that keep a device busy, where sizes are not tried
_ELEMENTS_ELSEWHERE = 2**18
_MOST = 96


def default_samples(latent_elements: int, device: torch.device) -> int:
    """The number of samples a call that is safe and not slow; on a CPU, larger calls gain nothing."""
    return max(1, min(_MOST, _ELEMENTS.get(device.type, _ELEMENTS_ELSEWHERE) // latent_elements))


def even(groups: int, most: int) -> int:
    """The micro-batch, at most `most`, that cuts `groups` into parts as equal as possible."""
    parts = -(-groups // max(1, min(most, groups)))
    return -(-groups // parts)


def common(shares: Iterable[int], most: int) -> int:
    """The largest micro-batch, at most `most`, that cuts each of the shares into equal parts."""
    whole = math.gcd(*shares)
    return next(size for size in range(min(most, whole), 0, -1) if whole % size == 0)


def search(call: Callable[[int], Any], most: int, device: torch.device, memory_share: float = 0.8) -> int:
    """Find the micro-batch at which a GPU is fast, by doubling until memory ends or nothing is gained.

    Args:
        call: does the work for a number of groups; may raise `torch.OutOfMemoryError`.
        most: the largest micro-batch.
        device: the GPU.
        memory_share: the share of the GPU's memory that may be in use.
    """
    best, best_time, size = 1, float("inf"), 1
    total = torch.cuda.mem_get_info(device)[1]
    while size <= most:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            call(size)  # the first of a size compiles and tunes kernels
            each = min(_seconds(call, size, device) for _ in range(2)) / size
        except torch.OutOfMemoryError:
            break
        full = torch.cuda.max_memory_allocated(device) > memory_share * total
        if size > 1 and (full or each * _GAIN > best_time):
            break
        best, best_time = size, each
        size *= 2
    torch.cuda.empty_cache()
    return best


def _seconds(call: Callable[[int], Any], size: int, device: torch.device) -> float:
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    call(size)
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def sampling_call(policy: Policy, denoiser: Denoiser, prompt: Conditioning, branches: int) -> Callable[[int], None]:
    """A function that samples one step of a given number of groups.

    Args:
        policy: the sampling policy.
        denoiser: the schedule.
        prompt: the embedding of any prompt, [1, ...].
        branches: K, trajectories a group.
    """

    def call(groups: int) -> None:
        with policy.no_gradient():
            policy.transition(denoiser, *_inputs(policy, prompt, groups * branches))

    return call


def update_call(policy: Policy, denoiser: Denoiser, prompt: Conditioning, branches: int) -> Callable[[int], None]:
    """A function that makes and discards the gradients of one step of a given number of groups.

    Args:
        policy: the policy that is trained.
        denoiser: the schedule.
        prompt: the embedding of any prompt, [1, ...].
        branches: K, trajectories a group.
    """

    def call(groups: int) -> None:
        try:
            policy.transition(denoiser, *_inputs(policy, prompt, groups * branches)).mean.square().mean().backward()
        finally:
            for parameter in policy.backbone.trainable_parameters().values():
                parameter.grad = None

    return call


def _inputs(policy: Policy, prompt: Conditioning, samples: int) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    backbone = policy.backbone
    latents = torch.randn(samples, *backbone.latent_shape, device=backbone.device)
    steps = torch.zeros(samples, dtype=torch.long, device=backbone.device)
    return latents, steps, {name: rows.expand(samples, *rows.shape[1:]) for name, rows in prompt.items()}
