"""Checks of the machine's resources: memory, and the disk of the run's directory."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from sdpo.assembly import Parts
from sdpo.commands.doctor.finding import Finding, Status
from sdpo.commands.doctor.weights import trained_parameters, weight_bytes
from sdpo.config import Config
from sdpo.config.differences import check_same_run
from sdpo.errors import UserError
from sdpo.estimate.memory import Memory, checkpoint_bytes, estimate_memory
from sdpo.run.directory import RunDirectory
from sdpo.run.ownership import check_directory
from sdpo.system.units import gigabytes

_TIGHT = 0.6  # share of free memory: activations and rewards need the rest


def check_memory(parts: Parts) -> Iterator[Finding]:
    """Check whether what training adds to the loaded model fits into free memory."""
    estimate = estimate_memory(
        parts.config,
        weight_bytes=weight_bytes(parts.backbone),
        trained=trained_parameters(parts),
        latent_elements=math.prod(parts.backbone.latent_shape),
        micro_batch=parts.micro_batches.sample,
    )
    yield judge_memory(estimate, parts.backbone.device, free_memory(parts.backbone.device))


def judge_memory(estimate: Memory, device: torch.device, free: int | None) -> Finding:
    """Compare the memory that training adds with free memory.

    Args:
        estimate: the memory of a run whose weights are loaded already.
        device: the device of the model.
        free: free bytes on the device; None where they are not known.
    """
    more = estimate.training + estimate.trajectories
    text = (
        f"weights {gigabytes(estimate.weights)}, gradients and optimizer {gigabytes(estimate.training)}, trajectories "
        f"{gigabytes(estimate.trajectories)}; activations and rewards come on top"
    )
    if free is None:
        return Finding("memory", "ok", f"{text}; free memory is not known on this platform")
    text = f"{text}; {gigabytes(free)} free on {device}"
    if more <= _TIGHT * free:
        return Finding("memory", "ok", text)
    advice = "Use fewer sample.prompts_per_epoch, a LoRA, train.optimizer=adamw8bit, or a larger device"
    if more <= free:
        return Finding("memory", "WARN", f"{text}: it may not suffice. {advice}")
    return Finding("memory", "FAIL", f"{text}: it does not suffice. {advice}")


def free_memory(device: torch.device) -> int | None:
    """Free bytes of a GPU, or of main memory; None where the platform does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def check_disk(config: Config, trained: int | None) -> Iterator[Finding]:
    """Check the space for the checkpoints that are kept, one that is being written, and the result.

    Args:
        config: the configuration of a run, with an `output_dir`.
        trained: number of trained parameters; None where the model could not be loaded.
    """
    assert config.output_dir is not None, "the command names one"
    run = RunDirectory(Path(config.output_dir))
    here = next(path for path in [run.path.absolute(), *run.path.absolute().parents] if path.exists())
    if not here.is_dir() or not os.access(here, os.W_OK):
        yield Finding("disk", "FAIL", f"{here} cannot be written to: name another output_dir")
        return
    keep = config.checkpoint.keep_last + config.checkpoint.keep_best + 1
    need = keep * checkpoint_bytes(config, trained or 0) + 4 * (trained or 0)
    free = shutil.disk_usage(here).free
    status: Status = "FAIL" if need > free else "WARN" if 2 * need > free else "ok"
    advice = "" if status == "ok" else ". Lower checkpoint.keep_last, or name an output_dir on a larger disk"
    size = f"take {gigabytes(need)}" if trained else "have a size that is not known without the model"
    yield Finding("disk", status, f"checkpoints {size}, {gigabytes(free)} are free at {here}{advice}")
    try:
        check_directory(run, config)
    except UserError as error:
        yield Finding("output_dir", "FAIL", str(error))
        return
    if run.is_run:
        yield _check_same_run(config, run)


def _check_same_run(config: Config, run: RunDirectory) -> Finding:
    """Check that a run in the directory can be resumed with this configuration."""
    try:
        check_same_run(config, run.config)
    except UserError as error:
        return Finding("output_dir", "FAIL", str(error))
    return Finding("output_dir", "ok", f"{run.path} holds a run of this configuration, which training resumes")
