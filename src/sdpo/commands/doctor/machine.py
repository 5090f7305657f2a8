"""Checks of the surroundings: batches, hub, memory, disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import requests
import torch

from sdpo.assembly import build
from sdpo.backbones import check_path
from sdpo.commands.doctor.finding import Finding, Status
from sdpo.config.differences import check_same_run
from sdpo.config.schema import Config
from sdpo.errors import UserError
from sdpo.estimate.memory import Memory, checkpoint_bytes
from sdpo.method.advantages import BufferedNormalizer
from sdpo.prompts import Prompt
from sdpo.rewards.models.weights import SOURCES, to_download
from sdpo.system.units import gigabytes

_PATIENCE = 5.0  # seconds for the hub to answer


def batches(config: Config, prompts: Sequence[Prompt]) -> Iterator[Finding]:
    """Whether the numbers of a run go together; those that cannot are refused with the configuration."""
    sample, train, algorithm = config.sample, config.train, config.build_algorithm()
    steps = build.optimizer_steps(config)
    legal = [str(n) for n in range(1, train.batch_size + 1) if train.batch_size % n == 0][:8]
    yield Finding(
        "batches",
        "ok",
        f"an epoch has {sample.prompts_per_epoch} groups of {algorithm.branches} and {steps} optimizer steps of "
        f"{train.batch_size} groups; they divide over {', '.join(legal)} processes",
    )
    if train.warmup_steps >= steps * config.epochs:
        yield Finding(
            "warm-up",
            "WARN",
            f"train.warmup_steps ({train.warmup_steps}) is not over at the end of the run ({steps * config.epochs} "
            "optimizer steps): the learning rate never reaches its value. Lower it",
        )
    entries = config.epochs * sample.prompts_per_epoch * algorithm.branches / len(prompts)
    own_statistics = isinstance(config.build_normalizer(), BufferedNormalizer)
    if own_statistics and entries < config.advantage.min_count:
        yield Finding(
            "advantages",
            "WARN",
            f"each of {len(prompts)} prompts is drawn {entries:.1f} times in the whole run, and "
            f"advantage.min_count is {config.advantage.min_count}: no prompt gets statistics of its own. Train longer, "
            "use fewer prompts, or advantage.normalizer=pair",
        )


def absent(config: Config, names: Sequence[str]) -> dict[str, str]:
    """What the hub would have to give before training: by name of the reward, or `model`, how much it is."""
    found = {}
    path, revision, fused = config.model.path, config.model.revision, config.model.fuse_lora
    if check_path(path) is None and not _cached(path, "model_index.json", revision):
        found["model"] = f"the model {path}"
    elif fused and not os.path.exists(fused.path):
        if not _cached(fused.path, fused.weight_name or "pytorch_lora_weights.safetensors"):
            found["model"] = f"the LoRA {fused.path}"
    for name in names:
        size = to_download(name, config.reward_options.get(name, {}).get("path")) if name in SOURCES else 0
        if size:
            found[name] = f"{gigabytes(1e6 * size)} for the reward {name}"
    return found


def _cached(repository: str, file: str, revision: str = "main") -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(repository, file, revision=revision), str)
    except HFValidationError:
        return True  # no name that the hub could have: loading it says so


def hub(missing: dict[str, str]) -> Iterator[Finding]:
    """Whether what is not on this machine can be fetched; asks only where something is missing."""
    if not missing:
        yield Finding("hub", "ok", "not needed: everything is on this machine")
        return
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    wanted = ", ".join(missing.values())
    place = "put the files on this machine and name them by model.path or reward_options.NAME.path"
    if HF_HUB_OFFLINE:
        yield Finding("hub", "FAIL", f"{wanted} must be fetched, but HF_HUB_OFFLINE is set: unset it, or {place}")
        return
    try:
        requests.head(ENDPOINT, timeout=_PATIENCE)
    except requests.RequestException as error:
        yield Finding("hub", "FAIL", f"{wanted} must be fetched, but no hub answers ({type(error).__name__}): {place}")
        return
    yield Finding(
        "hub", "WARN", f"{wanted} would be fetched when training starts: `hf download` it, then repeat this command"
    )


def memory(estimate: Memory, device: torch.device) -> Iterator[Finding]:
    """What training adds to the loaded model, against what is free; activations and rewards need some of it too."""
    more, free = estimate.training + estimate.trajectories, free_memory(device)
    text = (
        f"weights {gigabytes(estimate.weights)}, gradients and optimizer {gigabytes(estimate.training)}, trajectories "
        f"{gigabytes(estimate.trajectories)}; activations and rewards come on top"
    )
    if free is None:
        yield Finding("memory", "ok", f"{text}; how much is free is not known here")
        return
    status: Status = "FAIL" if more > free else "WARN" if more > 0.6 * free else "ok"
    advice = {"ok": "", "WARN": ": it may not suffice", "FAIL": ": it does not suffice"}[status]
    if status != "ok":
        advice += ". Fewer sample.prompts_per_epoch, a LoRA, train.optimizer=adamw8bit, or a larger device"
    yield Finding("memory", status, f"{text}; {gigabytes(free)} free on {device}{advice}")


def free_memory(device: torch.device) -> int | None:
    """Bytes; None where this platform does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def disk(config: Config, trained: int | None) -> Iterator[Finding]:
    """Space for the checkpoints that stay, one that is being written, and the result.

    Args:
        config: with an `output_dir`.
        trained: parameters; None where the model is not there.
    """
    assert config.output_dir is not None, "the command names one"
    run_dir = Path(config.output_dir)
    here = next(path for path in [run_dir.absolute(), *run_dir.absolute().parents] if path.exists())
    if not here.is_dir() or not os.access(here, os.W_OK):
        yield Finding("disk", "FAIL", f"{here} cannot be written to: name another output_dir")
        return
    keep = config.checkpoint.keep_last + config.checkpoint.keep_best + 1
    need = keep * checkpoint_bytes(config, trained or 0) + 4 * (trained or 0)
    free = shutil.disk_usage(here).free
    status: Status = "FAIL" if need > free else "WARN" if 2 * need > free else "ok"
    advice = "" if status == "ok" else ". Lower checkpoint.keep_last, or name an output_dir on a larger disk"
    size = f"take {gigabytes(need)}" if trained else "have a size that only the model tells"
    yield Finding("disk", status, f"checkpoints {size}, {gigabytes(free)} are free at {here}{advice}")
    if (run_dir / "config.yaml").is_file():
        try:
            check_same_run(config, run_dir / "config.yaml")
            yield Finding("output_dir", "ok", f"{run_dir} holds a run of this configuration, which training resumes")
        except UserError as error:
            yield Finding("output_dir", "FAIL", str(error))
