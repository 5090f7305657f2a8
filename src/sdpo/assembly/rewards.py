"""Loads the rewards of a run onto their device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from sdpo.config import Config
from sdpo.distributed.launch import loading_everywhere
from sdpo.distributed.processes import check_device
from sdpo.rewards.base import PlacedReward, Reward
from sdpo.rewards.registry import load_reward


@loading_everywhere()
def load_rewards(
    config: Config, names: Iterable[str], device: torch.device, own: Mapping[str, Reward] | None = None
) -> dict[str, PlacedReward]:
    """Load rewards by name, each called with `scoring.batch_size` images on `scoring.device`.

    Args:
        config: the configuration of a run, for its sections `scoring` and `reward_options`.
        names: the names of the rewards.
        device: the device of the denoising network, for which `scoring.device=auto` stands.
        own: the user's own callables by name, which take the place of loaded rewards.

    Raises:
        UserError: if a reward cannot be loaded.
    """
    scoring = config.scoring
    place = check_device(scoring.device, "scoring.device") or device
    start = "cpu" if scoring.offload else str(place)
    placed: dict[str, PlacedReward] = {}
    own = own or {}
    for name in names:
        reward = own[name] if name in own else load_reward(name, start, config.reward_options.get(name))
        placed[name] = PlacedReward(name, reward, scoring.batch_size, place, scoring.offload, scoring.timeout)
    return placed
