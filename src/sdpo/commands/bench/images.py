"""The images of an epoch alone: the time to decode them, and to score them."""

from __future__ import annotations

import torch
from torch import Tensor

from sdpo.commands.bench.stopwatch import seconds
from sdpo.method.reward_plans import RewardPlan
from sdpo.method.types import Trajectories
from sdpo.prompts import Prompt
from sdpo.trainer import Trainer


class EpochImages:
    """The images that the rewards score in an epoch, kept as latents that the parts of the run drew once.

    Args:
        trainer: the run.
        queries: the number N of images.

    Attributes:
        latents: the latents, [N, C, H, W].
        prompts: the N prompts.
    """

    def __init__(self, trainer: Trainer, queries: int) -> None:
        self._parts = trainer.parts
        self.latents, self.prompts = _draw(trainer, queries)

    def times(self) -> tuple[float, float]:
        """Decode all images, and score them; returns the seconds of the decoder and of the rewards."""
        parts, size = self._parts, self._parts.config.scoring.batch_size
        device, chunks = parts.backbone.device, self.latents.split(parts.decode_batch)
        decoded: list[Tensor] = []
        decoding = seconds(device, lambda: decoded.extend(parts.backbone.decode(chunk) for chunk in chunks))
        owners = [self.prompts[start : start + size] for start in range(0, len(self.prompts), size)]
        calls = [
            (images, [p.text for p in prompts], [p.metadata for p in prompts])
            for images, prompts in zip(torch.cat(decoded).split(size), owners, strict=True)
        ]
        with parts.mix.resident():
            return decoding, seconds(device, lambda: [parts.mix.start(*call)() for call in calls])


def _draw(trainer: Trainer, queries: int) -> tuple[Tensor, list[Prompt]]:
    """Sample the next epoch's groups; returns N of the latents that its reward plan asks for, and their prompts."""
    parts, epoch = trainer.parts, trainer.session.epoch + 1
    prompts, indices = parts.batches.deal(epoch)
    sampled = parts.rollout(prompts, indices, epoch, trainer.session.micro_batches.sample)
    plan = parts.policy_update.algorithm.reward_plan
    latents = torch.cat([_wanted(part, plan) for part in sampled])  # [B, K Q, C, H, W]
    groups, wanted = latents.shape[:2]
    chosen = torch.linspace(0, groups * wanted - 1, queries).round().long()  # evenly, as some of them coincide
    return latents.flatten(0, 1)[chosen.to(latents.device)], [prompts[i] for i in (chosen // wanted).tolist()]


def _wanted(part: Trajectories, plan: RewardPlan) -> Tensor:
    """The clean latents that a reward plan asks for, [B, K Q, C, H, W]."""
    assert part.x0 is not None, "a new part has its clean latents"
    steps = plan.steps(part.x0)
    return part.x0.take_along_dim(steps[..., None, None, None], dim=2).flatten(1, 2)
