"""A reward in a pool of Ray actors, for a model that is too large or too slow for the machine that trains."""

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
    """Scores images by any other reward, in several actors of a Ray cluster.

    Ray restarts an actor that dies, and the images that this actor had are scored again.

    Args:
        reward: the name or the dotted path of the reward that each actor holds.
        options: the options of that reward.
        actors: the number of actors.
        batch_size: the largest number of images in a call of an actor.
        num_cpus: the number of CPUs that an actor reserves.
        num_gpus: the number of GPUs that an actor reserves; above 0 the reward works on `cuda`, else on the CPU.
        restarts: how often Ray restarts an actor, and repeats a call whose actor died.
        timeout: seconds without an answer of any actor after which a call is an error.
        address: the address of a cluster (`auto`, `ray://host:10001`); None is the cluster of this process, or a new
            local one.
        device: ignored: the actors have devices of their own.

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
                "reward_options.ray: actors and batch_size must be at least 1, restarts at least 0, timeout above 0"
            )
        try:
            import ray
        except ImportError as error:
            raise UserError("reward 'ray' needs Ray. Install it: pip install 'sdpo[ray]'") from error
        self._ray: Any = ray
        self.batch_size = batch_size
        self.timeout = timeout
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of Ray's own interface
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
            except Exception as error:  # no cluster, no resources, a reward that cannot be built
                raise UserError(f"reward 'ray': no pool of {actors} actors with {reward!r}: {_cause(error)}") from error

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """Score images by the actors.

        Args:
            images: float [N, 3, H, W] in [0, 1].
            prompts: the N prompts of the images.
            metadata: the N metadata of the prompts.

        Returns:
            Scores, float32 [N], on the CPU.

        Raises:
            RewardError: if the reward fails, an actor dies more often than Ray restarts it, or time runs out.
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
    """The reward inside an actor.

    Args:
        name: the reward's name or dotted path.
        device: the device for the reward's weights.
        options: the reward's options.
    """

    def __init__(self, name: str, device: str, options: dict[str, Any]) -> None:
        from sdpo.rewards.registry import load_reward

        self.name = name
        self.reward: Reward = load_reward(name, device, options)
        self.device = device

    def ready(self) -> bool:
        """Return True, once the reward is loaded."""
        return True

    def score(self, pixels: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]) -> np.ndarray:
        """Score N images.

        Args:
            pixels: float32 [N, 3, H, W] in [0, 1].
            prompts: the N prompts of the images.
            metadata: the N metadata of the prompts.

        Returns:
            Scores, float32 [N].
        """
        images = torch.from_numpy(pixels.copy()).to(self.device)
        with torch.no_grad():
            return checked_scores(self.name, self.reward, images, prompts, metadata).cpu().numpy()


def _cause(error: Exception) -> str:
    """The type and the last line of the error that Ray wrapped."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).strip().splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1]}" if lines else type(cause).__name__
