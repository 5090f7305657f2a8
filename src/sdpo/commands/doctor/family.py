"""The check of a run's settings against those that the authors of its model publish."""

from __future__ import annotations

from collections.abc import Iterator

from sdpo.assembly import Parts
from sdpo.commands.doctor.finding import Finding


def check_family(parts: Parts) -> Iterator[Finding]:
    """Warn where guidance, precision or the number of steps leaves what the model's authors publish."""
    own, policy, sample = parts.backbone.own_settings, parts.policy, parts.config.sample
    dtype = str(policy.dtype).removeprefix("torch.")
    left = []
    if policy.guidance_scale != own.guidance_scale and parts.backbone.guidance != "none":
        left.append(f"sample.guidance_scale is {policy.guidance_scale:g} (theirs: {own.guidance_scale:g})")
    if parts.backbone.device.type != "cpu" and dtype != own.dtype:
        left.append(f"model.dtype is {dtype} (theirs: {own.dtype})")
    steps = [("sample.num_steps", sample.num_steps), ("evaluate.steps", max(parts.config.evaluate.steps))]
    left += [f"{name} is {count} (theirs: up to {own.steps})" for name, count in steps if count > own.steps]
    if left:
        unknown = "" if own.distilled else "; the files do not tell whether the model was made for few steps, unguided"
        yield Finding("family", "WARN", f"{own.family}: {'; '.join(left)}. Source: {own.source}{unknown}")
