"""Combines one or several weighted rewards to one number."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from sdpo.rewards import PlacedReward, Reward


class RewardMix:
    """Combines one or several weighted rewards to one number.

    A single reward is multiplied by its weight. Several are standardised first, each by the mean and std of all its
    scores so far in the run, so that weights compare rewards of different scales.

    Args:
        rewards: the rewards by name.
        weights: the weight of each reward by name.
    """

    def __init__(self, rewards: Mapping[str, Reward], weights: Mapping[str, float]) -> None:
        self.rewards = {n: r if isinstance(r, PlacedReward) else PlacedReward(n, r) for n, r in rewards.items()}
        self.weights = dict(weights)
        # Count, mean and sum of squared deviations (Welford), in float64.
        self._moments = {name: torch.zeros(3, dtype=torch.float64) for name in rewards}
        self._pool = ThreadPoolExecutor(max(1, len(self.rewards)), "reward")  # starts a thread when one is needed

    def start(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Callable[[], dict[str, Tensor]]:
        """Begin to score N images; remote rewards work in the background.

        Args:
            images: float32 [N, 3, H, W] in [0, 1].
            prompts: N prompts.
            metadata: N mappings, the further fields of the prompts.

        Returns:
            A function that waits, and returns the raw scores of every reward, float32 [N] each.
        """
        background, found = {}, {}
        for name, reward in self.rewards.items():
            if reward.remote:
                background[name] = self._pool.submit(reward, images.cpu(), prompts, metadata)
        for name, reward in self.rewards.items():
            if not reward.remote:
                found[name] = reward(images, prompts, metadata)
        device = images.device  # the images themselves need not wait

        def wait() -> dict[str, Tensor]:
            arrived = {name: future.result().to(device) for name, future in background.items()}
            return {name: found[name] if name in found else arrived[name] for name in self.rewards}

        return wait

    @contextlib.contextmanager
    def resident(self) -> Iterator[None]:
        """A context in which offloaded reward models stay on their device."""
        with contextlib.ExitStack() as stack:
            for reward in self.rewards.values():
                stack.enter_context(reward.resident())
            yield

    def observe(self, scores: Mapping[str, Tensor]) -> None:
        """Take raw scores into the running statistics.

        Args:
            scores: the raw scores of all processes by reward, [N] each.
        """
        for name, values in scores.items():
            new = values.detach().double().cpu()
            count, mean, squares = self._moments[name].unbind()
            total = count + len(new)
            shift = new.mean() - mean
            squares = squares + (new - new.mean()).square().sum() + shift.square() * count * len(new) / total
            self._moments[name] = torch.stack([total, mean + shift * len(new) / total, squares])

    @property
    def lacks_statistics(self) -> bool:
        """Whether several rewards are to be standardised, and no score has been observed yet."""
        return len(self.rewards) > 1 and any(moments[0] == 0 for moments in self._moments.values())

    def with_gradient(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Score N images, and record the gradient of the mixed reward at the images.

        Args:
            images: float32 [N, 3, H, W] in [0, 1].
            prompts: N prompts.
            metadata: N mappings, the further fields of the prompts.

        Returns:
            The mixed reward with gradient, float32 [N], standardised by the scores observed so far; and the raw scores
            of every reward without gradient, float32 [N] each.
        """
        scores = {name: reward.with_gradient(images, prompts, metadata) for name, reward in self.rewards.items()}
        return self.combine(scores), {name: values.detach() for name, values in scores.items()}

    def combine(self, scores: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of raw scores.

        Args:
            scores: the raw scores by reward, float32 [N] each.

        Returns:
            float32 [N].
        """
        if len(self.rewards) == 1:
            (name,) = self.rewards
            return self.weights[name] * scores[name]
        total = torch.zeros_like(next(iter(scores.values())))
        for name, values in scores.items():
            count, mean, squares = self._moments[name].tolist()
            std = (squares / count) ** 0.5
            total = total + self.weights[name] * (values - mean) / (std + 1e-6)
        return total

    def state_dict(self) -> dict[str, Any]:
        """The running statistics."""
        return {"moments": dict(self._moments)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self._moments = dict(state["moments"])
