"""Rewards: anything that is called with images, prompts and metadata and returns one score an image."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from sdpo.errors import RewardError, UserError
from sdpo.system import dotted_path
from sdpo.system.interrupt import time_limit


class Reward(Protocol):
    """The call that every reward answers.

    Images are float tensors in [0, 1], [N, 3, H, W]. One finite score for each comes back, in order, as a tensor or a
    sequence of numbers; larger is better.
    """

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor | Sequence[float]:
        """Score N images."""


def resolve(name: str, registry: dict[str, str]) -> Callable[..., Any]:
    """The class or callable of a registered name, or of the user's own dotted path `package.module:attribute`.

    Raises:
        UserError: if the name is not registered (with the nearest), or the path cannot be imported.
    """
    try:
        found = dotted_path.resolve(name, registry, "reward", "my_module:my_reward")
    except UserError as error:
        raise UserError(f"rewards: {error}") from error
    if not callable(found):
        raise UserError(f"rewards: {name!r} is a {type(found).__name__}, not a callable (images, prompts, metadata).")
    return found  # type: ignore[no-any-return]


def checked_scores(
    name: str, reward: Reward, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
) -> Tensor:
    """Call a reward and verify what it returns; a failed reward is an error, never a 0.

    Returns:
        float32 [N] on the images' device.

    Raises:
        RewardError: if it raises, or returns the wrong number of scores, something that is not numbers, or NaN or
            infinity.
    """
    try:
        scores = reward(images, prompts, metadata)
    except UserError:
        raise
    except Exception as error:
        raise RewardError(
            f"reward {name!r} raised {type(error).__name__}: {error} (on {len(prompts)} images of shape "
            f"{tuple(images.shape[1:])}; first prompt {prompts[0]!r})"
        ) from error
    try:
        values = torch.as_tensor(scores).detach()
        if values.is_complex():
            raise TypeError("complex numbers have no order")
        values = values.to(images.device, torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(
            f"reward {name!r} returned {type(scores).__name__}, which is not a sequence of numbers: {error}"
        ) from error
    if values.shape != (len(prompts),):
        raise RewardError(
            f"reward {name!r} returned shape {tuple(values.shape)} for {len(prompts)} images: "
            f"expected one score an image, shape ({len(prompts)},)"
        )
    bad = ~values.isfinite()
    if bad.any():
        first = int(bad.nonzero()[0, 0])
        raise RewardError(
            f"reward {name!r} returned {values[first].item()} for prompt {prompts[first]!r} "
            f"({int(bad.sum())} of {len(prompts)} scores are not finite). Mend the reward, or leave out the prompt."
        )
    return values


class PlacedReward:
    """A reward in calls of bounded size; its model, if so wished, is on the accelerator only while it is used.

    Args:
        name: for messages.
        reward: the user's or ours; `reward.to(device)` is used where there is one.
        batch_size: images in a call.
        device: where a model works.
        offload: keep it on the CPU outside `resident`.
        timeout: seconds that a call may take; None is for ever. Remote rewards have time limits of their own.
    """

    def __init__(
        self,
        name: str,
        reward: Reward,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        offload: bool = False,
        timeout: float | None = None,
    ) -> None:
        self.name = name
        self.reward = reward
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.timeout = timeout
        self._move: Callable[[Any], Any] | None = getattr(reward, "to", None) if offload else None
        self._resident = False
        if self._move is not None:
            self._move("cpu")

    @property
    def remote(self) -> bool:
        """Whether the reward works elsewhere, so that a caller gains by not waiting for it; it says so itself."""
        return bool(getattr(self.reward, "remote", False))

    @contextlib.contextmanager
    def resident(self) -> Iterator[None]:
        """A context in which an offloaded model stays on its device."""
        if self._move is None or self._resident:
            yield
            return
        self._move(self.device)
        self._resident = True
        try:
            yield
        finally:
            self._resident = False
            self._move("cpu")

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """float32 [N] on the images' device.

        Raises:
            RewardError: see `checked_scores`, every call is checked by itself; or if it takes too long.
        """
        scores = []
        late = RewardError(
            f"reward {self.name!r} gave no answer within {self.timeout} s. Mend it, or give it longer by "
            "scoring.timeout (null: for ever)."
        )
        with self.resident():
            for start in range(0, len(prompts), self.batch_size):
                rows = slice(start, start + self.batch_size)
                with time_limit(self.timeout, late):
                    scores.append(checked_scores(self.name, self.reward, images[rows], prompts[rows], metadata[rows]))
        return torch.cat(scores)
