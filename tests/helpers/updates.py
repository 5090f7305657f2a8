"""Policy updates on small models: their settings in one flat list, their metrics as they come."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from sdpo.loop.policy import PromptEmbeddings
from sdpo.loop.policy_update import PolicyUpdate, UpdateSettings
from sdpo.loop.visits import Visits
from sdpo.method.types import Trajectories

_OF_VISITS = {field.name for field in dataclasses.fields(Visits)}


def update_settings(**flat: Any) -> UpdateSettings:
    """Settings of an update, with the fields of its visits beside the others."""
    visits = {name: value for name, value in flat.items() if name in _OF_VISITS}
    return UpdateSettings(visits=Visits(**visits), **{n: v for n, v in flat.items() if n not in visits})


def run_update(
    update: PolicyUpdate,
    trajectories: Trajectories,
    advantages: Tensor,
    epoch: int = 1,
    micro_batch: int | None = None,
) -> dict[str, Tensor]:
    """The metrics of one epoch's update of a policy whose backbone makes its own schedule."""
    backbone = update.policy.backbone
    denoiser = backbone.denoiser(trajectories.num_steps, 1.0)
    size = micro_batch or update.settings.batch_size
    return update.run(trajectories, advantages, denoiser, PromptEmbeddings(backbone), epoch, size).metrics
