"""`sdpo bench`: the time of an epoch by phase, beside the time of its bare work, measured in one process."""

from __future__ import annotations

import math
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sdpo.assembly.processes import join_processes
from sdpo.commands.bench.bare import BareWork
from sdpo.commands.bench.epoch import PHASES, profile_epoch, run_epoch, time_epoch
from sdpo.commands.bench.peak_memory import peak, reset_peak
from sdpo.commands.bench.stopwatch import seconds
from sdpo.config import Config
from sdpo.loop.clock import Clock
from sdpo.loop.policy import PromptEmbeddings
from sdpo.trainer import Trainer

__all__ = ["BenchResult", "bench", "peak", "reset_peak"]

WRITTEN = ("epoch", "phases", "bare", "limit")
"""Keys of every result, by which its file is recognised."""


@dataclass
class BenchResult:
    """The results of a bench; times are medians over the repetitions, in seconds.

    Attributes:
        epoch: time of a whole epoch.
        phases: time of each phase of an epoch, without the phases inside it.
        encode: time to encode all prompts, which happens once a run; nan where the text encoders were freed.
        evaluations: network evaluations of an epoch: `forward` without gradient, `backward` with gradient.
        bare: time of the bare work: `forward_same`, `forward_best`, `backward_same` and `backward_best` (a forward and
            a backward pass) for one sample, in the run's batches and in the best; `decode` and `reward` for the images
            of an epoch.
        batch: samples in a network call: in the run, `sample` and `update`; at the best, `forward` and `backward`.
        limit: time of the bare work of an epoch, with the network at its best batch sizes.
        ratio: median of epoch / limit over the repetitions.
        ratios: epoch / limit of each repetition.
        samples_per_second: trajectories a second.
        peak_bytes: the largest memory while epochs ran: tensors of the accelerator, or memory of the process.
        device: name of the device.
        repetitions: number of repetitions.
        threads: number of threads that torch uses on the CPU.
    """

    epoch: float
    phases: dict[str, float]
    encode: float
    evaluations: dict[str, int]
    bare: dict[str, float]
    batch: dict[str, int]
    limit: float
    ratio: float
    ratios: list[float]
    samples_per_second: float
    peak_bytes: int
    device: str
    repetitions: int
    threads: int = field(default_factory=torch.get_num_threads)


def bench(config: Config, repetitions: int = 5, profile: Path | None = None, bare: bool = True) -> BenchResult:
    """Time epochs and their bare work in turn.

    Args:
        config: the configuration of a run. Evaluations, stopping rules and callbacks are off; everything else is as in
            training.
        repetitions: number of measurements, after one epoch to warm up.
        profile: a file for the trace of one more epoch, for Perfetto or chrome://tracing; None traces nothing.
        bare: whether to time the bare work; without it, and for reward gradients, the limit and the ratio are nan.

    Raises:
        UserError: if a part of the run cannot be made, or training fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = _bench_config(config, folder, repetitions)
        clock = Clock(join_processes(config)[0].device)
        return _measure(Trainer(config, clock=clock), repetitions, profile, bare)


def _bench_config(config: Config, folder: str, repetitions: int) -> Config:
    """Switch off what is no part of an epoch."""
    data = config.model_dump(mode="json")
    data |= {"output_dir": folder, "stop_when": [], "callbacks": []}
    data["evaluate"]["every"] = 0
    data["epochs"] = config.epochs + repetitions + 3  # no epoch is the last, which would be evaluated
    return Config.parse(data)


def _measure(trainer: Trainer, repetitions: int, profile: Path | None, bare: bool) -> BenchResult:
    """Measure a run that has not begun; its session never starts, so that nothing is evaluated."""
    parts = trainer.parts
    device, branches = parts.backbone.device, parts.algorithm.branches
    work = run_epoch(trainer)  # warms up
    micro = trainer.session.micro_batches
    own = {"forward": micro.sample * branches, "backward": micro.update * branches}
    # The bare work of reward gradients, whose decoder and rewards run backwards too, is not defined.
    bare_work = BareWork(trainer, work, own) if bare and parts.gradient is None else None
    rows = [_repeat(trainer, bare_work) for _ in range(repetitions)]
    encode = _encoding(trainer)
    if profile is not None:
        profile_epoch(trainer, profile)
    median = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return BenchResult(
        epoch=median["epoch"],
        phases={name: median[name] for name in PHASES},
        encode=encode,
        evaluations={"forward": work.forward, "backward": work.backward},
        bare={name.removeprefix("bare_"): median[name] for name in median if name.startswith("bare_")},
        batch={"sample": own["forward"], "update": own["backward"], **(bare_work.best if bare_work else own)},
        limit=median.get("limit", math.nan),
        ratio=median.get("ratio", math.nan),
        ratios=[row["ratio"] for row in rows if "ratio" in row],
        samples_per_second=parts.batches.groups * branches / median["epoch"],
        peak_bytes=int(max(row["peak"] for row in rows)),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        repetitions=repetitions,
    )


def _repeat(trainer: Trainer, bare_work: BareWork | None) -> dict[str, float]:
    """Measure an epoch, and then its bare work; returns all numbers by name."""
    device = trainer.parts.backbone.device
    reset_peak(device)
    row = time_epoch(trainer)
    row["peak"] = float(peak(device))
    if bare_work is not None:
        row |= bare_work.times()
        row["ratio"] = row["epoch"] / row["limit"]
    return row


def _encoding(trainer: Trainer) -> float:
    """Seconds to encode all prompts; nan where the text encoders were freed."""
    parts = trainer.parts
    if not parts.backbone.text_modules():
        return math.nan
    with parts.precision():
        return seconds(parts.backbone.device, lambda: PromptEmbeddings(parts.backbone, [p.text for p in parts.prompts]))
