"""A small run for the doctor, and a probe of its samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.small_run import config

from sdpo import Config
from sdpo.assembly import build
from sdpo.commands.doctor.probe import Probe
from sdpo.distributed.processes import Processes
from sdpo.prompts import Prompt

MakeConfig = Callable[..., Config]
MakeProbe = Callable[[Config], Probe]


@pytest.fixture
def make_config(tiny_pipeline: Path) -> MakeConfig:
    """The configuration of a run of seconds, with changes."""

    def make(**values: Any) -> Config:
        base: dict[str, Any] = dict(
            device="cpu",
            prompts={"train": ["cat", "dog"]},
            rewards={"colorfulness": 1.0},
            advantage={"normalizer": "pair"},
            sample={"num_steps": 3},
            train={"warmup_steps": 0, "ema_decay": None},
        )
        for section, value in values.items():
            base[section] = {**base.get(section, {}), **value} if isinstance(value, dict) else value
        return config(tiny_pipeline, Path("run"), **base)

    return make


@pytest.fixture
def make_probe() -> MakeProbe:
    """A probe of two groups of a run."""

    def make(config: Config) -> Probe:
        prompts = [Prompt("cat"), Prompt("dog")]
        return Probe.draw(build(config, Processes("cpu"), prompts=prompts, with_rewards=False))

    return make


@pytest.fixture
def probe(make_config: MakeConfig, make_probe: MakeProbe) -> Probe:
    """A probe of the small run."""
    return make_probe(make_config())
