"""Checks of sampling: log-probabilities, their ratio on policy, determinism, and images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sdpo.assembly.quiet_steps import describe_quiet_steps
from sdpo.commands.doctor.finding import Finding
from sdpo.commands.doctor.probe import GROUPS, Probe

_STEPS = 8  # the log-ratio is computed at this number of steps, spread evenly over the trajectory
_ROUNDING = 1e-6  # a log-ratio on policy up to this is rounding
_CLIP = 1e-4  # from this log-ratio on, the published clip range acts before anything has been learned


def check_log_prob(probe: Probe) -> Iterator[Finding]:
    """Check that latents and log-probabilities are finite, and that some step is random."""
    random = probe.first.stochastic
    values = torch.cat([group.log_prob for group in probe.groups])  # [B, K, T]
    steps = values.shape[2]
    bad = [i for i in range(steps) if not values[..., i].isfinite().all()]
    latents = [i for i in range(steps) if not all(g.states[:, :, i + 1].isfinite().all() for g in probe.groups)]
    if bad or latents:
        what, where = ("log-probability", bad) if bad and not latents else ("latent", latents)
        text = f"{what} not finite at step {', '.join(map(str, where[:8]))} of {steps}"
        yield Finding("log-prob", "FAIL", f"{text}: use model.dtype=bfloat16 or float32, or check the model's weights")
    elif probe.parts.update is None:
        yield Finding("log-prob", "ok", f"finite at all {steps} steps; reward gradients use none")
    elif not random.any():
        yield Finding("log-prob", "FAIL", "no step is random, so none has a log-probability: raise sample.eta")
    else:
        low, high = values[..., random].min().item(), values[..., random].max().item()
        text = f"finite at all {steps} steps, {low:.3g} … {high:.3g}; {int(random.sum())} of them random"
        yield Finding("log-prob", "ok", text)


def check_noise(probe: Probe) -> Iterator[Finding]:
    """Warn of steps that the update visits with so little noise that their gradient says hardly anything."""
    if quiet := describe_quiet_steps(probe.parts.config, probe.parts.denoiser):
        yield Finding("noise", "WARN", quiet)


def check_log_ratio(probe: Probe) -> Iterator[Finding]:
    """Check that the log-ratio before the first update is 0, up to rounding: the policy is the one that sampled."""
    parts, steps = probe.parts, probe.first.num_steps
    if parts.update is None:
        return
    sampled, updated, dtype = parts.micro_batches.sample, parts.micro_batches.update, parts.policy.dtype
    unequal = dtype != torch.float32 and sampled != updated
    chosen = sorted({round(i * (steps - 1) / max(1, min(steps, _STEPS) - 1)) for i in range(min(steps, _STEPS))})
    worst, where = 0.0, 0
    for step in chosen:
        deviation = _deviation(probe, step, (sampled, updated) if unequal else None)
        if not deviation <= worst:  # also where it is NaN
            worst, where = deviation, step
    text = f"at most {worst:.1e} on policy, at {len(chosen)} of {steps} steps"
    if worst <= _ROUNDING:
        yield Finding("log-ratio", "ok", text)
    elif unequal:
        text = f"{text} (step {where}): make sample.micro_batch (now {sampled}) and train.micro_batch (now {updated})"
        text = f"{text} equal, because {dtype} rounds differently in calls of other sizes"
        yield Finding("log-ratio", "WARN" if worst <= _CLIP else "FAIL", text)
    elif worst <= _CLIP:
        yield Finding("log-ratio", "WARN", f"{text} (step {where}): rounding differs; try model.dtype=float32")
    else:
        text = f"{text} (step {where}): sampling and update do not compute the same. The network keeps a state or"
        yield Finding("log-ratio", "FAIL", f"{text} draws random numbers (dropout?), or {dtype} is too coarse")


def _deviation(probe: Probe, step: int, micro_batches: tuple[int, int] | None) -> float:
    """The largest |log-ratio| of a step: against sampling, and between calls of two numbers of groups."""
    deviations = probe.log_prob(step).detach() - probe.first.log_prob[0, :, step]
    if micro_batches is not None:
        sampled, updated = micro_batches
        with torch.no_grad():
            old = probe.log_prob(step, sampled)
        deviations = torch.cat([deviations, probe.log_prob(step, updated).detach() - old])
    return deviations.abs().max().item()


def check_determinism(probe: Probe) -> Iterator[Finding]:
    """Check that the same seed draws the same latents."""
    pairs = list(zip(probe.groups, Probe.draw(probe.parts).groups, strict=True))
    if all(torch.equal(a.states, b.states) and torch.equal(a.log_prob, b.log_prob) for a, b in pairs):
        yield Finding("determinism", "ok", "the same seed drew the same latents twice, bit for bit")
        return
    apart = max((a.states.float() - b.states.float()).abs().max().item() for a, b in pairs)
    yield Finding(
        "determinism",
        "WARN" if apart < 1e-3 else "FAIL",
        f"the same seed drew latents that differ by {apart:.1e}: a run will not be repeatable bit for bit. Try "
        "torch.use_deterministic_algorithms, or model.compile=false and model.tf32=false",
    )


def check_images(images: Tensor) -> Finding:
    """Check decoded images: `FAIL` means that they cannot be scored.

    Args:
        images: float32 [N, 3, H, W].
    """
    size = f"{images.shape[-1]} × {images.shape[-2]}"
    if not images.isfinite().all() or images.amin() < 0 or images.amax() > 1:
        text = f"{size}, not finite or outside 0 … 1: the decoder overflows; use model.dtype=bfloat16 or float32"
        return Finding("images", "FAIL", text)
    if (images.amax((1, 2, 3)) - images.amin((1, 2, 3)) < 1 / 255).any():
        return Finding("images", "WARN", f"{size}, some have a single colour: is the decoder's dtype too coarse?")
    return Finding("images", "ok", f"{size}, {len(images)} of {GROUPS} prompts, finite and within 0 … 1")
