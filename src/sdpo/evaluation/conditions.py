"""The conditions of an evaluation: everything besides the weights that its scores depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sdpo.config.schema import Config
from sdpo.evaluation.sampler import Sampler
from sdpo.loop.policy import Policy

_PACKAGES = ("sdpo", "torch", "diffusers", "transformers")

_NOTED = ("versions",)
"""Conditions that may differ between two evaluations that are compared."""


@dataclass(frozen=True)
class Conditions:
    """How the images of an evaluation were drawn and scored.

    Attributes:
        sampler: `own`, the sampler of the pipeline's own call, or `training`.
        eta: η of the sampler's steps; 0 is deterministic.
        noise_form: the form of the noise of a flow model's training sampler; None where the sampler has no choice.
        scheduler: `class` and settings of the pipeline's scheduler.
        guidance_scale: the guidance scale; 1 is none.
        size: height and width of the images in pixels.
        dtype: the type that the network computes in.
        model: the settings of the section `model` that decide which weights the base model has.
        reward_options: the options of each reward by name.
        versions: the versions of the packages.
    """

    sampler: str
    eta: float
    noise_form: str | None
    scheduler: dict[str, Any]
    guidance_scale: float
    size: list[int]
    dtype: str
    model: dict[str, Any]
    reward_options: dict[str, dict[str, Any]]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The sampler in words."""
        kind = "deterministic" if self.eta == 0 else f"η = {self.eta:g}"
        if self.sampler == "own":
            return f"the pipeline's own sampler ({self.scheduler.get('class', 'unknown')}, {kind})"
        form = f", {self.noise_form}" if self.noise_form not in (None, "preserving") else ""
        return f"the training sampler ({kind}{form})"

    def as_json(self) -> dict[str, Any]:
        """A mapping of plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Conditions:
        """The inverse of `as_json`.

        Raises:
            KeyError, TypeError: if the record is damaged.
        """
        return cls(**{name.name: record[name.name] for name in dataclasses.fields(cls)})


def conditions_of(config: Config, policy: Policy, sampler: Sampler) -> Conditions:
    """The conditions of an evaluation.

    Args:
        config: the configuration of the run or model.
        policy: the policy that draws the images.
        sampler: the sampler that draws them.
    """
    model, backbone = config.model, policy.backbone
    own = sampler.eta is None
    return Conditions(
        sampler="own" if own else "training",
        eta=sampler.level(backbone),
        noise_form=None if own else config.sample.noise_form,
        scheduler=backbone.scheduler_settings,
        guidance_scale=policy.guidance_scale,
        size=list(backbone.image_size),
        dtype=str(policy.dtype).removeprefix("torch."),
        model={
            "path": model.path,
            "revision": model.revision,
            "variant": model.variant,
            "fuse_lora": model.fuse_lora.model_dump() if model.fuse_lora is not None else None,
            "quantize": model.quantize,
        },
        reward_options=config.reward_options,
        versions={name: _version(name) for name in _PACKAGES},
    )


def differences(one: Conditions | None, other: Conditions | None) -> list[str]:
    """The conditions that differ between two evaluations, with both values; empty if their images can be paired.

    Evaluations of earlier versions have no conditions: they can be paired with each other.

    Args:
        one: the conditions of an evaluation; None if its record has none.
        other: the conditions of another evaluation; None if its record has none.
    """
    if one is None and other is None:
        return []
    if one is None or other is None:
        return ["conditions (recorded, and not recorded by an earlier version)"]
    return list(_differences(one.as_json(), other.as_json(), ""))


def _differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key in sorted(one.keys() | other.keys()):
        first, second = one.get(key), other.get(key)
        if (not prefix and key in _NOTED) or first == second:
            continue
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            yield from _differences(first, second, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} ({first} and {second})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
