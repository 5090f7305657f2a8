"""`sdpo bench`: an epoch's phases beside the bare network's time for the same evaluations, measured in one process."""

from __future__ import annotations

import functools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdpo.config.schema import Config
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.system.platform import peak_resident_bytes
from sdpo.trainer import Trainer

PHASES = ("sample", "decode", "reward", "advantage", "update", "bookkeeping")
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # samples in a network call, among which the best is sought


class Phases:
    """Seconds by phase, each without the phases inside it.

    Args:
        device: work on it is waited for where a phase begins and ends.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._open: list[tuple[str, float]] = []  # the phases under way, and since when each was last on top

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """A context whose time counts as `name`."""
        self._account()
        self._open.append((name, time.perf_counter()))
        try:
            yield
        finally:
            self._account()
            self._open.pop()
            if self._open:
                self._open[-1] = (self._open[-1][0], time.perf_counter())

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        @functools.wraps(function)
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            with self(name):
                return function(*arguments, **keywords)

        return wrapper

    def _account(self) -> None:
        wait_for(self._device)
        now = time.perf_counter()
        if self._open:
            name, since = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - since
            self._open[-1] = (name, now)


@dataclass
class Measured:
    """What a bench found; times are medians over the repetitions, in seconds.

    Attributes:
        epoch: of a whole epoch.
        phases: of its parts, by name.
        encode: of all prompts, once a run.
        evaluations: network evaluations of an epoch: without and with gradient.
        bare: the network alone: `forward` and `backward` (forward and backward) for one sample, at the run's batch size
            (`same`) and at the best one (`best`); `decode` and `reward` for an epoch's images.
        batch: samples in a network call: the run's, `sample` and `update`, and the best, `forward` and `backward`.
        limit: the bare time of an epoch's evaluations at the best batch sizes, with decoding and rewards.
        ratio: epoch / limit in each repetition, and the median of these.
        samples_per_second: trajectories.
        peak_bytes: of memory, while epochs ran: of the accelerator, or of the process.
        device: where.
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


def bench(config: Config, repetitions: int = 5, profile: Path | None = None, bare: bool = True) -> Measured:
    """Time epochs and the bare network, interleaved.

    Args:
        config: of the run; evaluation, and with it `stop_when`, is off, everything else is as in training.
        repetitions: of each measurement, after one to warm up.
        profile: where to write a trace of one more epoch, for Perfetto or chrome://tracing.
        bare: whether to time the bare network; without, the limit and the ratio are nan.

    Raises:
        UserError: as training would.
    """
    with tempfile.TemporaryDirectory() as folder:
        never = config.evaluate.model_copy(update={"every": 0})
        length = config.epochs + repetitions + 3  # no epoch is the last, which would be evaluated
        changes = {"output_dir": folder, "evaluate": never, "stop_when": [], "epochs": length}
        return _Bench(Trainer(config.model_copy(update=changes))).run(repetitions, profile, bare)


class _Bench:
    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.policy: Policy = trainer.policy
        self.backbone = trainer.backbone
        self.device = trainer.backbone.device
        self.phases = Phases(self.device)
        self.images: list[Tensor] = []
        self.calls: list[tuple[Tensor, list[str], list[dict[str, Any]]]] = []
        self._instrument()

    def _instrument(self) -> None:
        """Time the parts where the loop calls them; remember what an epoch decodes and scores."""
        trainer, timed = self.trainer, self.phases.timed
        decode, start = self.backbone.decode, trainer.mix.start
        self.bare_decode, self.bare_start = decode, start

        def remember_decode(latents: Tensor) -> Tensor:
            self.images.append(latents)
            return decode(latents)

        def remember_start(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Any:
            self.calls.append((images, prompts, metadata))
            return start(images, prompts, metadata)

        replacements: list[tuple[Any, str, Callable[..., Any]]] = [
            (self.backbone, "decode", timed("decode", remember_decode)),
            (trainer.mix, "start", timed("reward", remember_start)),
            (trainer, "_sample_and_score", timed("sample", trainer._sample_and_score)),
            (trainer, "_advantages", timed("advantage", trainer._advantages)),
            (trainer.updater, "run", timed("update", trainer.updater.run)),
        ]
        for owner, name, function in replacements:
            setattr(owner, name, function)

    def run(self, repetitions: int, profile: Path | None, bare: bool) -> Measured:
        trainer = self.trainer
        groups, branches = (
            trainer.config.sample.prompts_per_epoch // trainer.processes.count,
            trainer.algorithm.branches,
        )
        before, before_with = self.policy.evaluations, self.policy.with_gradient
        self._epoch()  # warms up
        backward = self.policy.with_gradient - before_with
        count = {"forward": self.policy.evaluations - before - backward, "backward": backward}
        own = {"forward": trainer.micro_batches.sample * branches, "backward": trainer.micro_batches.update * branches}
        best = {name: self._best(name, count[name], own[name]) for name in own} if bare else own
        reset_peak(self.device)
        rows = [self._row(count, own, best, bare) for _ in range(repetitions)]
        encode = self._time(lambda: PromptEmbeddings(self.backbone, [p.text for p in trainer.prompts]))
        if profile is not None:
            self._profile(profile)
        median = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        return Measured(
            epoch=median["epoch"],
            phases={name: median[name] for name in PHASES},
            encode=encode,
            evaluations=count,
            bare={name.removeprefix("bare_"): median[name] for name in median if name.startswith("bare_")},
            batch={"sample": own["forward"], "update": own["backward"], **best},
            limit=median.get("limit", math.nan),
            ratio=median.get("ratio", math.nan),
            ratios=[row["ratio"] for row in rows if "ratio" in row],
            samples_per_second=groups * branches / median["epoch"],
            peak_bytes=int(max(row["peak"] for row in rows)),
            device=torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device),
            repetitions=repetitions,
        )

    def _row(self, count: dict[str, int], own: dict[str, int], best: dict[str, int], bare: bool) -> dict[str, float]:
        """One repetition: an epoch, then the bare network."""
        row = self._epoch()
        row["peak"] = float(peak(self.device))
        if not bare:
            return row
        for name in own:
            row[f"bare_{name}_same"] = self._per_sample(name, own[name], count[name])
            row[f"bare_{name}_best"] = self._per_sample(name, best[name], count[name])
        row["bare_decode"] = self._time(lambda: [self.bare_decode(latents) for latents in self.images])
        row["bare_reward"] = self._time(lambda: [self.bare_start(*call)() for call in self.calls])
        row["limit"] = row["bare_decode"] + row["bare_reward"]
        row["limit"] += sum(count[name] * row[f"bare_{name}_best"] for name in own)
        row["ratio"] = row["epoch"] / row["limit"]
        return row

    def _epoch(self) -> dict[str, float]:
        self.images.clear()
        self.calls.clear()
        self.phases.seconds = {}
        with self.phases("bookkeeping"):  # what no other phase claims
            self.trainer.train_epoch()
        found = {name: self.phases.seconds.get(name, 0.0) for name in PHASES}
        return {**found, "epoch": sum(found.values())}

    # -- the bare network ----------------------------------------------------------------------------------

    def _inputs(self, size: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        latents = torch.randn(size, *self.backbone.latent_shape, device=self.device)
        timesteps = torch.full((size,), 500, device=self.device)
        conditioning = self.trainer.embeddings([self.trainer.prompts[0].text] * size)
        return latents, timesteps, conditioning

    def _forward(self, size: int) -> Callable[[], None]:
        inputs = self._inputs(size)

        def call() -> None:
            with torch.inference_mode(), self.policy.autocast():
                self.backbone.network(*inputs)

        return call

    def _backward(self, size: int) -> Callable[[], None]:
        inputs = self._inputs(size)
        parameters = list(self.backbone.trainable_parameters().values())

        def call() -> None:
            with self.policy.autocast():
                output = self.backbone.network(*inputs)
            output.float().square().mean().backward()
            for parameter in parameters:
                parameter.grad = None

        return call

    def _best(self, kind: str, limit: int, own: int) -> int:
        """The batch size with the least time a sample, the run's own among them, up to what memory takes."""
        found: dict[int, float] = {}
        for size in sorted({*_SIZES, own}):
            if size > limit:
                break
            try:
                self._per_sample(kind, size, size)
                found[size] = min(self._per_sample(kind, size, 2 * size) for _ in range(3))
            except torch.OutOfMemoryError:
                break
        return min(found, key=found.__getitem__)

    def _per_sample(self, kind: str, size: int, count: int) -> float:
        """Seconds a sample, over `count` samples in calls of `size`, `forward` or `backward`."""
        call = {"forward": self._forward, "backward": self._backward}[kind](size)
        calls = max(1, round(count / size))

        def all_calls() -> None:
            for _ in range(calls):
                call()

        return self._time(all_calls) / (calls * size)

    def _time(self, function: Callable[[], Any]) -> float:
        wait_for(self.device)
        start = time.perf_counter()
        function()
        wait_for(self.device)
        return time.perf_counter() - start

    def _profile(self, path: Path) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profiler:
            self._epoch()
        profiler.export_chrome_trace(str(path))


def wait_for(device: torch.device) -> None:
    """Until the accelerator has done what it was asked."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Begin to measure anew; a process's own peak can be reset on Linux alone."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        _CLEAR.write_text("5")


def peak(device: torch.device) -> int:
    """Bytes at the highest, since `reset_peak`: tensors of the accelerator, or the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return peak_resident_bytes()


_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
