"""The check that a reward's gradient arrives at the latents of a sample, through the decoder."""

from __future__ import annotations

from sdpo.backbones import Backbone
from sdpo.commands.doctor.finding import Finding
from sdpo.commands.doctor.probe import Samples
from sdpo.loop.reward_head import RewardHead
from sdpo.loop.reward_mix import RewardMix
from sdpo.method import seeds
from sdpo.method.algorithms import RewardGradient
from sdpo.rewards.base import PlacedReward


def check_reward_gradient(
    reward: PlacedReward, samples: Samples, backbone: Backbone, algorithm: RewardGradient
) -> Finding:
    """Reward one sample as an update by reward gradients does, and look at the gradient at its latents.

    It needs the memory that an update needs for one image.

    Args:
        reward: a reward that says that it is differentiable.
        samples: the samples, of which the first is taken.
        backbone: the model, which decodes.
        algorithm: the algorithm of the run, whose random views are drawn.

    Raises:
        RewardError: if the reward fails.
    """
    name = f"reward {reward.name}"
    mix = RewardMix({reward.name: reward}, {reward.name: 1.0})
    head = RewardHead(backbone, mix, algorithm.reward_augment, lambda rewards: rewards)
    with mix.resident():
        generators = [seeds.generator("doctor", reward.name)]
        gradient = head(samples.latents[:1], samples.prompts[:1], samples.metadata[:1], generators).gradient
    if not gradient.isfinite().all():
        text = "its gradient at the latents of a sample is not finite: try model.dtype=bfloat16 or float32"
        return Finding(name, "FAIL", text)
    norm = gradient.double().norm().item()
    if norm == 0:
        text = (
            "its gradient at the latents of a sample is 0: the reward is flat there, or the decoder's dtype too coarse"
        )
        return Finding(name, "WARN", text)
    return Finding(name, "ok", f"its gradient at the latents of a sample has the norm {norm:.2g}")
