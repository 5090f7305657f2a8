"""Policy updates on small models: settings in one flat list, an update of `Plane`, and the metrics of one epoch."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from helpers.plane_model import Plane, optimize
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.policy_update import PolicyUpdate, UpdateSettings
from sdpo.loop.visits import Visits
from sdpo.method.algorithms import Algorithm
from sdpo.method.types import Trajectories

_OF_VISITS = {field.name for field in dataclasses.fields(Visits)}


def update_settings(**flat: Any) -> UpdateSettings:
    """Settings of an update, with the fields of its visits beside the others."""
    visits = {name: value for name, value in flat.items() if name in _OF_VISITS}
    return UpdateSettings(visits=Visits(**visits), **{n: v for n, v in flat.items() if n not in visits})


def plane_update(
    algorithm: Algorithm[Any],
    lr: float = 0.1,
    ema_decay: float | None = None,
    max_grad_norm: float = 1e9,
    **settings: Any,
) -> PolicyUpdate:
    """The update of a new `Plane` by SGD, with three groups a batch unless the settings say otherwise."""
    policy = Policy(Plane())
    optimization = optimize(policy, torch.optim.SGD, lr=lr, max_grad_norm=max_grad_norm, ema_decay=ema_decay)
    return PolicyUpdate(policy, algorithm, update_settings(**{"batch_size": 3, **settings}), optimization)


def shift(update: PolicyUpdate) -> Tensor:
    """A copy of the shift that an update of `Plane` trains."""
    return update.optimization.parameters[0].detach().clone()


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
