"""Rewards say whether they have a gradient, and are tried before a run spends time."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from helpers.small_rewards import MAKERS
from torch import Tensor

from sdpo.errors import RewardError, UserError
from sdpo.rewards import DESCRIPTIONS, REWARDS, Description, PlacedReward, load_reward
from sdpo.rewards.gradient_check import check_differentiable, check_names_differentiable, probe_gradient

PROMPTS, METADATA = ["a cat", "two dogs"], [{}, {}]


def probe(reward: Any) -> None:
    probe_gradient(PlacedReward("own", reward), PROMPTS, METADATA, (32, 32), torch.device("cpu"))


class Rounds:
    differentiable = True

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Any:
        return images.round().flatten(1).mean(1)


class Detaches(Rounds):
    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Any:
        return images.detach().flatten(1).mean(1)


class Lists(Rounds):
    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Any:
        return images.flatten(1).mean(1).tolist()


class Infinite(Rounds):
    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Any:
        return (images * 0).flatten(1).sum(1).sqrt()


@pytest.mark.parametrize("name", MAKERS)
def test_neural_rewards_have_a_gradient_where_they_resize_by_numbers(name: str) -> None:
    reward = MAKERS[name]("official", "float")
    assert reward.differentiable
    probe(reward)
    rounded = MAKERS[name]("official", "pil")
    with pytest.raises(UserError, match=r"'own' has none.*resize: float"):
        check_differentiable([PlacedReward("own", rounded)], "srg")


def test_a_reward_that_is_flat_in_places_is_accepted() -> None:
    class Bright(Rounds):
        def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Any:
            return (images.flatten(1).mean(1) - 0.8).clamp(min=0)

    class Dark(Rounds):
        def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Any:
            return (0.2 - images.flatten(1).mean(1)).clamp(min=0)

    probe(Bright())
    probe(Dark())


def test_an_offloaded_reward_stays_on_its_device_for_the_backward_pass() -> None:
    class Offloaded(torch.nn.Conv2d):
        """Moving it replaces its weights, as a move to another device does."""

        differentiable = True

        def __init__(self) -> None:
            super().__init__(3, 1, 3)
            self.home = True

        def to(self, device: Any) -> Any:
            self.home = torch.device(device).type == "cpu"
            return super().to(torch.float64 if self.home else torch.float32)

        def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
            assert not self.home
            return super().__call__(images).flatten(1).mean(1)

    reward = PlacedReward("own", Offloaded(), device="meta", offload=True)
    probe_gradient(reward, PROMPTS, METADATA, (32, 32), torch.device("cpu"))
    assert reward.reward.home  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["emoji_score", "colorfulness"])
def test_rewards_of_the_package_have_a_gradient(name: str) -> None:
    probe(load_reward(name))


@pytest.mark.parametrize("name", ["jpeg_compressibility", "jpeg_incompressibility", "emoji_judge"])
def test_rewards_without_a_gradient_are_refused_by_name(name: str) -> None:
    rewards = [PlacedReward("colorfulness", load_reward("colorfulness")), PlacedReward(name, load_reward(name))]
    with pytest.raises(UserError, match=f"algorithm draft follows the gradient.*'{name}' has none"):
        check_differentiable(rewards, "draft")


@pytest.mark.parametrize("reward", [Rounds(), Detaches(), Lists()])
def test_a_reward_that_claims_a_gradient_without_having_one_is_refused(reward: Any) -> None:
    with pytest.raises(UserError, match="'own' says that it is differentiable, but its score"):
        probe(reward)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    with pytest.raises(RewardError, match="not finite"):
        probe(Infinite())


def test_the_score_of_a_grey_image_has_a_finite_gradient() -> None:
    images = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    load_reward("colorfulness")(images, ["x"], [{}]).sum().backward()  # type: ignore[union-attr]
    assert images.grad is not None and images.grad.isfinite().all()


def test_the_gradient_of_a_real_reward_model_is_that_of_its_finite_differences() -> None:
    reward = MAKERS["pickscore"]("official", "float")
    reward.model.double()
    images = 0.1 + 0.8 * torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    leaf = images.clone().requires_grad_()

    def score(values: Tensor) -> Tensor:
        embedded = reward.embed_pixels(_pixels(values).double())
        text = reward.text_embeddings(["a cat"])
        return (torch.nn.functional.normalize(embedded, dim=-1) * text).sum()

    def _pixels(values: Tensor) -> Tensor:
        from sdpo.rewards.models.pixels import model_pixels

        return model_pixels(values, reward.size, reward.fit)

    (gradient,) = torch.autograd.grad(score(leaf), leaf)
    step = 1e-2
    difference = (score(images + step * direction) - score(images - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(difference.item(), rel=2e-3)


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=lambda description: str(description.name))
def test_the_list_of_rewards_says_which_have_a_gradient(description: Description) -> None:
    name = description.name
    if name in ("http", "vlm", "ray"):
        module, _, kind = REWARDS[name].partition(":")
        assert not getattr(getattr(importlib.import_module(module), kind), "differentiable", False)
        assert not description.has_gradient
        return
    reward = MAKERS[name.removesuffix(".1")]("official", "float") if name.removesuffix(".1") in MAKERS else None
    assert description.has_gradient == PlacedReward(name, reward or load_reward(name)).differentiable


def flat(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    return images.flatten(1).mean(1)


class Silent:
    """Its instances may say that they have a gradient; the class does not tell."""


class Refuses(Rounds):
    differentiable = False


def test_what_a_name_tells_of_a_reward_of_the_user() -> None:
    for own in ("flat", "Refuses"):
        with pytest.raises(UserError, match=f"'{__name__}:{own}' has none.*differentiable = True"):
            check_names_differentiable([f"{__name__}:{own}"], "srg")
    check_names_differentiable([f"{__name__}:Rounds", f"{__name__}:Silent", "emoji_score"], "srg")
    with pytest.raises(UserError, match="'jpeg_compressibility' has none"):
        check_names_differentiable(["emoji_score", "jpeg_compressibility"], "srg")
