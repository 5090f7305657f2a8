"""`sdpo doctor`: finds in seconds what would spoil a run, before it starts. It writes nothing and trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch

from sdpo.assembly import Parts, build
from sdpo.assembly.model import matrix_precision
from sdpo.assembly.rewards import load_rewards
from sdpo.commands.doctor.batches import check_batches
from sdpo.commands.doctor.family import check_family
from sdpo.commands.doctor.finding import Finding
from sdpo.commands.doctor.gradient import check_gradient
from sdpo.commands.doctor.hub import check_hub, to_fetch
from sdpo.commands.doctor.probe import GROUPS, Probe, Samples
from sdpo.commands.doctor.resources import check_disk, check_memory
from sdpo.commands.doctor.reward import check_reward
from sdpo.commands.doctor.reward_gradient import check_reward_gradient
from sdpo.commands.doctor.sampling import check_determinism, check_images, check_log_prob, check_log_ratio, check_noise
from sdpo.commands.doctor.weights import check_precision, trained_parameters
from sdpo.config import Config
from sdpo.distributed.processes import Processes
from sdpo.errors import UserError
from sdpo.estimate.preflight import check_references
from sdpo.prompts import Prompt, load_prompts
from sdpo.rewards.gradient_check import check_differentiable

__all__ = ["Finding", "examine"]

_SAMPLE_CHECKS: dict[str, Callable[[Probe], Iterable[Finding]]] = {
    "log-prob": check_log_prob,
    "noise": check_noise,
    "log-ratio": check_log_ratio,
    "determinism": check_determinism,
    "gradient": check_gradient,
}


def examine(config: Config) -> Iterator[Finding]:
    """Make all checks; yields each finding as soon as it is known.

    Args:
        config: the configuration of a run, with an `output_dir`.

    Raises:
        UserError: if the configuration names what does not exist.
    """
    check_references(config)
    processes, prompts = Processes(config.device), load_prompts(config.prompts.train)
    yield from check_batches(config, prompts)
    missing = to_fetch(config, [*config.rewards, *config.evaluate.observers])
    yield from check_hub(missing)
    parts = None if "model" in missing else (yield from _check_model(config, processes, prompts))
    yield from _findings(config, "disk", partial(check_disk, config, trained_parameters(parts) if parts else None))
    samples = (yield from _check_samples(config, parts)) if parts else None
    yield from _check_rewards(config, processes.device, missing, parts, samples)


def _check_model(
    config: Config, processes: Processes, prompts: Sequence[Prompt]
) -> Generator[Finding, None, Parts | None]:
    """Build the parts of the run, for as many prompts as the checks need; returns None where that fails."""
    chosen = [prompts[i % len(prompts)] for i in range(GROUPS)]
    try:
        parts = build(config, processes, prompts=chosen, with_rewards=False)
    except Exception as error:  # the model's files, its libraries and the device have errors of many classes
        yield _failure("model", error)
        return None
    yield from _findings(config, "family", partial(check_family, parts))
    yield from _findings(config, "precision", partial(check_precision, parts))
    yield from _findings(config, "memory", partial(check_memory, parts))
    return parts


def _check_samples(config: Config, parts: Parts) -> Generator[Finding, None, Samples | None]:
    """Sample a few groups and check them; returns their images, or None where these cannot be used."""
    try:
        with matrix_precision(config.model.tf32):
            probe = Probe.draw(parts)
    except Exception as error:  # the model and the device have errors of many classes
        yield _failure("sampling", error)
        return None
    for name, check in _SAMPLE_CHECKS.items():
        yield from _findings(config, name, partial(check, probe))
    try:
        samples = probe.decode()
    except Exception as error:  # the decoder has errors of many classes
        yield _failure("images", error)
        return None
    finding = check_images(samples.images)
    yield finding
    return None if finding.status == "FAIL" else samples


def _check_rewards(
    config: Config, device: torch.device, missing: Mapping[str, str], parts: Parts | None, samples: Samples | None
) -> Iterator[Finding]:
    """Check each reward that the run is trained on or observed by, and that need not be fetched."""

    def check(name: str) -> Iterable[Finding]:
        reward = load_rewards(config, [name], device)[name]
        if samples is None or parts is None:
            return [Finding(f"reward {name}", "WARN", "loads, but there are no samples to try it on: see above")]
        found = check_reward(reward, samples, trained=name in config.rewards)
        if name in config.rewards and (algorithm := config.gradient_algorithm()) is not None:
            if config.policy_algorithm() is None:
                check_differentiable([reward], config.algorithm["name"])
            if reward.differentiable:
                found.append(check_reward_gradient(reward, samples, parts.backbone, algorithm))
        return found

    for name in dict.fromkeys([*config.rewards, *config.evaluate.observers]):
        if name not in missing:
            yield from _findings(config, f"reward {name}", partial(check, name))


def _findings(config: Config, name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Make a check in the precision of the run; an error is a finding too."""
    found: list[Finding] = []
    try:
        with matrix_precision(config.model.tf32):
            found.extend(check())
    except Exception as error:  # the model, the reward and the device have errors of many classes
        found.append(_failure(name, error))
    return found


def _failure(name: str, error: Exception) -> Finding:
    """The finding that a check ended with an error."""
    reason = str(error).strip() or "no reason given"
    return Finding(name, "FAIL", reason if isinstance(error, UserError) else f"{type(error).__name__}: {reason}")
