"""From predicted clean latents to rewards and back: decode, augment, score, and the gradient at the latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from sdpo.backbones import Backbone
from sdpo.errors import UserError
from sdpo.loop.clock import Clock
from sdpo.loop.divergence import check_images
from sdpo.loop.reward_mix import RewardMix
from sdpo.method.augment import Augment


@dataclass(frozen=True)
class Rewarded:
    """The rewards of N latents.

    Attributes:
        mixed: the mixed reward, averaged over the views of each image, float32 [N].
        objective: what is maximised, float32 [N].
        raw: the raw scores by reward, averaged over the views of each image, float32 [N] each.
        gradient: the gradient of each objective at its own latents, float32 [N, C, H, W].
    """

    mixed: Tensor
    objective: Tensor
    raw: dict[str, Tensor]
    gradient: Tensor


class RewardHead:
    """Rewards latents with a gradient, a few images at a time.

    The activations of decoder and reward models exist for one such part only, and not beside those of the next one, so
    that memory does not grow with the number of latents.

    Args:
        backbone: the model, which decodes latents.
        mix: the rewards, all of them differentiable.
        augment: random views of each image, over which its reward is averaged.
        objective: turns mixed rewards [N] into what is maximised, [N].
        decode_batch: images that are decoded and scored at once.
        clock: counts the seconds of decoding and of the rewards.
    """

    def __init__(
        self,
        backbone: Backbone,
        mix: RewardMix,
        augment: Augment,
        objective: Callable[[Tensor], Tensor],
        *,
        decode_batch: int = 1,
        clock: Clock | None = None,
    ) -> None:
        self.mix = mix
        self.queries = 0
        self._backbone = backbone
        self._augment = augment
        self._objective = objective
        self._decode_batch = decode_batch
        self._clock = clock or Clock()

    def __call__(
        self,
        latents: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[dict[str, Any]],
        generators: Sequence[Generator],
    ) -> Rewarded:
        """Reward N latents, with gradient.

        Args:
            latents: predicted clean latents, float32 [N, C, H, W].
            prompts: N prompts.
            metadata: N mappings, the further fields of the prompts.
            generators: N generators on the CPU, from which the views of each image are drawn.

        Raises:
            DivergenceError: if an image is not finite.
            RewardError: if a reward fails.
            UserError: if the objective is not elementwise, or has no gradient.
        """
        parts = []
        for start in range(0, len(latents), self._decode_batch):
            rows = slice(start, start + self._decode_batch)
            parts.append(self._part(latents[rows], prompts[rows], metadata[rows], generators[rows]))
        return Rewarded(
            mixed=torch.cat([part.mixed for part in parts]),
            objective=torch.cat([part.objective for part in parts]),
            raw={name: torch.cat([part.raw[name] for part in parts]) for name in parts[0].raw},
            gradient=torch.cat([part.gradient for part in parts]),
        )

    def _part(
        self,
        latents: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[dict[str, Any]],
        generators: Sequence[Generator],
    ) -> Rewarded:
        """Reward the latents of one decoder call."""
        leaf = latents.detach().requires_grad_()
        with torch.enable_grad():
            with self._clock("decode"):
                images = self._backbone.decode(leaf, gradient=True)
            check_images(images, prompts)
            views = self._augment(images, list(generators))
            each = len(views) // len(images)
            self.queries += len(views)
            texts = [text for text in prompts for _ in range(each)]
            fields = [field for field in metadata for _ in range(each)]
            with self._clock("reward"):
                mixed, raw = self.mix.with_gradient(views, texts, fields)
                mixed = mixed.unflatten(0, (-1, each)).mean(1)
                objective = _checked_objective(self._objective(mixed), mixed)
                gradient = _scaled_gradient(objective.sum(), leaf, self._backbone.decoder_scales)
        averaged = {name: values.unflatten(0, (-1, each)).mean(1) for name, values in raw.items()}
        return Rewarded(mixed.detach(), objective.detach(), averaged, gradient)

    def scores(self, latents: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """The raw scores of N latents' images by reward, without gradient and without views, float32 [N] each."""
        found = []
        for start in range(0, len(latents), self._decode_batch):
            rows = slice(start, start + self._decode_batch)
            images = self._backbone.decode(latents[rows])
            check_images(images, prompts[rows])
            self.queries += len(images)
            found.append(self.mix.start(images, list(prompts[rows]), list(metadata[rows]))())
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def _checked_objective(objective: Tensor, rewards: Tensor) -> Tensor:
    """Refuse an objective, which may be the user's own, that is not elementwise or has no gradient.

    Raises:
        UserError: naming what is wrong.
    """
    if objective.shape != rewards.shape:
        raise UserError(
            f"the algorithm's objective returned the shape {tuple(objective.shape)} for rewards of the shape "
            f"{tuple(rewards.shape)}: return one value for each reward"
        )
    if not objective.requires_grad:
        raise UserError(
            "the algorithm's objective has no gradient at the rewards: compute it by torch operations that detach "
            "nothing"
        )
    return objective


def _scaled_gradient(objective: Tensor, leaf: Tensor, scales: Sequence[float]) -> Tensor:
    """The gradient of an objective at a leaf, computed at the first scale at which it is finite.

    Float16 gradients underflow without a scale, and overflow at one that is too large. The host waits for the device
    between two scales.

    Args:
        objective: a scalar with gradient.
        leaf: the tensor at which the gradient is wanted.
        scales: factors of the objective in the backward pass, of which the last one's result is taken as it is.
    """
    for scale in scales[:-1]:
        (gradient,) = torch.autograd.grad(objective * scale, leaf, retain_graph=True)
        if gradient.isfinite().all():
            return gradient / scale
    (gradient,) = torch.autograd.grad(objective * scales[-1], leaf)
    return gradient / scales[-1]
