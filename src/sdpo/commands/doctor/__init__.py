"""`sdpo doctor`: what would ruin a run, found in seconds, before it is started. Writes nothing and trains nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from sdpo.assembly import build
from sdpo.commands.doctor import gradient, machine, model, reward
from sdpo.commands.doctor.finding import Finding
from sdpo.commands.doctor.model import Patient
from sdpo.config.schema import Config
from sdpo.distributed.processes import Processes
from sdpo.errors import UserError
from sdpo.estimate.memory import estimate_memory
from sdpo.loop.micro_batch import default_samples
from sdpo.prompts import Prompt, load_prompts

__all__ = ["Finding", "examine"]

_OF_SAMPLES = {
    "log-prob": model.log_probabilities,
    "log-ratio": model.log_ratio,
    "determinism": model.determinism,
    "gradient": gradient.gradients,
}


def examine(config: Config) -> Iterator[Finding]:
    """Every finding, as soon as it is there.

    Args:
        config: with an `output_dir`.

    Raises:
        UserError: if the configuration names what does not exist.
    """
    build.check_references(config)
    device, prompts = Processes(config.device).device, load_prompts(config.prompts.train)
    yield from machine.batches(config, prompts)
    missing = machine.absent(config, [*config.rewards, *config.evaluate.observers])
    yield from machine.hub(missing)
    patients: list[Patient] = []
    if "model" not in missing:
        yield from _tried("model", lambda: _admit(config, prompts, device, patients))
    trained = sum(p.numel() for patient in patients for p in patient.backbone.trainable_parameters().values())
    yield from _tried("disk", lambda: machine.disk(config, trained or None))
    samples: list[tuple[Patient, Tensor]] = []
    for patient in patients:
        yield from _tried("sampling", lambda p=patient: _sample(p, samples))  # type: ignore[misc]
    yield from _rewards(config, device, missing, samples)


def _admit(config: Config, prompts: list[Prompt], device: torch.device, patients: list[Patient]) -> Iterator[Finding]:
    """Load the model, and see what it takes."""
    patient = Patient.admit(config, prompts, device)
    patients.append(patient)
    yield from model.precision(patient)
    elements, branches = math.prod(patient.backbone.latent_shape), config.build_algorithm().branches
    setting = config.sample.micro_batch
    estimate = estimate_memory(
        config,
        weight_bytes=model.weight_bytes(patient.backbone),
        trained=sum(p.numel() for p in patient.backbone.trainable_parameters().values()),
        latent_elements=elements,
        micro_batch=max(1, default_samples(elements, device) // branches) if setting == "auto" else setting,
    )
    yield from machine.memory(estimate, device)


def _sample(patient: Patient, samples: list[tuple[Patient, Tensor]]) -> Iterator[Finding]:
    """Draw a few trajectories and look at them from all sides."""
    parts = patient.sample()
    for name, look in _OF_SAMPLES.items():
        yield from _tried(name, partial(look, patient, parts))
    images, finding = model.images(patient, parts)
    yield finding
    if images is not None:
        samples.append((patient, images))


def _rewards(
    config: Config, device: torch.device, missing: dict[str, str], samples: list[tuple[Patient, Tensor]]
) -> Iterator[Finding]:
    for name in dict.fromkeys([*config.rewards, *config.evaluate.observers]):
        if name not in missing:
            yield from _tried(f"reward {name}", partial(_reward, config, name, device, samples))


def _reward(
    config: Config, name: str, device: torch.device, samples: list[tuple[Patient, Tensor]]
) -> Iterator[Finding]:
    placed = build.load_rewards(config, [name], device)[name]
    if not samples:
        yield Finding(f"reward {name}", "WARN", "loads, but there are no samples to try it on: see above")
    for patient, images in samples:
        branches = len(images) // len(patient.prompts)
        owners = [prompt for prompt in patient.prompts for _ in range(branches)]
        prompts, metadata = [p.text for p in owners], [p.metadata for p in owners]
        yield from reward.sanity(placed, images, prompts, metadata, trained=name in config.rewards)


def _tried(check: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a check; whatever it breaks at is one too."""
    try:
        yield from look()
    except Exception as error:  # of the model, the reward or the device: each has its own
        reason = str(error).strip() or "no reason given"
        yield Finding(check, "FAIL", reason if isinstance(error, UserError) else f"{type(error).__name__}: {reason}")
