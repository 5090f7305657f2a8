"""A model of a few numbers that everything of the loop can be tried on: latents and images are points of the plane."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.backbones import Backbone, Conditioning
from sdpo.loop.optimizer import Optimization
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.rollout import rollout
from sdpo.method.denoisers import DDIM
from sdpo.method.types import Trajectories
from sdpo.prompts import Prompt

ALPHAS = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()).cumprod(0)


class Analytic(nn.Module):
    """The exact denoiser of N(0, I) data, E[x0 | x_t] = √ᾱ x_t, plus a learnable shift of the data's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2, 1, 1))

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        alpha = ALPHAS[timesteps].float().reshape(-1, 1, 1, 1)
        return alpha.sqrt() * x + (1 - alpha) * self.shift


class Plane(Backbone):
    """The base model is the one without a shift."""

    def __init__(self) -> None:
        self.network_module = Analytic()
        self.latent_shape = (2, 1, 1)
        self.device = torch.device("cpu")

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return {"nothing": torch.zeros(len(prompts), 1)}

    def network(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self.network_module(latents, timesteps)

    def decode(self, latents: Tensor, gradient: bool = False) -> Tensor:
        return latents

    def denoiser(self, num_steps: int, eta: float) -> DDIM:
        return DDIM(ALPHAS, num_steps, "sample", eta)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.network_module.named_parameters())

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        shift = self.network_module.shift
        trained = shift.data
        shift.data = torch.zeros_like(trained)
        try:
            yield
        finally:
            shift.data = trained


def optimize(
    what: Policy | Mapping[str, nn.Parameter],
    optimizer: type[torch.optim.Optimizer],
    max_grad_norm: float = 1.0,
    ema_decay: float | None = None,
    **settings: Any,
) -> Optimization:
    """A policy's weights under an optimizer whose learning rate stays."""

    def make(tensors: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        made = optimizer(tensors, **settings)
        return made, torch.optim.lr_scheduler.LambdaLR(made, lambda step: 1.0)

    parameters = what.backbone.trainable_parameters() if isinstance(what, Policy) else what
    return Optimization(parameters, make, max_grad_norm=max_grad_norm, ema_decay=ema_decay)


def sample_parts(
    policy: Policy, steps: int, prompts: Sequence[str], *, micro_batch: int, epoch: int = 1, **options: Any
) -> Iterator[Trajectories]:
    """Trajectories of groups 0, 1, … with seed 0 and η = 1, a micro-batch at a time; two branches unless told."""
    return rollout(
        policy,
        policy.backbone.denoiser(steps, 1.0),
        PromptEmbeddings(policy.backbone),
        [Prompt(text) for text in prompts],
        range(len(prompts)),
        seed=0,
        epoch=epoch,
        micro_batch=micro_batch,
        **{"branches": 2, **options},
    )


def sample(
    policy: Policy,
    steps: int,
    prompts: Sequence[str],
    *,
    micro_batch: int | None = None,
    epoch: int = 1,
    **options: Any,
) -> Trajectories:
    """The trajectories of `sample_parts` as the update takes them: in one piece and without x̂."""
    parts = sample_parts(policy, steps, prompts, micro_batch=micro_batch or len(prompts), epoch=epoch, **options)
    return Trajectories.collect(parts, len(prompts))
