"""A pool of Ray actors that each hold a reward: for a model too large or too slow for the machine that trains."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdpo.errors import RewardError, UserError
from sdpo.rewards.base import Reward, checked_scores


class RayPool:
    """Any other reward, in several actors of a Ray cluster.

    An actor that dies is started again, and what it was scoring is scored again.

    Args:
        reward: name or dotted path of the reward that each actor holds.
        options: of that reward.
        actors: how many.
        batch_size: images in a call of an actor.
        num_cpus: that an actor reserves.
        num_gpus: that an actor reserves; with any, the reward works on `cuda`.
        restarts: of an actor, and further tries of a call whose actor died.
        timeout: seconds for a call of the pool, after which it is an error.
        address: of a cluster (`auto`, `ray://host:10001`); None is the one this process is in, else a local one.
        device: ignored: the actors have their own.

    Raises:
        UserError: if Ray is not installed, no cluster answers, or no actor can hold the reward.
    """

    remote = True

    def __init__(
        self,
        reward: str = "",
        *,
        options: Mapping[str, Any] | None = None,
        actors: int = 2,
        batch_size: int = 16,
        num_cpus: float = 1,
        num_gpus: float = 0,
        restarts: int = 3,
        timeout: float = 600.0,
        address: str | None = None,
        device: str = "cpu",
    ) -> None:
        if not reward or reward == "ray":
            raise UserError("reward 'ray' needs the reward that its actors hold: reward_options.ray.reward=pickscore")
        if actors < 1 or batch_size < 1 or restarts < 0 or timeout <= 0:
            raise UserError(
                "reward_options.ray: actors and batch_size at least 1, restarts at least 0, timeout above 0"
            )
        try:
            import ray
        except ImportError as error:
            raise UserError("reward 'ray' needs Ray: pip install 'sdpo[ray]'") from error
        self._ray: Any = ray
        self.batch_size = batch_size
        self.timeout = timeout
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # Ray's notes to its own users
            try:
                if not ray.is_initialized():
                    ray.init(address=address, log_to_driver=False, logging_level="error")
                worker = ray.remote(
                    num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=restarts, max_task_retries=restarts
                )(Worker)
                place = "cuda" if num_gpus else "cpu"
                self.actors = [worker.remote(reward, place, dict(options or {})) for _ in range(actors)]
                ray.get([actor.ready.remote() for actor in self.actors], timeout=timeout)
            except UserError:
                raise
            except Exception as error:  # no cluster, no resources, a reward that cannot be built: Ray has many names
                raise UserError(f"reward 'ray': no pool of {actors} actors with {reward!r}: {_cause(error)}") from error

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """float32 [N] of images [N, 3, H, W] in [0, 1].

        Raises:
            RewardError: if the reward fails, an actor dies more often than it is restarted, or time runs out.
        """
        pixels = images.detach().float().cpu().numpy()
        waiting = [slice(start, start + self.batch_size) for start in range(0, len(prompts), self.batch_size)]
        scores = torch.empty(len(prompts))
        busy: dict[Any, tuple[Any, slice]] = {}
        idle = list(self.actors)
        try:
            while waiting or busy:
                while waiting and idle:
                    actor, rows = idle.pop(), waiting.pop(0)
                    busy[actor.score.remote(pixels[rows], prompts[rows], metadata[rows])] = (actor, rows)
                done, _ = self._ray.wait(list(busy), num_returns=1, timeout=self.timeout)
                if not done:
                    raise RewardError(f"no actor of {len(self.actors)} answered within {self.timeout:g} s")
                actor, rows = busy.pop(done[0])
                scores[rows] = torch.from_numpy(self._ray.get(done[0]).copy())
                idle.append(actor)
        except RewardError:
            raise
        except Exception as error:
            raise RewardError(f"an actor failed: {_cause(error)}") from error
        return scores


class Worker:
    """What runs in an actor."""

    def __init__(self, name: str, device: str, options: dict[str, Any]) -> None:
        from sdpo.rewards import load_reward

        self.name = name
        self.reward: Reward = load_reward(name, device, options)
        self.device = device

    def ready(self) -> bool:
        """Answers once the reward is loaded."""
        return True

    def score(self, pixels: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> np.ndarray:
        """Scores of N images, float32 [N]."""
        images = torch.from_numpy(pixels.copy()).to(self.device)
        with torch.no_grad():
            return checked_scores(self.name, self.reward, images, prompts, metadata).cpu().numpy()


def _cause(error: Exception) -> str:
    """The error that Ray wrapped, as its last line says it."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).strip().splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1]}" if lines else type(cause).__name__
