"""A small nonlinear model in float64, whose gradients can be compared to many digits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from helpers.plane_model import Plane, optimize
from sdpo.backbones import Conditioning
from sdpo.loop.gradient_records import GradientSettings
from sdpo.loop.gradient_update import GradientUpdate
from sdpo.loop.policy import Policy
from sdpo.loop.reward_head import RewardHead
from sdpo.loop.reward_mix import RewardMix
from sdpo.method.algorithms import RewardGradient


class _Tanh(nn.Module):
    """Two layers on the latents and the timestep; no output is linear in the latents or in a weight."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))  # noqa: E731
        self.inner, self.outer = draw(8, 3), draw(2, 8)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        inputs = torch.cat([x.double().flatten(1), timesteps[:, None].double() / 1000], dim=1)
        return (torch.tanh(inputs @ self.inner.T) @ self.outer.T).reshape(-1, 2, 1, 1)


class Curved(Plane):
    """Latents and images are points of the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.network_module = _Tanh()

    def network(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self.network_module(latents, timesteps)


class Hill:
    """A differentiable reward: the height of a hill around a point."""

    differentiable = True

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        return -(images.flatten(1) - images.new_tensor([2.0, -1.0])).square().sum(1).sqrt()


class ExactMix(RewardMix):
    """Keeps float64, which the check of scores narrows to float32."""

    def with_gradient(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Any:
        scores = {name: reward.reward(images, prompts, metadata) for name, reward in self.rewards.items()}
        return self.combine(scores), {name: values.detach() for name, values in scores.items()}


def gradient_update(
    policy: Policy,
    algorithm: RewardGradient,
    steps: list[int],
    batch_size: int,
    *,
    lr: float = 0.0,
    eta: float = 1.0,
    mix: RewardMix | None = None,
    decode_batch: int = 64,
    **settings: Any,
) -> GradientUpdate:
    """An update of a policy on one of the plane's schedules, by the reward `Hill` unless told."""
    mix = mix or RewardMix({"hill": Hill()}, {"hill": 1.0})
    head = RewardHead(policy.backbone, mix, algorithm.reward_augment, algorithm.objective, decode_batch=decode_batch)
    schedules = {count: policy.backbone.denoiser(count, eta) for count in steps}
    options = GradientSettings(seed=0, batch_size=batch_size, **settings)
    optimization = optimize(policy, torch.optim.AdamW, max_grad_norm=1e9, lr=lr, fused=True)
    return GradientUpdate(policy, algorithm, options, optimization, head, schedules)
