"""Reads the configurations of runs that earlier versions wrote.

A run's `config.yaml` holds every setting of the version that wrote it. A setting that it lacks was added since, and the
run was made without it; where the present default means something else, the value that the run had stands here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

Meaning = Callable[[dict[str, Any]], Any]


def _algorithm(data: dict[str, Any]) -> str | None:
    """The name of a configuration's algorithm."""
    section = data.get("algorithm")
    return section.get("name") if isinstance(section, dict) else section


def _eta(data: dict[str, Any]) -> Any:
    """η of a configuration's training sampler."""
    sample = data.get("sample")
    return sample.get("eta", 1.0) if isinstance(sample, dict) else 1.0


def _fields_of_algorithms(data: dict[str, Any]) -> None:
    """Give algorithms the fields that they lacked: d3po did not clip, and grpo had the population's deviation."""
    lacked: dict[str, dict[str, Any]] = {"d3po": {"clip_range": 0.0}, "grpo": {"unbiased_std": False}}
    section = data.get("algorithm")
    if isinstance(section, dict):
        data["algorithm"] = {**lacked.get(str(section.get("name")), {}), **section}


def _names(data: dict[str, Any]) -> None:
    """Rename what had another name: prdp was rebel with clipping, flow_grpo is now what its authors' code does."""
    if _algorithm(data) == "prdp":
        section = data["algorithm"]
        data["algorithm"] = {"clip_range": 1e-4, **(section if isinstance(section, dict) else {}), "name": "rebel"}
    sample = data.get("sample")
    if isinstance(sample, dict) and sample.get("noise_form") == "flow_grpo":
        data["sample"] = {**sample, "noise_form": "flow_sde"}


ADDED: dict[str, Meaning] = {
    # Evaluations drew their images with the training sampler.
    "evaluate.eta": lambda data: _eta(data),
    # Each step had an optimizer step of its own, as sdpo still has; a trajectory's steps are joined by their loss.
    "train.accumulate_steps": lambda data: None if _algorithm(data) in (None, "sdpo", "rebel", "prdp") else 1,
}
"""`section.key` → the value that runs of versions without this setting had, as a function of the configuration."""

CHANGED: list[Callable[[dict[str, Any]], None]] = [_fields_of_algorithms, _names]
"""Rewrites of settings whose meaning changed, in place, each a function of a configuration of an earlier version."""


def as_meant(data: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run with its settings as this version names them.

    Args:
        data: the content of a run's `config.yaml`; it is not changed.
    """
    found = copy.deepcopy(data)
    missing = {name: meaning for name, meaning in ADDED.items() if _lacks(found, name)}
    if missing:
        for change in CHANGED:
            change(found)
    for name, meaning in missing.items():
        section, _, key = name.rpartition(".")
        place = found.setdefault(section, {}) if section else found
        place[key] = meaning(data)
    return found


def _lacks(data: dict[str, Any], name: str) -> bool:
    section, _, key = name.rpartition(".")
    place = data.get(section, {}) if section else data
    return isinstance(place, dict) and key not in place
