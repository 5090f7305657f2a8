"""Epochs of training: their work, their time by phase, and a trace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sdpo.trainer import Trainer

PHASES = ("sample", "decode", "reward", "advantage", "update", "bookkeeping")
"""The phases of an epoch; `bookkeeping` is the time in no other phase."""


@dataclass(frozen=True)
class EpochWork:
    """The work of one epoch on this process.

    Attributes:
        forward: network evaluations without gradient, of one latent each.
        backward: network evaluations with gradient, of one latent each.
        queries: images that the rewards score.
    """

    forward: int
    backward: int
    queries: int


def run_epoch(trainer: Trainer) -> EpochWork:
    """Train one epoch, and count its work."""
    policy, before = trainer.parts.policy, trainer.session.counters.reward_queries
    evaluations, with_gradient = policy.evaluations, policy.with_gradient
    trainer.train_epoch()
    backward = policy.with_gradient - with_gradient
    queries = trainer.session.counters.reward_queries - before  # over all processes
    return EpochWork(
        forward=policy.evaluations - evaluations - backward,
        backward=backward,
        queries=queries // trainer.parts.processes.count,
    )


def time_epoch(trainer: Trainer) -> dict[str, float]:
    """Train one epoch; returns the seconds of each phase, and those of the whole `epoch`, which are their sum."""
    clock = trainer.parts.clock
    clock.reset()
    with clock("bookkeeping"):
        trainer.train_epoch()
    phases = {name: clock.seconds.get(name, 0.0) for name in PHASES}
    return {**phases, "epoch": sum(phases.values())}


def profile_epoch(trainer: Trainer, path: Path) -> None:
    """Train one epoch, and write its trace."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if trainer.parts.backbone.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        trainer.train_epoch()
    if trainer.parts.processes.is_main:
        profiler.export_chrome_trace(str(path))
